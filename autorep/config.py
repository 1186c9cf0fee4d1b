"""What a run is: frozen dataclasses, one per owner, checked when they are made. Each field declares its own flag."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autorep.limits import BudgetConfig
from autorep.option import Settings, option


@dataclass(frozen=True, kw_only=True)
class GateConfig(Settings):
    """One gate layer: what replaces a dropped ReLU, and how its mask moves.

    `replacement`: "identity" (fixed y = x), "polynomial" (trainable, starts as the identity) or "dapa" (trainable, to
    be fitted to recorded activations first). `threshold`: half width of the hysteresis; 0 is the plain gate.
    `kept`: None refuses activations that are not ReLU. "relu" converts them, and a kept pixel computes ReLU; with
    "original" it computes the activation that was there, which private inference mostly cannot. What replaces a dropped
    pixel is fitted to the activation that was there in either case.
    `sigmoid`: what takes the place of sigmoids that weight channels, because private inference cannot compute them:
    hard sigmoids ("hard"), or quadratics that DaPa fits, also in the place of hard ones ("poly"). Both change the model
    (fine-tune it).
    `score_init`: scores start "uniform" at random from `score_init_low` to `score_init_high`, or there in the order of
    how much the loss rises without the ReLU ("saliency").
    """

    replacement: str = "dapa"
    degree: int = option(2, "degree", "degree of the polynomials, 0 to 4", metavar="N")
    threshold: float = option(0.003, "threshold", "half width of the hysteresis")
    kept: str | None = option(None, "kept", "convert activations that are not ReLU too; kept pixels then compute ReLU, "
                              "or what was there (no price)", choices=("relu", "original"))
    sigmoid: str | None = option(None, "sigmoid", "put what has a price in the place of sigmoids (squeeze and "
                                 "excitation): hard ones, or fitted quadratics, which need no comparison",
                                 choices=("hard", "poly"))
    score_init: str = option("saliency", "score_init", "how scores start: at random, or by saliency",
                             choices=("uniform", "saliency"))
    score_init_low: float = 0.0
    score_init_high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.replacement in ("identity", "polynomial", "dapa"), "replacement",
                    "one of identity, polynomial, dapa")
        self.expect(self.degree in range(5), "degree", "a whole number from 0 to 4")
        self.expect(self.degree >= 1 or self.replacement == "dapa", "degree",
                    "1 or more: the identity and polynomials that start as the identity need it")
        self.expect(self.sigmoid != "poly" or self.replacement == "dapa", "sigmoid",
                    "hard or none, since polynomials of sigmoids are fitted with those of gates (replacement dapa)")
        self.expect(self.threshold >= 0, "threshold", "0 (plain gate) or more")
        self.expect(-self.threshold <= self.score_init_low <= self.score_init_high, "score_init_low",
                    f"from {-self.threshold} (-threshold) to {self.score_init_high} (score_init_high), "
                    "because all ReLUs start kept")


@dataclass(frozen=True, kw_only=True)
class DapaConfig(Settings):
    """Distribution-aware polynomial approximation: how coefficients are fitted (paper section 3.3).

    `refit_every` and `refit_until` are steps of the search; the first fit is before the first step, the last at most
    halfway, and after it the coefficients are trained. With `refit_until` None, as published, fits go on to the end and
    coefficients are not trained. A run from `checkpoint_path` keeps and trains those it finds.
    `scale_x1`, `scale_x2` multiply the fitted c1 and c2, `clip_x2` bounds |c2| (None: no bound), `var_min` [activation
    units squared] is the floor on the variance of a channel. At scale_x2 = 1 the fit is best where it was recorded, but
    c2 x^2 + c1 x outgrows x from 2.5 standard deviations on, and a residual stream of such layers diverges; at 0.1
    (the published value for CIFAR) from 25 on, at 0.2 from 12 on. Training takes c2 from there.
    """

    fit: str = option("recorded", "dapa_fit", "fit to a Gaussian of the recorded mean and variance, or to what was "
                      "recorded", choices=("gaussian", "recorded"))
    calibration_batches: int = option(10, "calibration_batches", "batches recorded for a fit", metavar="N")
    refit_every: int = option(50, "refit_every", "steps between two fits", metavar="STEPS")
    refit_until: int | None = option(500, "refit_until", "last step with a fit; after it coefficients are "
                                     "trained; None: fits go on to the end", metavar="STEP|None")
    scale_x1: float = option(1.0, "scale_x1", "factor on the fitted c1", metavar="FACTOR")
    scale_x2: float = option(0.2, "scale_x2", "factor on the fitted c2; c1 and c0 are fitted to what is left",
                             metavar="FACTOR")
    clip_x2: float | None = option(None, "clip_x2", "that bound", metavar="BOUND", switched_on=1.0,
                                   switch=("clip_x2_bool", "bound |c2| after a fit"))
    range_width: float = option(8.0, "range_width", "how many standard deviations from their mean polynomials see in "
                                "training; 0: no limit", metavar="WIDTH")
    var_min: float = option(1e-2, "var_min", "floor on the variance of a channel in a fit", metavar="VARIANCE")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.calibration_batches >= 1, "calibration_batches", "1 or more")
        self.expect(self.refit_every >= 1, "refit_every", "1 step or more")
        self.expect(self.refit_until is None or self.refit_until >= 0, "refit_until",
                    "0 (fit once, before the first step) or more, or None (to the end of the search)")
        self.expect(self.clip_x2 is None or self.clip_x2 > 0, "clip_x2", "more than 0")
        self.expect(self.range_width >= 0, "range_width", "0 (no limit) or more standard deviations")
        self.expect(self.var_min > 0, "var_min", "more than 0")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Settings):
    """Knowledge distillation from a dense teacher: Hinton et al. 2015, with temperature T and the usual T^2."""

    teacher_arch: str = option(..., "teacher_arch", "network of the teacher (default: --arch)", metavar="NAME")
    teacher_path: str = option(..., "teacher_path", "checkpoint of the teacher", metavar="FILE")
    temperature: float = option(4.0, "temperature", "temperature of the distillation", metavar="T")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(bool(self.teacher_path), "teacher_path",
                    "the path of the dense teacher's checkpoint, RUN_FOLDER/last.pth.tar")
        self.expect(self.temperature > 0, "temperature", "more than 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """What is read, and how much of it: `batch_size` is global, over all ranks.

    Without `augment` every epoch shows the same pixels.
    """

    dataset: str = option("cifar10", "dataset", "data set", metavar="NAME")
    data_path: str | None = option("./data", "data_path", "folder of the data set", metavar="FOLDER")
    batch_size: int = option(256, "batch_size", "images per step, over all GPUs", metavar="N", autorep=128)
    workers: int = option(4, "workers", "processes that decode images, for sets too large for memory", metavar="N")
    validation_fraction: float = option(0.1, "validation_fraction", "share of the training set held out to choose "
                                        "best.pth.tar", metavar="SHARE")
    augment: bool = option(True, "augment", "crop and mirror training images at random; without it a set that fits in "
                           "memory keeps its teacher's logits, 4 bytes per image and class")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.batch_size >= 1, "batch_size", "1 or more")
        self.expect(self.workers >= 0, "workers", "0 or more")
        self.expect(0 <= self.validation_fraction < 1, "validation_fraction", "from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Which network, and the weights that it starts from."""

    arch: str = option("resnet18_in", "arch", "network: one of ours, torchvision:NAME or timm:NAME", metavar="NAME")
    dropout: float | None = option(None, "dropout", "dropout probability, where the network has one", metavar="P")
    pretrained: bool = option(False, "pretrained", "start from the library's weights")
    pretrained_path: str | None = option(None, "pretrained_path", "start from the dense weights of this checkpoint",
                                         metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.dropout is None or 0 <= self.dropout < 1, "dropout", "from 0 to below 1")
        self.expect(not (self.pretrained and self.pretrained_path), "pretrained_path",
                    "either pretrained (the library's weights) or pretrained_path (a checkpoint), not both")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """Optimiser and learning-rate schedule; the same for every phase of a run.

    `schedule`: "cosine" (warm-up, then cosine to `lr_min`), "linear" (warm-up, then a straight line), "cosine_finetune"
    (no warm-up: for trained weights) or "cosine_rst" (warm-up, then cosine with warm restarts, each cycle twice the one
    before). With `ema_decay` above 0 the result of a baseline or of fine-tuning is the exponential moving average of
    the weights.
    """

    optimizer: str = option("sgd", "optimizer", "optimiser", choices=("sgd", "adam"), autorep="adam")
    schedule: str = option("cosine", "optim", "learning-rate schedule",
                           choices=("cosine", "linear", "cosine_finetune", "cosine_rst"))
    lr: float = option(0.1, "w_lr", "learning rate of the weights and of the coefficients",
                       metavar="RATE", autorep=1e-3)
    lr_min: float = option(1e-5, "w_lr_min", "learning rate at the end of the schedule", metavar="RATE")
    score_lr: float = option(1e-3, "w_mask_lr", "learning rate of the scores", metavar="RATE", search_only=True)
    momentum: float = option(0.9, "w_momentum", "momentum of SGD")
    nesterov: bool = option(False, "nesterov", "Nesterov's momentum")
    weight_decay: float = option(5e-4, "w_weight_decay", "weight decay of the weights")
    warmup_epochs: float = option(1.0, "warmup_epochs", "epochs of linear warm-up", metavar="EPOCHS")
    lr_update: str = option("step", "lr_update", "how often the schedule changes the learning rates",
                            choices=("step", "epoch"))
    grad_clip: float | None = option(5.0, "w_grad_clip", "bound of these norms", metavar="NORM",
                                     switch=("enable_grad_norm", "clip the gradient norms of weights and of scores"))
    clip_scores: bool = option(True, "clip_scores", "clip the gradient norm of the scores too", search_only=True)
    lookahead: bool = option(False, "enable_lookahead", "wrap the optimiser in Lookahead")
    ema_decay: float = option(0.0, "ema_decay", "decay of the moving average of weights that a run ends with; 0: none",
                              metavar="DECAY")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.lr > 0, "lr", "more than 0")
        self.expect(0 <= self.lr_min <= self.lr, "lr_min", f"from 0 to the learning rate of the weights ({self.lr})")
        self.expect(self.score_lr > 0, "score_lr", "more than 0")
        self.expect(0 <= self.momentum < 1, "momentum", "from 0 to below 1")
        self.expect(not self.nesterov or (self.optimizer == "sgd" and self.momentum > 0), "nesterov",
                    "false, unless the optimiser is sgd with a momentum above 0")
        self.expect(self.weight_decay >= 0, "weight_decay", "0 or more")
        self.expect(self.warmup_epochs >= 0, "warmup_epochs", "0 or more")
        self.expect(0 <= self.ema_decay < 1, "ema_decay", "0 (no averaging) to below 1, such as 0.999")
        self.expect(self.grad_clip is None or self.grad_clip > 0, "grad_clip", "more than 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """A whole run. With `gate` it is an AutoReP run (`search_epochs`, then `epochs` of fine-tuning with frozen masks);
    without, it trains a baseline for `epochs`.

    `RunConfig()` is what train_baseline.py runs without flags; `RunConfig.for_search(relu_budget=12_900)` is what
    `train_autorep.py --ReLU_count 12.9` runs. `compile`: None compiles the training step on CUDA.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    gate: GateConfig | None = None
    dapa: DapaConfig | None = None
    budget: BudgetConfig | None = None
    distill: DistillConfig | None = None
    label_smoothing: float = option(0.0, "label_smoothing", "share of each label spread over all classes, without "
                                    "--distil", metavar="SHARE", group="optimisation")
    freeze_coefficients: bool = option(False, "freezeact", "do not train the coefficients", group="coefficients",
                                       search_only=True)
    search_epochs: int = option(0, "mask_epochs", "epochs of the search", metavar="EPOCHS", autorep=200,
                                search_only=True)
    epochs: int = option(400, "epochs", "epochs of a baseline; of fine-tuning with frozen masks after a search",
                         metavar="EPOCHS", autorep=0)
    seed: int = option(0, "seed", "random seed", metavar="N")
    gpu: str = option("0", "gpu", "index of the GPU, or cpu", metavar="N|cpu", names=("--gpu", "--gpus"))
    precision: str = option("full", "precision", "arithmetic: float32, or autocast to fp16 or bf16",
                            choices=("full", "half", "bf16"))
    compile: bool | None = option(None, "compile", "compile the training step (torch.compile), which takes up to "
                                  "minutes; without the flag on CUDA only")
    checkpoint_path: str | None = option(None, "checkpoint_path", "AutoReP or baseline checkpoint to evaluate (-e) or "
                                         "to start from, masks included", metavar="FILE")
    start_epoch: int = option(0, "start_epoch", "first epoch to run of the schedule", metavar="EPOCH",
                              names=("--start-epoch", "--start_epoch"))
    resume: str | None = option(None, "resume", "resume a run: auto (the run folder's last.pth.tar) or a file",
                                metavar="auto|FILE")
    max_minutes: float | None = option(None, "max_minutes", "save and exit after this time", metavar="MINUTES")
    print_freq: int = option(50, "print_freq", "steps between two log lines", metavar="STEPS")
    out_dir: str = option(".", "out_dir", "where the run folder is made", metavar="FOLDER")
    ext: str = option("baseline", "ext", "last part of the run folder's name", metavar="NAME")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect((self.gate is None) == (self.budget is None), "budget", "a budget with gates, None without")
        fitted = self.gate is not None and self.gate.replacement == "dapa"
        self.expect((self.dapa is not None) == fitted, "dapa",
                    "a DapaConfig if gate.replacement is 'dapa', None otherwise")
        if self.budget and self.budget.price and not (fitted and self.gate.degree in (1, 2)):
            raise ValueError("`budget.price` chooses among ReLU, quadratic, linear and identity: it needs polynomials "
                             "that are fitted (replacement dapa, --act_type ReLU_masked_dapa_relay), `gate.degree` 1 "
                             "or 2")
        self.expect(0 <= self.label_smoothing < 1, "label_smoothing", "from 0 to below 1")
        self.expect(self.search_epochs >= 0, "search_epochs", "0 or more")
        self.expect(self.epochs >= 0 and self.search_epochs + self.epochs > 0, "epochs",
                    "0 or more, and at least one epoch of search or of training")
        self.expect(0 <= self.start_epoch < self.search_epochs + self.epochs, "start_epoch",
                    f"from 0 to below the {self.search_epochs + self.epochs} epochs of this run")
        self.expect(0 <= self.seed < 2**63, "seed", "a whole number from 0 to 2^63 - 1")
        self.expect("/" not in self.ext, "ext", "a name without a slash, since it ends the run folder's name")
        self.expect(self.print_freq >= 1, "print_freq", "1 step or more")
        self.expect(self.max_minutes is None or self.max_minutes > 0, "max_minutes", "more than 0")

    @classmethod
    def for_search(cls, *, relu_budget: int | None = None, price: str | None = None, price_budget: str | None = None,
                   **values: Any) -> RunConfig:
        """An AutoReP run with the defaults of train_autorep.py.

        Args:
            relu_budget, price, price_budget: as in `BudgetConfig`.
            values: fields that replace those defaults.
        """
        budget = values.pop("budget", None) or BudgetConfig(relu_budget=relu_budget, price=price,
                                                            price_budget=price_budget)
        parts = {"data": DataConfig.for_search(), "optim": OptimConfig.for_search(), "gate": GateConfig(),
                 "dapa": DapaConfig(), "budget": budget}
        return super().for_search(**parts | values)


PARTS = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "gate": GateConfig, "dapa": DapaConfig,
         "budget": BudgetConfig, "distill": DistillConfig}
