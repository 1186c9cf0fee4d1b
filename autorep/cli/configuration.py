"""From given flags to the configuration that they mean, and which of them have no effect."""

from __future__ import annotations

from typing import Any

from autorep.act_types import act_type_of, gate_of
from autorep.cli.flags import FLAGS, defaults
from autorep.config import PARTS, RunConfig


def config_from(kind: str, given: dict[str, Any]) -> RunConfig:
    """The configuration of the given flags on top of the recipe's defaults.

    Raises:
        ValueError: an invalid value, or flags that do not go together.
    """
    v = defaults(kind, given.get("recipe")) | given
    if (kind == "baseline") != (v["act_type"] == "nn.ReLU"):
        raise ValueError(f"--act_type {v['act_type']} belongs to "
                         f"{'train_autorep.py' if kind == 'baseline' else 'train_baseline.py'}")
    if kind == "autorep" and v["ReLU_count"] is None and v["price"] is None:
        raise ValueError("--ReLU_count is missing: the ReLU budget per image in thousands, such as 12.9 (or --price "
                         "with --price_budget)")
    if v["distil"] and not v["teacher_path"]:
        raise ValueError("--distil needs --teacher_path RUN_FOLDER/last.pth.tar, a dense checkpoint")
    gate = gate_of(v["act_type"], **_fields("gate", v))
    parts = {"gate": gate, "dapa": gate and gate.replacement == "dapa", "budget": gate, "distill": v["distil"]}
    values = {name: cls(**_fields(name, v)) if parts.get(name, True) else None for name, cls in PARTS.items()
              if name != "gate"}
    return RunConfig(gate=gate, **values, **_fields("", v) | ({} if gate else {"search_epochs": 0}))


def _fields(owner: str, v: dict[str, Any]) -> dict[str, Any]:
    """The fields of one dataclass from the values of all flags."""
    found = {}
    for name, flag in FLAGS.items():
        if flag.owner != owner or not flag.field:
            continue
        value, option = v[name], flag.option
        if option.switch and not v[option.switch[0]]:
            value = None
        found[flag.field] = option.taken(value)
    if owner == "distill":
        found["teacher_arch"] = found["teacher_arch"] or v["arch"]
    return found


def idle_flags(given: dict[str, Any], config: RunConfig) -> dict[str, str]:
    """The given flags that have no effect in this configuration, and why."""
    gate, optim, budget, dapa = config.gate, config.optim, config.budget, config.dapa
    dapa_flags = tuple(name for name, flag in FLAGS.items() if flag.owner == "dapa")
    # The ranges of polynomials are recorded in every run.
    fit = tuple(name for name in dapa_flags if name not in ("range_width", "calibration_batches"))
    priced = budget is not None and budget.price is not None  # new kinds are fitted, whatever a checkpoint holds
    search_only = tuple(name for name, flag in FLAGS.items() if flag.search_only)
    search = ("w_mask_lr", "lamda", "budget_schedule", "anneal_fraction", "score_init", *fit)
    rules = [
        (gate is None, search_only, "train_baseline.py has no gates"),
        (gate is not None and dapa is None, dapa_flags, f"--act_type {act_type_of(gate)} does not fit coefficients"),
        (gate is not None and config.search_epochs == 0, search, "there is no search (--mask_epochs 0)"),
        (dapa is not None and dapa.refit_until == 0, ("refit_every",), "there is one fit (--refit_until 0)"),
        (dapa is not None and bool(config.checkpoint_path) and not priced, fit,
         "--checkpoint_path holds the coefficients"),
        (bool(config.checkpoint_path), ("score_init",), "--checkpoint_path holds the scores"),
        (gate is not None and gate.degree < 1, ("scale_x1",), "no c1 below degree 1"),
        (given.get("act_type") == "ReLU_masked", ("threshold",), "ReLU_masked is the plain gate"),
        (gate is not None and gate.replacement == "identity", ("degree", "freezeact"), "the identity is fixed"),
        (gate is not None and gate.degree < 2, ("scale_x2", "clip_x2", "clip_x2_bool"), "no c2 below degree 2"),
        (dapa is not None and dapa.clip_x2 is None, ("clip_x2",), "it needs --clip_x2_bool"),
        (budget is not None and budget.schedule == "constant" and not (budget.relu_layers and not budget.price),
         ("anneal_fraction",), "the budget is constant"),
        (priced and bool(config.checkpoint_path),
         ("budget_schedule", "anneal_fraction"), "--checkpoint_path with --price is brought to its price at once"),
        (priced, ("lamda", "score_init"),
         "a search for a price starts its scores by the losses that it estimates, and has no penalty"),
        (budget is not None and budget.relu_budget == 0, ("relu_layers",), "no ReLU is left at --ReLU_count 0"),
        (config.distill is None, ("teacher_arch", "teacher_path", "temperature"), "it needs --distil"),
        (config.distill is not None, ("label_smoothing",), "--distil has soft labels of its own"),
        (config.epochs == 0, ("ema_decay",), "there is no fine-tuning (--epochs 0)"),
        (optim.optimizer == "adam", ("w_momentum",), "Adam has none"),
        (optim.grad_clip is None, ("w_grad_clip", "clip_scores"), "--enable_grad_norm is off"),
        (optim.schedule == "cosine_finetune", ("warmup_epochs",), "cosine_finetune has no warm-up"),
        (config.data.dataset == "digits", ("data_path",), "the digits come with scikit-learn"),
        (config.data.dataset not in ("imagenet", "folder"), ("workers",), "this set fits in memory"),
        (bool(config.checkpoint_path), ("pretrained", "pretrained_path"), "--checkpoint_path holds all weights"),
    ]
    return {name: why for applies, names, why in rules if applies for name in names if name in given}
