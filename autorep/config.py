"""Configuration: frozen dataclasses, one per owner, validated at birth, to and from JSON with a version."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

CONFIG_VERSION = 1

ACT_TYPES = (
    "nn.ReLU",
    "ReLU_masked",
    "ReLU_masked_relay",
    "ReLU_masked_autopoly_relay",
    "ReLU_masked_dapa_relay",
)


def _check(condition: bool, name: str, value: Any, legal: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r} is not legal: {legal}")


def _one_of(name: str, value: Any, legal: tuple) -> None:
    _check(value in legal, name, value, f"choose one of {', '.join(map(str, legal))}")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """One gate layer: what replaces a dropped ReLU, and how its mask moves.

    `replacement`: "identity" (fixed y = x), "polynomial" (trainable, starts as the identity) or "dapa" (trainable, to
    be fitted to recorded activations first). `threshold` is the half width of the hysteresis loop; 0 is the plain gate.
    `kept`: None refuses activations that are not ReLU; "relu" converts them, and a kept pixel computes ReLU.
    `score_init`: scores start "uniform" at random from `score_init_low` to `score_init_high`, or there in the order of
    what the loss pays for the loss of the ReLU ("saliency").
    """

    replacement: str = "polynomial"
    degree: int = 2
    threshold: float = 0.003
    kept: str | None = None
    score_init: str = "uniform"
    score_init_low: float = 0.0
    score_init_high: float = 1.0

    def __post_init__(self) -> None:
        _one_of("replacement", self.replacement, ("identity", "polynomial", "dapa"))
        _check(self.degree in range(5), "degree", self.degree, "a whole number from 0 to 4")
        _check(self.degree >= 1 or self.replacement == "dapa", "degree", self.degree,
               "the identity and polynomials that start as the identity need degree 1 or more")
        _check(self.threshold >= 0, "threshold", self.threshold, "0 (plain gate) or more")
        _one_of("kept", self.kept, (None, "relu"))
        _one_of("score_init", self.score_init, ("uniform", "saliency"))
        _check(-self.threshold <= self.score_init_low <= self.score_init_high, "score_init_low", self.score_init_low,
               f"from {-self.threshold} (-threshold) to {self.score_init_high} (score_init_high): all ReLUs start kept")


@dataclass(frozen=True, kw_only=True)
class DapaConfig:
    """Distribution-aware polynomial approximation: how coefficients are fitted (paper section 3.3).

    `refit_every` and `refit_until` are steps of the search; the first fit is before the first step, the last at most
    halfway, and after it the coefficients are trained. A run from `checkpoint_path` keeps and trains those it finds.
    `scale_x1`, `scale_x2` multiply the fitted c1 and c2, `clip_x2` bounds |c2| (None: no bound), `var_min` [activation
    units squared] is the floor on the variance of a channel. At scale_x2 = 1 the fit is best where it was recorded, but
    c2 x^2 + c1 x outgrows x from 2.5 standard deviations on, and a residual stream of such layers runs away; at 0.1
    (the published value for CIFAR) from 25 on, at 0.2 from 12 on. Training takes c2 from there.
    """

    fit: str = "recorded"
    calibration_batches: int = 10
    refit_every: int = 50
    refit_until: int = 500
    scale_x1: float = 1.0
    scale_x2: float = 0.1
    clip_x2: float | None = None
    var_min: float = 1e-2

    def __post_init__(self) -> None:
        _one_of("dapa_fit", self.fit, ("gaussian", "recorded"))
        _check(self.calibration_batches >= 1, "calibration_batches", self.calibration_batches, "1 or more")
        _check(self.refit_every >= 1, "refit_every", self.refit_every, "1 step or more")
        _check(self.refit_until >= 0, "refit_until", self.refit_until, "0 (fit once, before the first step) or more")
        _check(self.clip_x2 is None or self.clip_x2 > 0, "clip_x2", self.clip_x2, "more than 0")
        _check(self.var_min > 0, "var_min", self.var_min, "more than 0")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """The ReLU budget [ReLUs per image], the weight of its penalty, and how the search approaches it.

    The budget falls from all ReLUs to `relu_budget` over the first `anneal_fraction` of the search, by `schedule`.
    `relu_layers`: at most so many layers hold a ReLU in the result, which is what rounds of secure computation are paid
    for; None is no limit.
    """

    relu_budget: int
    penalty_weight: float = 140.0
    schedule: str = "linear"
    anneal_fraction: float = 0.6
    relu_layers: int | None = None

    def __post_init__(self) -> None:
        _check(self.relu_budget >= 0, "relu_budget", self.relu_budget, "0 or more ReLUs per image")
        _check(self.penalty_weight >= 0, "lamda", self.penalty_weight, "0 or more")
        _one_of("budget_schedule", self.schedule, ("constant", "linear", "cosine", "exponential"))
        _check(0 < self.anneal_fraction <= 1, "anneal_fraction", self.anneal_fraction, "more than 0, at most 1")
        fewest = min(1, self.relu_budget)
        _check(self.relu_layers is None or self.relu_layers >= fewest, "relu_layers", self.relu_layers,
               f"{fewest} or more layers at a budget of {self.relu_budget} ReLUs")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Knowledge distillation from a dense teacher: Hinton et al. 2015, with temperature T and the usual T^2."""

    teacher_arch: str
    teacher_path: str
    temperature: float = 4.0

    def __post_init__(self) -> None:
        _check(bool(self.teacher_path), "teacher_path", self.teacher_path,
               "the path of the dense teacher's checkpoint (--teacher_path RUN_FOLDER/last.pth.tar)")
        _check(self.temperature > 0, "temperature", self.temperature, "more than 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how much of it: `batch_size` is global, over all ranks.

    Without `augment` every epoch shows the same pixels.
    """

    dataset: str = "cifar10"
    data_path: str | None = "./data"
    batch_size: int = 256
    workers: int = 4
    validation_fraction: float = 0.1
    augment: bool = True

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check(self.workers >= 0, "workers", self.workers, "0 or more")
        _check(0 <= self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and the weights that it starts from."""

    arch: str = "resnet18_in"
    dropout: float | None = None
    pretrained: bool = False
    pretrained_path: str | None = None

    def __post_init__(self) -> None:
        _check(self.dropout is None or 0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")
        _check(not (self.pretrained and self.pretrained_path), "pretrained_path", self.pretrained_path,
               "give either --pretrained (the library's weights) or --pretrained_path (a checkpoint), not both")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and learning-rate schedule; the same for every phase of a run.

    `schedule`: "cosine" (warm-up, then cosine to `lr_min`), "cosine_finetune" (no warm-up: for trained weights) or
    "cosine_rst" (warm-up, then cosine with warm restarts, each cycle twice the one before). With `ema_decay` above 0
    the result of a baseline or of fine-tuning is the exponential moving average of the weights.
    """

    optimizer: str = "sgd"
    schedule: str = "cosine"
    lr: float = 0.1
    lr_min: float = 1e-5
    score_lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    grad_clip: float | None = 5.0
    lookahead: bool = False
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, ("sgd", "adam"))
        _one_of("optim", self.schedule, ("cosine", "cosine_finetune", "cosine_rst"))
        _check(self.lr > 0, "w_lr", self.lr, "more than 0")
        _check(0 <= self.lr_min <= self.lr, "w_lr_min", self.lr_min, f"from 0 to w_lr ({self.lr})")
        _check(self.score_lr > 0, "w_mask_lr", self.score_lr, "more than 0")
        _check(0 <= self.momentum < 1, "w_momentum", self.momentum, "from 0 to below 1")
        _check(not self.nesterov or (self.optimizer == "sgd" and self.momentum > 0), "nesterov", self.nesterov,
               "Nesterov's momentum belongs to --optimizer sgd with --w_momentum above 0; elsewhere --nesterov false")
        _check(self.weight_decay >= 0, "w_weight_decay", self.weight_decay, "0 or more")
        _check(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "0 or more")
        _check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 (no averaging) to below 1, such as 0.999")
        _check(self.grad_clip is None or self.grad_clip > 0, "w_grad_clip", self.grad_clip, "more than 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. With `gate` it is an AutoReP run (`search_epochs`, then `epochs` of fine-tuning with frozen masks);
    without, it trains a baseline for `epochs`. `compile`: None compiles the training step on CUDA."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    act_type: str = "nn.ReLU"
    gate: GateConfig | None = None
    dapa: DapaConfig | None = None
    budget: BudgetConfig | None = None
    distill: DistillConfig | None = None
    label_smoothing: float = 0.0
    freeze_coefficients: bool = False
    search_epochs: int = 0
    epochs: int = 0
    seed: int = 0
    gpu: str = "0"
    precision: str = "full"
    compile: bool | None = None
    checkpoint_path: str | None = None
    start_epoch: int = 0
    resume: str | None = None
    max_minutes: float | None = None
    print_freq: int = 50
    out_dir: str = "."
    ext: str = "baseline"

    def __post_init__(self) -> None:
        _one_of("act_type", self.act_type, ACT_TYPES)
        _one_of("precision", self.precision, ("full", "half", "bf16"))
        _check((self.gate is None) == (self.act_type == "nn.ReLU"), "act_type", self.act_type,
               "a gate configuration goes with every act type but nn.ReLU")
        _check((self.gate is None) == (self.budget is None), "budget", self.budget, "gates and a budget go together")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")
        epochs = (self.search_epochs, self.epochs)
        _check(min(epochs) >= 0 and sum(epochs) > 0, "(mask_epochs, epochs)", epochs, "0 or more, at least one in all")
        _check(0 <= self.start_epoch < self.search_epochs + self.epochs, "start_epoch", self.start_epoch,
               f"from 0 to below the {self.search_epochs + self.epochs} epochs of this run")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        _check("/" not in self.ext, "ext", self.ext, "a name without a slash: it ends the run folder's name")
        _check(self.print_freq >= 1, "print_freq", self.print_freq, "1 step or more")
        _check(self.max_minutes is None or self.max_minutes > 0, "max_minutes", self.max_minutes, "more than 0")


_NESTED = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "gate": GateConfig, "dapa": DapaConfig,
           "budget": BudgetConfig, "distill": DistillConfig}


def to_json(config: RunConfig) -> str:
    """The configuration as JSON text with its version."""
    return json.dumps({"version": CONFIG_VERSION, **asdict(config)}, indent=2)


def from_json(text: str) -> RunConfig:
    """The inverse of `to_json`.

    Raises:
        ValueError: another version, or a field that this version does not know.
    """
    values = json.loads(text)
    version = values.pop("version", None)
    if version != CONFIG_VERSION:
        raise ValueError(f"configuration of version {version!r}: this autorep reads version {CONFIG_VERSION}; "
                         "use the autorep that wrote it, or train again")
    for name, cls in _NESTED.items():
        if values.get(name) is not None:
            values[name] = _strict(cls, values[name])
    return _strict(RunConfig, values)


def _strict(cls: type, values: dict) -> Any:
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)}; it has {sorted(f.name for f in fields(cls))}")
    return cls(**values)


def gate_for_act_type(act_type: str, *, threshold: float = 0.003, degree: int = 2, kept: str | None = None,
                      score_init: str = "uniform") -> GateConfig | None:
    """The gate configuration that an act type of the published scripts stands for; None for `nn.ReLU`."""
    _one_of("act_type", act_type, ACT_TYPES)
    common = {"kept": kept, "score_init": score_init}
    if act_type == "nn.ReLU":
        return None
    if act_type == "ReLU_masked":
        return GateConfig(replacement="identity", degree=1, threshold=0.0, **common)
    if act_type == "ReLU_masked_relay":
        return GateConfig(replacement="identity", degree=1, threshold=threshold, **common)
    replacement = "dapa" if act_type == "ReLU_masked_dapa_relay" else "polynomial"
    return GateConfig(replacement=replacement, degree=degree, threshold=threshold, **common)
