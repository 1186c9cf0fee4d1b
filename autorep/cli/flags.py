"""The table of flags of both scripts, and the recipes: other sets of defaults."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autorep.config import ACT_TYPES
from autorep.data.datasets import DATASET_NAMES


def parse_bool(text: str) -> bool:
    """True or False from the usual spellings."""
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not legal: true or false")


def parse_number(text: str) -> float:
    """A finite number."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not legal: a finite number")
    return number


@dataclass(frozen=True)
class Flag:
    """One flag: its default in train_baseline.py and in train_autorep.py (the same where `autorep` is left out)."""

    help: str
    baseline: Any = None
    autorep: Any = ...
    type: Callable[[str], Any] = str
    choices: tuple | None = None
    names: tuple[str, ...] = ()

    def default(self, kind: str) -> Any:
        """The default in the script of a kind, whatever the recipe."""
        return self.baseline if kind == "baseline" or self.autorep is ... else self.autorep


# Defaults that replace those of the flags below; flags that are given win over both.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "baseline": {
        "reference": {},  # the published one, as the flags have it
        "fast": {"epochs": 100, "batch_size": 512, "w_lr": 0.4, "nesterov": True, "label_smoothing": 0.1,
                 "warmup_epochs": 20.0},
    },
    "autorep": {"reference": {},
                "best": {"score_init": "saliency", "dapa_fit": "recorded", "scale_x2": 0.2}},
}

