"""The flags of both scripts, and the configuration that they stand for."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autorep.config import (
    ACT_TYPES,
    BudgetConfig,
    DapaConfig,
    DataConfig,
    DistillConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    gate_for_act_type,
    to_json,
)
from autorep.data.datasets import DATASET_NAMES, dataset_info
from autorep.distributed import destroy_process_group, is_main
from autorep.evaluate import report_checkpoint
from autorep.run import fit, relu_total
from autorep.runlog import run_folder


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
        """The default in the script of a kind."""
        return self.baseline if kind == "baseline" or self.autorep is ... else self.autorep


# Defaults that replace those of the flags below; flags that are given win over both.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "baseline": {
        "reference": {},  # the published one, as the flags have it
        "fast": {"epochs": 100, "batch_size": 512, "w_lr": 0.4, "nesterov": True, "label_smoothing": 0.1,
                 "warmup_epochs": 20.0},
    },
    "autorep": {"reference": {},
                "best": {"score_init": "saliency", "dapa_fit": "recorded", "mask_epochs": 140, "epochs": 60,
                         "ema_decay": 0.999}},
}

FLAGS = {
    "recipe": Flag("defaults of the other flags", "reference"),
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
    "compile": Flag("compile the training step (torch.compile), which takes minutes", False, type=parse_bool),
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


def build_parser(kind: str) -> argparse.ArgumentParser:
    """The parser of train_baseline.py ("baseline") or train_autorep.py ("autorep"); yields the given flags only."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, flag in FLAGS.items():
        options: dict[str, Any] = {"nargs": "?", "const": True} if flag.type is parse_bool else {}
        default = flag.default(kind)
        text = flag.help if default is None else f"{flag.help} (default: {default})"
        choices = tuple(RECIPES[kind]) if name == "recipe" else flag.choices
        parser.add_argument(*(flag.names or (f"--{name}",)), dest=name, type=flag.type, choices=choices, help=text,
                            metavar=None if choices else "X", **options)
    return parser


def config_from(kind: str, given: dict[str, Any]) -> RunConfig:
    """The configuration of the given flags on top of the script's defaults.

    Raises:
        ValueError: an illegal value, or flags that do not go together.
    """
    recipe = given.get("recipe", FLAGS["recipe"].default(kind))
    if recipe not in RECIPES[kind]:
        raise ValueError(f"--recipe {recipe} is not legal: one of {', '.join(RECIPES[kind])}")
    v = {name: flag.default(kind) for name, flag in FLAGS.items()} | RECIPES[kind][recipe] | given
    if (kind == "baseline") != (v["act_type"] == "nn.ReLU"):
        raise ValueError(f"--act_type {v['act_type']} belongs to "
                         f"{'train_autorep.py' if kind == 'baseline' else 'train_baseline.py'}")
    gate = gate_for_act_type(v["act_type"], threshold=v["threshold"], degree=v["degree"], kept=v["kept"],
                             score_init=v["score_init"])
    if gate and v["ReLU_count"] is None:
        raise ValueError("--ReLU_count is missing: the ReLU budget per image in thousands, such as 12.9")
    if v["distil"] and not v["teacher_path"]:
        raise ValueError("--distil needs --teacher_path RUN_FOLDER/last.pth.tar, a dense checkpoint")
    return RunConfig(
        data=DataConfig(**{k: v[k] for k in ("dataset", "data_path", "batch_size", "workers", "validation_fraction",
                                             "augment")}),
        model=ModelConfig(**{k: v[k] for k in ("arch", "dropout", "pretrained", "pretrained_path")}),
        optim=OptimConfig(
            optimizer=v["optimizer"], schedule=v["optim"], lr=v["w_lr"], lr_min=v["w_lr_min"], score_lr=v["w_mask_lr"],
            momentum=v["w_momentum"], nesterov=v["nesterov"], weight_decay=v["w_weight_decay"],
            warmup_epochs=v["warmup_epochs"],
            grad_clip=v["w_grad_clip"] if v["enable_grad_norm"] else None, lookahead=v["enable_lookahead"],
            ema_decay=v["ema_decay"]),
        gate=gate, dapa=_dapa(v) if gate and gate.replacement == "dapa" else None,
        budget=BudgetConfig(relu_budget=round(1000 * v["ReLU_count"]), penalty_weight=v["lamda"],
                            schedule=v["budget_schedule"], anneal_fraction=v["anneal_fraction"],
                            relu_layers=v["relu_layers"]) if gate else None,
        distill=DistillConfig(teacher_arch=v["teacher_arch"] or v["arch"], teacher_path=v["teacher_path"],
                              temperature=v["temperature"]) if v["distil"] else None,
        freeze_coefficients=v["freezeact"], search_epochs=v["mask_epochs"] if gate else 0,
        **{k: v[k] for k in ("act_type", "label_smoothing", "epochs", "seed", "gpu", "precision", "compile",
                             "checkpoint_path", "start_epoch", "resume", "max_minutes", "print_freq", "out_dir",
                             "ext")})


def _dapa(v: dict[str, Any]) -> DapaConfig:
    return DapaConfig(fit=v["dapa_fit"], clip_x2=v["clip_x2"] if v["clip_x2_bool"] else None,
                      **{k: v[k] for k in ("calibration_batches", "refit_every", "refit_until", "scale_x1", "scale_x2",
                                           "var_min")})


