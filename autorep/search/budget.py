"""The budgets of ReLUs and of layers that hold some: checks, schedules, the penalty."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autorep.config import BudgetConfig
from autorep.convert.swap import left_out, require_gates
from autorep.gates.gated_relu import iter_gates
from autorep.option import InvalidSetting
from autorep.search.relu_count import count_relus


def check_budget(config: BudgetConfig, num_total: int, num_layers: int) -> None:
    """Raises InvalidSetting where the budget allows more ReLUs, or more layers that hold some, than the model has."""
    if config.relu_budget is not None and config.relu_budget > num_total:
        raise InvalidSetting(BudgetConfig, "relu_budget", config.relu_budget,
                             f"at most the {num_total:,} ReLUs of this model ({num_total / 1000} thousand)")
    if config.relu_layers is not None and config.relu_layers > num_layers:
        raise InvalidSetting(BudgetConfig, "relu_layers", config.relu_layers,
                             f"at most the {num_layers} layers of this model that hold ReLUs, or none given")


def within_budget(model: nn.Module, config: BudgetConfig | None) -> bool:
    """Whether a model holds both limits; without a budget every model does."""
    if config is None:
        return True
    relus = count_relus(model)
    few_relus = config.relu_budget is None or relus.kept <= config.relu_budget
    few_layers = config.relu_layers is None or relus.layers_with_relu <= config.relu_layers
    return few_relus and few_layers


def budget_at(step: int, num_steps: int, num_total: int, config: BudgetConfig) -> float:
    """The budget [ReLUs] that holds at `step` of `num_steps` search steps; pure, never below the final budget."""
    final = num_total if config.relu_budget is None else config.relu_budget
    return annealed(num_total, final, step, num_steps, config)


def annealed(start: float, final: float, step: int, num_steps: int, config: BudgetConfig) -> float:
    """What falls from `start` to `final` as the schedule of a budget says, at `step` of `num_steps`; pure."""
    progress = min(1.0, step / max(1.0, config.anneal_fraction * num_steps))
    if config.schedule == "constant" or progress >= 1:
        return float(final)
    if config.schedule == "linear":
        return start + (final - start) * progress
    if config.schedule == "cosine":
        return final + (start - final) * (1 + math.cos(math.pi * progress)) / 2
    return max(final, start * ((final or 1) / start) ** progress)  # towards no ReLU at all by way of one


def relu_layers_at(step: int, num_steps: int, num_layers: int, config: BudgetConfig) -> int:
    """How many of `num_layers` layers may hold a ReLU at `step` of `num_steps` search steps; pure.

    All of them while the budget anneals, so that the scores show first where ReLUs are worth most. Then it falls
    linearly to `config.relu_layers`, halfway between there and the end of the search: what is left is for recovery.
    """
    if config.relu_layers is None:
        return num_layers
    start = config.anneal_fraction * num_steps
    progress = min(1.0, max(0.0, step - start) / max(1.0, (num_steps - start) / 2))
    return math.ceil(num_layers + (config.relu_layers - num_layers) * progress)


def targets_at(step: int, num_steps: int, num_total: int, num_layers: int, config: BudgetConfig) -> tuple[float, int]:
    """`budget_at` and `relu_layers_at`."""
    return budget_at(step, num_steps, num_total, config), relu_layers_at(step, num_steps, num_layers, config)


def budget_penalty(model: nn.Module, relu_budget: float | Tensor, weight: float) -> Tensor:
    """weight * max(0, density - budget / total), differentiable with respect to the scores (straight-through).

    Activations that the conversion left out are part of all three.
    """
    require_gates(model)
    gates, num_outside = [gate for _, gate in iter_gates(model)], sum(left_out(model).values())
    num_total = num_outside + sum(gate.num_total for gate in gates)
    density = (torch.stack([gate.gate().sum() for gate in gates]).sum() + num_outside) / num_total
    return weight * torch.relu(density - relu_budget / num_total)