FLAGS = {
    "recipe": Flag("defaults of the other flags", "reference", "best"),
    "arch": Flag("network: one of ours, torchvision:NAME or timm:NAME", "resnet18_in"),
    "dataset": Flag("data set", "cifar10", choices=DATASET_NAMES),
    "data_path": Flag("folder of the data set", "./data"),
    "act_type": Flag("what replaces a dropped ReLU", "nn.ReLU", "ReLU_masked_dapa_relay", choices=ACT_TYPES),
    "gpu": Flag("index of the GPU, or cpu", "0", names=("--gpu", "--gpus")),
    "batch_size": Flag("images per step, over all GPUs", 256, 128, int),
    "workers": Flag("processes that decode images, for sets too large for memory", 4, type=int),
    "seed": Flag("random seed", 0, type=int),
    "validation_fraction": Flag("share of the training set held out to choose best.pth.tar", 0.1, type=parse_number),
    "augment": Flag("crop and mirror training images at random; without it a set that lives in memory keeps its "
                    "teacher's logits, 4 bytes an image and class", True, type=parse_bool),
    "optimizer": Flag("optimiser", "sgd", "adam", choices=("sgd", "adam")),
    "optim": Flag("learning-rate schedule", "cosine", choices=("cosine", "cosine_finetune", "cosine_rst")),
    "w_lr": Flag("learning rate of the weights; coefficients move at a tenth of it", 0.1, 1e-3, parse_number),
    "w_lr_min": Flag("where the schedule ends", 1e-5, type=parse_number),
    "w_momentum": Flag("momentum of SGD", 0.9, type=parse_number),
    "nesterov": Flag("Nesterov's momentum", False, type=parse_bool),
    "label_smoothing": Flag("share of each label spread over all classes, without --distil", 0.0, type=parse_number),
    "w_weight_decay": Flag("weight decay of the weights", 5e-4, type=parse_number),
    "w_mask_lr": Flag("learning rate of the scores", 1e-3, type=parse_number),
    "warmup_epochs": Flag("epochs of linear warm-up", 1.0, type=parse_number),
    "enable_grad_norm": Flag("clip the gradient norms of weights and of scores", True, type=parse_bool),
    "w_grad_clip": Flag("bound of these norms", 5.0, type=parse_number),
    "enable_lookahead": Flag("wrap the optimiser in Lookahead", False, type=parse_bool),
    "ema_decay": Flag("decay of the moving average of weights that a run ends with; 0: none", 0.0, type=parse_number),
    "epochs": Flag("epochs of a baseline; of fine-tuning with frozen masks after a search", 400, 0, int),
    "mask_epochs": Flag("epochs of the search", 0, 200, int),
    "precision": Flag("arithmetic: float32, or autocast to fp16 or bf16", "full", choices=("full", "half", "bf16")),
    "compile": Flag("compile the training step (torch.compile), which takes minutes; without the flag on CUDA only",
                    None, type=parse_bool),
    "ReLU_count": Flag("ReLU budget per image, in thousands", 0.0, None, parse_number),
    "lamda": Flag("weight of the budget penalty", 140.0, type=parse_number),
    "budget_schedule": Flag("how the budget falls during the search", "constant",
                            choices=("constant", "linear", "cosine", "exponential")),
    "anneal_fraction": Flag("share of the search over which it falls", 0.6, type=parse_number),
    "relu_layers": Flag("how many layers may hold a ReLU in the result; secure computation pays for each", type=int),
    "threshold": Flag("half width of the hysteresis loop", 0.003, type=parse_number),
    "score_init": Flag("how scores start: at random, or by saliency", "uniform", choices=("uniform", "saliency")),
    "degree": Flag("degree of the polynomials, 0 to 4", 2, type=int),
    "kept": Flag("convert activations that are not ReLU too; kept pixels then compute ReLU", None, choices=("relu",)),
    "dapa_fit": Flag("fit to a Gaussian of the recorded mean and variance, or to what was recorded", "gaussian",
                     choices=("gaussian", "recorded")),
    "calibration_batches": Flag("batches recorded for a fit", 10, type=int),
    "refit_every": Flag("steps between two fits", 50, type=int),
    "refit_until": Flag("last step with a fit; from then on coefficients are trained", 500, type=int),
    "scale_x1": Flag("factor on fitted c1", 1.0, type=parse_number),
    "scale_x2": Flag("factor on fitted c2; c1 and c0 are fitted to what is left", 0.1, type=parse_number),
    "clip_x2_bool": Flag("bound |c2| after a fit", False, type=parse_bool),
    "clip_x2": Flag("that bound", 1.0, type=parse_number),
    "var_min": Flag("floor on the variance of a channel in a fit", 1e-2, type=parse_number),
    "freezeact": Flag("do not train the coefficients", False, type=parse_bool),
    "dropout": Flag("dropout probability, where the network has one", None, type=parse_number),
    "pretrained": Flag("start from the library's weights", False, type=parse_bool),
    "pretrained_path": Flag("start from the dense weights of this checkpoint"),
    "distil": Flag("distil from a dense teacher", False, type=parse_bool),
    "teacher_arch": Flag("network of the teacher (default: --arch)"),
    "teacher_path": Flag("checkpoint of the teacher"),
    "temperature": Flag("temperature of the distillation", 4.0, type=parse_number),
    "checkpoint_path": Flag("AutoReP or baseline checkpoint to evaluate (-e) or to start from, masks included"),
    "start_epoch": Flag("first epoch to run of the schedule", 0, type=int, names=("--start-epoch", "--start_epoch")),
    "evaluate": Flag("evaluate --checkpoint_path on the test set and exit", False, type=parse_bool,
                     names=("-e", "--evaluate")),
    "resume": Flag("go on with a killed run: auto (the run folder's last.pth.tar) or a path"),
    "max_minutes": Flag("save and exit after so many minutes", None, type=parse_number),
    "print_freq": Flag("steps between two log lines", 50, type=int),
    "dry_run": Flag("print the configuration, the run folder and the ReLU total, and exit", False, type=parse_bool),
    "out_dir": Flag("where the run folder is made", "."),
    "ext": Flag("last part of the run folder's name", "baseline"),
}


def defaults(kind: str, recipe: str | None = None) -> dict[str, Any]:
    """Flag -> its default in the script of a kind under a recipe (None: the script's own).

    Raises:
        ValueError: that script has no such recipe.
    """
    recipe = FLAGS["recipe"].default(kind) if recipe is None else recipe
    if recipe not in RECIPES[kind]:
        raise ValueError(f"--recipe {recipe} is not legal: one of {', '.join(RECIPES[kind])}")
    return {name: flag.default(kind) for name, flag in FLAGS.items()} | RECIPES[kind][recipe]
