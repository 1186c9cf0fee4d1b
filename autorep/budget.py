"""The budgets of ReLUs and of layers that hold some: counting, schedules, the penalty, the turn of the masks, and the
projection that makes a result fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autorep.config import BudgetConfig
from autorep.convert import find_sites, left_out
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.gates.hysteresis import next_mask


@dataclass(frozen=True)
class ReLUCount:
    """ReLUs per image: `kept`, `total`, and `layers` as name -> (kept, total)."""

    kept: int
    total: int
    layers: dict[str, tuple[int, int]]

    @property
    def layers_with_relu(self) -> int:
        """Layers that hold a ReLU."""
        return sum(kept > 0 for kept, _ in self.layers.values())

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
    if gates := dict(iter_gates(model)):
        kept = torch.stack([gate.mask.sum() for gate in gates.values()]).tolist()
        layers = {name: (num, gate.num_total) for (name, gate), num in zip(gates.items(), kept, strict=True)}
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


def check_budget(config: BudgetConfig, num_total: int, num_layers: int) -> None:
    """Raises ValueError where the budget asks for more ReLUs, or for more layers that hold some, than the model has."""
    if config.relu_budget > num_total:
        raise ValueError(f"ReLU budget {config.relu_budget} is more than the {num_total} ReLUs of this model: "
                         f"give --ReLU_count {num_total / 1000} (thousands) or less")
    if config.relu_layers is not None and config.relu_layers > num_layers:
        raise ValueError(f"relu_layers={config.relu_layers} is more than the {num_layers} layers of this model that "
                         f"hold ReLUs: give --relu_layers {num_layers} or less, or leave it out")


def within_budget(model: nn.Module, config: BudgetConfig | None) -> bool:
    """Whether a model holds both limits; without a budget every model does."""
    if config is None:
        return True
    relus = count_relus(model)
    few_layers = config.relu_layers is None or relus.layers_with_relu <= config.relu_layers
    return relus.kept <= config.relu_budget and few_layers


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
    """weight * max(0, density - budget / total), differentiable with respect to the scores (straight-through)."""
    gates = [gate for _, gate in iter_gates(model)]
    num_total = sum(gate.num_total for gate in gates)
    density = torch.stack([gate.gate().sum() for gate in gates]).sum() / num_total
    return weight * torch.relu(density - relu_budget / num_total)


# Around the budget ReLUs come and go, which is how the search compares them: so much of it a turn may leave unused.
_SLACK = 0.1


@torch.no_grad()
def update_masks_(model: nn.Module, relu_budget: float, relu_layers: int | None = None) -> Tensor:
    """One turn of the hysteresis loop in every gate, stopped below the budget; returns the number of flips, int64 [].

    Where scores move fast, their momentum would carry many more ReLUs below the threshold than the penalty asked for.
    So where a turn would leave fewer than nine tenths of `relu_budget`, the falling ones of the highest scores stay.

    Args:
        relu_layers: how many layers may hold a ReLU; None or all of them is no limit. Under a limit the layers with the
            fewest ReLUs are emptied, and a layer without ReLUs stays without. What that leaves unused of nine tenths of
            the budget goes to the highest scores of the other layers, whether they were kept before or not.
    """
    gates = [gate for _, gate in iter_gates(model)]
    before, score = _flat_masks_and_scores(gates)
    mask = torch.cat([next_mask(gate.mask, gate.score, gate.config.threshold).flatten() for gate in gates])
    eligible = before
    if relu_layers is not None and relu_layers < len(gates):
        eligible = _open_layers(gates, before, mask, relu_layers)
        mask &= eligible
    _keep_highest_(mask, score, eligible & ~mask, math.ceil((1 - _SLACK) * relu_budget))
    _set_masks_(gates, mask)
    return (mask != before).sum()


@torch.no_grad()
def project_to_budget_(model: nn.Module, relu_budget: int, relu_layers: int | None = None) -> int:
    """Drop the kept ReLUs of the lowest scores until at most `relu_budget` are left; returns how many were dropped.

    With `relu_layers` the layers with the fewest ReLUs are emptied first until at most so many hold one, and what the
    budget then has left goes to the highest scores among the dropped ReLUs of the others.
    Scores of dropped ReLUs are lowered to 0 where they are above, so that the hysteresis loop does not bring them back,
    and those of ReLUs that came back are raised to 0.

    Raises:
        ValueError: not a whole number from 0 on, a model without gates, or one whose conversion left out more
            activations or layers than are allowed.
    """
    gates = [gate for _, gate in iter_gates(model)]
    if not isinstance(relu_budget, int) or relu_budget < 0 or not gates:
        raise ValueError(f"relu_budget={relu_budget!r} on {len(gates)} gates: give a whole number, 0 or more, and a "
                         "converted model")
    num_here, layers_here = _less_left_out(model, relu_budget, relu_layers)
    before, score = _flat_masks_and_scores(gates)
    mask = before.clone()
    if layers_here is not None:
        still_open = _open_layers(gates, before, mask, layers_here)
        mask &= still_open
        _keep_highest_(mask, score, still_open & ~mask, num_here)
    # Stable sort: equal scores fall in the order of the network, on every machine and rank alike.
    candidates = mask.nonzero().flatten()
    excess = max(0, len(candidates) - num_here)
    mask[candidates[torch.sort(score[candidates], stable=True).indices[:excess]]] = False
    dropped, returned = before & ~mask, mask & ~before
    score = torch.where(dropped, score.clamp(max=0), torch.where(returned, score.clamp(min=0), score))
    _set_masks_(gates, mask)
    for gate, new in zip(gates, score.split([gate.num_total for gate in gates]), strict=True):
        gate.score.copy_(new.view_as(gate.score))
    return int(dropped.sum())


def _less_left_out(model: nn.Module, relu_budget: int, relu_layers: int | None) -> tuple[int, int | None]:
    """What is left of both limits for the gates, after the activations that the conversion left out."""
    outside = left_out(model)
    num_outside = sum(outside.values())
    if relu_budget < num_outside:
        raise ValueError(f"relu_budget={relu_budget} cannot be held: the conversion left out {num_outside} "
                         "activations per image; convert them too, or give a larger budget")
    if relu_layers is not None and relu_layers < len(outside):
        raise ValueError(f"relu_layers={relu_layers} cannot be held: the conversion left out {len(outside)} layers; "
                         "convert them too, or allow more layers")
    return relu_budget - num_outside, None if relu_layers is None else relu_layers - len(outside)


def _flat_masks_and_scores(gates: list[GatedReLU]) -> tuple[Tensor, Tensor]:
    """Masks and scores of all gates, one after the other: [ReLUs] each."""
    return torch.cat([gate.mask.flatten() for gate in gates]), torch.cat([gate.score.flatten() for gate in gates])


def _set_masks_(gates: list[GatedReLU], mask: Tensor) -> None:
    for gate, new in zip(gates, mask.split([gate.num_total for gate in gates]), strict=True):
        gate.mask.copy_(new.view_as(gate.mask))


def _open_layers(gates: list[GatedReLU], before: Tensor, mask: Tensor, relu_layers: int) -> Tensor:
    """Which ReLUs lie in a layer that may hold some, bool [ReLUs]: those of the `relu_layers` layers with the most.

    Fewest ReLUs, because at a fixed budget these are the fewest that have to find another place; of equal layers the
    earlier one is emptied. A layer that had none `before` stays without: the masks are all the memory this needs.
    """
    sizes = [gate.num_total for gate in gates]
    had, have = torch.stack([torch.stack([part.sum() for part in kept.split(sizes)])
                             for kept in (before, mask)]).tolist()
    counts = [now if earlier else 0 for earlier, now in zip(had, have, strict=True)]
    order = sorted(range(len(gates)), key=counts.__getitem__)
    largest = set(order[len(gates) - relu_layers:])
    flags = [i in largest and counts[i] > 0 for i in range(len(gates))]
    return torch.cat([torch.full((size,), flag, device=mask.device) for size, flag in zip(sizes, flags, strict=True)])


def _keep_highest_(mask: Tensor, score: Tensor, eligible: Tensor, num: int) -> None:
    """Keep the eligible ReLUs of the highest scores, those kept already aside, until `num` are kept."""
    missing = num - int(mask.sum())
    if missing > 0:
        candidates = eligible.nonzero().flatten()
        highest = torch.sort(score[candidates], descending=True, stable=True).indices[:missing]
        mask.index_fill_(0, candidates[highest], True)  # a number set by an index would be copied to the GPU
