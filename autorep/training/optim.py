"""Parameter groups, optimisers, and learning rates as pure functions of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from autorep.config import OptimConfig
from autorep.gates.gated_relu import iter_gates
from autorep.gates.polynomial_sigmoid import iter_fitted

_FIRST_CYCLES = 7  # 1 + 2 + 4: three cosine cycles, each twice as long as the one before, fill a run


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """The groups "weights" (with weight decay), "coefficients" and "scores" (without); empty and frozen ones left out.

    Each group carries its `name` and its `base_lr`.
    """
    scores = {id(gate.score): gate.score for _, gate in iter_gates(model)}
    coefficients = {id(each.coefficients): each.coefficients for _, each in iter_fitted(model)}
    own = scores | coefficients
    weights = [p for p in model.parameters() if id(p) not in own]
    table = [("weights", weights, config.lr, config.weight_decay),
             ("coefficients", coefficients.values(), config.lr, 0.0),
             ("scores", scores.values(), config.score_lr, 0.0)]
    groups = [{"name": name, "params": [p for p in params if p.requires_grad], "base_lr": lr, "weight_decay": decay}
              for name, params, lr, decay in table]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with (Nesterov's) momentum or Adam over `parameter_groups`."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.Adam(groups, lr=config.lr)


def lr_factor(step: int, num_steps: int, schedule: str, floor: float) -> float:
    """Learning rate at `step` of `num_steps` as a fraction of the base rate, before warm-up; from 1 down to `floor`.

    "linear" falls in a straight line, "cosine" and "cosine_finetune" along half a period; "cosine_rst" restarts (SGDR,
    Loshchilov & Hutter 2017, equation 5).
    """
    progress = min(1.0, step / max(1, num_steps))
    if schedule == "linear":
        return floor + (1 - floor) * (1 - progress)
    if schedule == "cosine_rst":
        position = progress * _FIRST_CYCLES + 1
        cycle = 2 ** min(2, int(math.log2(position)))
        progress = min(1.0, (position - cycle) / cycle)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rates_(optimizer: torch.optim.Optimizer, step: int, num_steps: int, warmup_steps: int,
                        steps_per_epoch: int, config: OptimConfig) -> None:
    """Set every group's learning rate for `step`; a pure function of its arguments, so only the step is saved.

    With `config.lr_update` "epoch" the schedule stands still within an epoch; the warm-up never does.
    """
    since = step % steps_per_epoch if config.lr_update == "epoch" else 0
    factor = lr_factor(step - since, num_steps, config.schedule, config.lr_min / config.lr)
    warms_up = warmup_steps > 0 and config.schedule != "cosine_finetune"
    warmup = min(1.0, (step + 1) / warmup_steps) if warms_up else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor * warmup
