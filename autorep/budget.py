"""The ReLU budget: counting, the schedule, the penalty, and the projection that makes a result fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autorep.config import BudgetConfig
from autorep.convert import find_sites, left_out
from autorep.gates.gated_relu import iter_gates
from autorep.gates.hysteresis import next_mask


@dataclass(frozen=True)
class ReLUCount:
    """ReLUs per image: `kept`, `total`, and `layers` as name -> (kept, total)."""

    kept: int
    total: int
    layers: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        width = max(map(len, [*self.layers, "total"]))
        rows = [f"{name:<{width}} {kept:>10,} / {total:>10,}" for name, (kept, total) in self.layers.items()]
        return "\n".join([*rows, f"{'total':<{width}} {self.kept:>10,} / {self.total:>10,}"])


def count_relus(model: nn.Module, example_input: Tensor | None = None) -> ReLUCount:
    """ReLUs per image, kept and in all.

    Args:
        model: with gates; activations that its conversion left out count as kept. Or without gates, then every
            activation that conversion would find counts as kept (`find_sites` tells ReLU from other kinds).
        example_input: [N, C, H, W]; only a model without gates needs it, and those of `build_model` know their own.

    Raises:
        ValueError: a model without gates and without an example input.
    """
    layers = {name: (gate.num_kept, gate.num_total) for name, gate in iter_gates(model)}
    if layers:
        layers |= {name: (num, num) for name, num in left_out(model).items()}
    else:
        layers = {site.name: (site.num, site.num) for site in find_sites(model, _example(model, example_input))}
    return ReLUCount(sum(k for k, _ in layers.values()), sum(t for _, t in layers.values()), layers)


def _example(model: nn.Module, example_input: Tensor | None) -> Tensor:
    if example_input is not None:
        return example_input
    if not hasattr(model, "input_shape"):
        raise ValueError("this model has no gates, so its ReLUs are counted on an example: "
                         "count_relus(model, torch.zeros(1, channels, height, width))")
    parameter = next(model.parameters())
    return torch.zeros(1, *model.input_shape, device=parameter.device, dtype=parameter.dtype)


def check_budget(config: BudgetConfig, num_total: int) -> None:
    """Raises ValueError where the budget asks for more ReLUs than the model has."""
    if config.relu_budget > num_total:
        raise ValueError(f"ReLU budget {config.relu_budget} is more than the {num_total} ReLUs of this model: "
                         f"give --ReLU_count {num_total / 1000} (thousands) or less")


def budget_at(step: int, num_steps: int, num_total: int, config: BudgetConfig) -> float:
    """The budget [ReLUs] that holds at `step` of `num_steps` search steps; pure, never below the final budget."""
    progress = min(1.0, step / max(1.0, config.anneal_fraction * num_steps))
    final = config.relu_budget
    if config.schedule == "constant" or progress >= 1:
        return float(final)
    if config.schedule == "linear":
        return num_total + (final - num_total) * progress
    if config.schedule == "cosine":
        return final + (num_total - final) * (1 + math.cos(math.pi * progress)) / 2
    return max(final, num_total * (max(final, 1) / num_total) ** progress)


def budget_penalty(model: nn.Module, relu_budget: float | Tensor, weight: float) -> Tensor:
    """weight * max(0, density - budget / total), differentiable with respect to the scores (straight-through)."""
    gates = [gate for _, gate in iter_gates(model)]
    num_total = sum(gate.num_total for gate in gates)
    density = torch.stack([gate.gate().sum() for gate in gates]).sum() / num_total
    return weight * torch.relu(density - relu_budget / num_total)


# Around the budget ReLUs come and go, which is how the search compares them: so much of it a turn may leave unused.
_SLACK = 0.1


@torch.no_grad()
def update_masks_(model: nn.Module, relu_budget: float) -> Tensor:
    """One turn of the hysteresis loop in every gate, stopped below the budget; returns the number of flips, int64 [].

    Where scores move fast, their momentum would carry many more ReLUs below the threshold than the penalty asked for.
    So where a turn would leave fewer than nine tenths of `relu_budget`, the falling ones of the highest scores stay.
    """
    gates = [gate for _, gate in iter_gates(model)]
    before = torch.cat([gate.mask.flatten() for gate in gates])
    score = torch.cat([gate.score.flatten() for gate in gates])
    turned = [next_mask(gate.mask, gate.score, gate.config.threshold) for gate in gates]
    mask = torch.cat([m.flatten() for m in turned])
    missing = math.ceil((1 - _SLACK) * relu_budget) - int(mask.sum())
    if missing > 0:
        falling = (before & ~mask).nonzero().flatten()
        mask[falling[torch.sort(score[falling], descending=True, stable=True).indices[:missing]]] = True
    for gate, new in zip(gates, mask.split([gate.num_total for gate in gates]), strict=True):
        gate.mask.copy_(new.view_as(gate.mask))
    return (mask != before).sum()


@torch.no_grad()
def project_to_budget_(model: nn.Module, relu_budget: int) -> int:
    """Drop the kept ReLUs of the lowest scores until at most `relu_budget` are left; returns how many were dropped.

    Scores of dropped ReLUs are lowered to 0 where they are above, so that the hysteresis loop does not bring them back.

    Raises:
        ValueError: not a whole number from 0 on, a model without gates, or one whose conversion left out more
            activations than the budget.
    """
    gates = [gate for _, gate in iter_gates(model)]
    if not isinstance(relu_budget, int) or relu_budget < 0 or not gates:
        raise ValueError(f"relu_budget={relu_budget!r} on {len(gates)} gates: give a whole number, 0 or more, and a "
                         "converted model")
    without_gate = sum(left_out(model).values())
    if relu_budget < without_gate:
        raise ValueError(f"relu_budget={relu_budget} cannot be held: the conversion left out {without_gate} "
                         "activations per image; convert them too, or give a larger budget")
    kept = torch.cat([gate.mask.flatten() for gate in gates])
    score = torch.cat([gate.score.flatten() for gate in gates])
    excess = int(kept.sum()) + without_gate - relu_budget
    if excess <= 0:
        return 0
    # Stable sort: equal scores fall in the order of the network, on every machine and rank alike.
    candidates = kept.nonzero().flatten()
    dropped = candidates[torch.sort(score[candidates], stable=True).indices[:excess]]
    drop = torch.zeros_like(kept)
    drop[dropped] = True
    for gate, chosen in zip(gates, drop.split([gate.num_total for gate in gates]), strict=True):
        chosen = chosen.view_as(gate.mask)
        gate.mask.masked_fill_(chosen, False)
        gate.score.copy_(torch.where(chosen, gate.score.clamp(max=0), gate.score))
    return excess
