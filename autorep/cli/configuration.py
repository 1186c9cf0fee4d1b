"""From given flags to the configuration that they mean, and which of them have no effect."""

from __future__ import annotations

from typing import Any

from autorep.cli.flags import defaults
from autorep.config import (
    BudgetConfig,
    DapaConfig,
    DataConfig,
    DistillConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    gate_for_act_type,
)


def config_from(kind: str, given: dict[str, Any]) -> RunConfig:
    """The configuration of the given flags on top of the recipe's defaults.

    Raises:
        ValueError: an illegal value, or flags that do not go together.
    """
    v = defaults(kind, given.get("recipe")) | given
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