def idle_flags(given: dict[str, Any], config: RunConfig) -> dict[str, str]:
    """The given flags that have no effect in this configuration, and why."""
    gate, optim, budget = config.gate, config.optim, config.budget
    no_gates = "train_baseline.py has no gates"
    search = ("mask_epochs", "w_mask_lr", "ReLU_count", "lamda", "budget_schedule", "anneal_fraction",
              "score_init")
    dapa = ("dapa_fit", "calibration_batches", "refit_every", "refit_until", "scale_x1", "scale_x2", "clip_x2_bool",
            "clip_x2", "var_min")
    rules = [
        (gate is None, (*search, "relu_layers", "threshold", "degree", "kept", "freezeact", *dapa), no_gates),
        (gate is not None and config.dapa is None, dapa, f"--act_type {config.act_type} does not fit coefficients"),
        (gate is not None and config.search_epochs == 0, (search[1], *search[3:], *dapa),
         "there is no search (--mask_epochs 0)"),
        (bool(config.dapa) and config.dapa.refit_until == 0, ("refit_every",), "there is one fit (--refit_until 0)"),
        (bool(config.dapa) and bool(config.checkpoint_path), dapa, "--checkpoint_path holds the coefficients"),
        (bool(config.checkpoint_path), ("score_init",), "--checkpoint_path holds the scores"),
        (gate is not None and gate.degree < 1, ("scale_x1",), "no c1 below degree 1"),
        (gate is not None and gate.threshold == 0 and config.act_type == "ReLU_masked", ("threshold",),
         "ReLU_masked is the plain gate"),
        (gate is not None and gate.replacement == "identity", ("degree", "freezeact"), "the identity is fixed"),
        (gate is not None and gate.degree < 2, ("scale_x2", "clip_x2", "clip_x2_bool"), "no c2 below degree 2"),
        (bool(config.dapa) and config.dapa.clip_x2 is None, ("clip_x2",), "it needs --clip_x2_bool"),
        (bool(budget) and budget.schedule == "constant" and not budget.relu_layers, ("anneal_fraction",),
         "the budget is constant"),
        (bool(budget) and budget.relu_budget == 0, ("relu_layers",), "no ReLU is left at --ReLU_count 0"),
        (config.distill is None, ("teacher_arch", "teacher_path", "temperature"), "it needs --distil"),
        (config.distill is not None, ("label_smoothing",), "--distil has soft labels of its own"),
        (config.epochs == 0, ("ema_decay",), "there is no fine-tuning (--epochs 0)"),
        (optim.optimizer == "adam", ("w_momentum",), "Adam has none"),
        (optim.grad_clip is None, ("w_grad_clip",), "--enable_grad_norm is off"),
        (optim.schedule == "cosine_finetune", ("warmup_epochs",), "cosine_finetune has no warm-up"),
        (config.data.dataset == "digits", ("data_path",), "the digits come with scikit-learn"),
        (config.data.dataset not in ("imagenet", "folder"), ("workers",), "this set lives in memory"),
        (bool(config.checkpoint_path), ("pretrained", "pretrained_path"), "--checkpoint_path holds all weights"),
    ]
    return {name: why for applies, names, why in rules if applies for name in names if name in given}


def main(kind: str, argv: Sequence[str] | None = None) -> None:
    """Parse, build the configuration, run; user errors end with one line on stderr and exit code 2."""
    parser = build_parser(kind)
    given = vars(parser.parse_args(argv))
    warnings.showwarning = _show_warning
    try:
        if given.pop("evaluate", False):
            _evaluate(kind, given)
            return
        dry_run = given.pop("dry_run", False)
        config = config_from(kind, given)
        for name, why in idle_flags(given, config).items():
            warnings.warn(f"--{name} has no effect: {why}", stacklevel=1)
        if dry_run:
            _print_plan(config)
        else:
            summary = fit(config)
            if is_main():
                _print_summary(summary, config)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except FloatingPointError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    finally:
        destroy_process_group()


def _evaluate(kind: str, given: dict[str, Any]) -> None:
    if "checkpoint_path" not in given:
        raise ValueError("--evaluate needs --checkpoint_path")
    for name in given.keys() - {"checkpoint_path", "data_path", "gpu", "batch_size", "precision"}:
        warnings.warn(f"--{name} has no effect: --evaluate takes the run's own configuration", stacklevel=1)
    v = {name: flag.default(kind) for name, flag in FLAGS.items()} | given
    report_checkpoint(v["checkpoint_path"], data_path=given.get("data_path"), gpu=v["gpu"],
                      batch_size=v["batch_size"], precision=v["precision"])


def _print_plan(config: RunConfig) -> None:
    print(to_json(config))
    relus = relu_total(config, dataset_info(config.data.dataset, config.data.data_path))
    print(f"run folder: {run_folder(config)}\nReLUs per image: {relus.total:,} in {len(relus.layers)} layers")


def _print_summary(summary: dict[str, Any], config: RunConfig) -> None:
    print(json.dumps(summary, indent=2))
    if not summary["finished"]:
        print(f"stopped at step {summary['step']} of {summary['num_steps']}: run again with --resume auto to go on")
    print(f"run folder: {run_folder(config)}")


def _show_warning(message: Warning | str, category: type, filename: str, lineno: int, file: Any = None,
                  line: str | None = None) -> None:
    """One line, without the place in our source that means nothing to users."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
