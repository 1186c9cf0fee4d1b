"""What moves the masks: the update after a step, and the projection that makes a result fit its budgets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from autorep.convert.swap import left_out, require_gates
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.gates.hysteresis import next_mask

# Around the budget ReLUs come and go, and so the search compares them: an update may leave this share of it unused.
_SLACK = 0.1


@torch.no_grad()
def update_masks_(model: nn.Module, relu_budget: float, relu_layers: int | None = None, *, hold: bool = True) -> Tensor:
    """Update the mask of every gate by hysteresis and keep to the budget; returns the number of flips, int64 [].

    Where more than `relu_budget` ReLUs would stay, all scores are lowered together until the threshold of the
    hysteresis drops the rest. So scores need to say which ReLUs are worth more than others, and not, in however many
    steps a search has, fall below zero by themselves. Where scores move fast, their momentum would carry many more
    below the threshold: where fewer than nine tenths of `relu_budget` would stay, those of the ReLUs to be dropped that
    have the highest scores stay.

    Args:
        relu_layers: how many layers may hold a ReLU; None or all of them is no limit. Under a limit the layers with the
            fewest ReLUs are emptied, and a layer without ReLUs stays without. The part of nine tenths of the budget
            that this leaves unused goes to the highest scores of the other layers, kept before or not.
        hold: False leaves it to the penalty to bring the number of ReLUs down, as published.

    Both limits are the model's: what cannot move, frozen gates and activations that the conversion left out, counts.

    Raises:
        ValueError: a budget that is negative or NaN, or a model without gates.
    """
    require_gates(model)
    if not relu_budget >= 0:
        raise ValueError(f"invalid relu_budget={relu_budget}: expected 0 or more ReLUs per image, as budget_at gives")
    every = [gate for _, gate in iter_gates(model)]
    fixed = [*left_out(model).values(), *(gate.num_kept for gate in every if gate.frozen)]
    gates = [gate for gate in every if not gate.frozen]
    if not gates:
        return torch.zeros((), dtype=torch.int64, device=every[0].mask.device)
    relu_budget = max(0, relu_budget - sum(fixed))
    if relu_layers is not None:
        relu_layers = max(0, relu_layers - sum(num > 0 for num in fixed))
    before, score = _flat_masks_and_scores(gates)
    mask = torch.cat([next_mask(gate.mask, gate.score, gate.config.threshold).flatten() for gate in gates])
    eligible = before
    if relu_layers is not None and relu_layers < len(gates):
        eligible = _open_layers(gates, before, mask, relu_layers)
        mask &= eligible
    kept = int(mask.sum())
    if hold and kept > relu_budget:
        _lower_scores_(gates, mask, kept - math.floor(relu_budget))
    else:
        _keep_highest_(mask, score, eligible & ~mask, math.ceil((1 - _SLACK) * relu_budget) - kept)
    _set_masks_(gates, mask)
    return (mask != before).sum()


@torch.no_grad()
def project_to_budget_(model: nn.Module, relu_budget: int, relu_layers: int | None = None) -> int:
    """Drop the kept ReLUs of the lowest scores until at most `relu_budget` are left; returns how many were dropped.

    With `relu_layers` the layers with the fewest ReLUs are emptied first until at most that many hold one, and the rest
    of the budget goes to the highest scores among the dropped ReLUs of the others.
    Scores of dropped ReLUs are lowered to 0 where they are above, so that the hysteresis loop does not bring them back,
    and those of ReLUs that came back are raised to 0.

    Raises:
        ValueError: not a whole number from 0 on, a model without gates, or one whose conversion left out more
            activations or layers than are allowed.
        RuntimeError: the masks are averages of masks.
    """
    gates = [gate for _, gate in iter_gates(model)]
    require_gates(model)
    for gate in gates:
        gate.require_own_mask()
    relu_budget = _whole(relu_budget)
    num_here, layers_here = less_left_out(model, relu_budget, relu_layers)
    before, score = _flat_masks_and_scores(gates)
    mask = before.clone()
    if layers_here is not None and layers_here < len(gates):
        still_open = _open_layers(gates, before, mask, layers_here)
        mask &= still_open
        _keep_highest_(mask, score, still_open & ~mask, num_here - int(mask.sum()))
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


def _whole(relu_budget: Any) -> int:
    """A budget of any type, whole floats too, as an int."""
    try:
        whole = int(relu_budget)
    except (TypeError, ValueError, OverflowError):
        whole = -1
    if whole < 0 or whole != relu_budget:
        raise ValueError(f"relu_budget={relu_budget!r}: give a whole number of ReLUs per image, 0 or more")
    return whole


def less_left_out(model: nn.Module, relu_budget: int, relu_layers: int | None) -> tuple[int, int | None]:
    """What is left of both limits of a model for its gates, after the activations that its conversion left out.

    Raises:
        ValueError: nothing is left of one of them.
    """
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

    Fewest ReLUs, because at a fixed budget these are the fewest that must find another place. Of equal layers the one
    that had fewer `before`, then the earlier one, is emptied. A layer that had none `before` stays without: the masks
    are all the memory this needs.
    """
    sizes = [gate.num_total for gate in gates]
    had, have = torch.stack([torch.stack([part.sum() for part in kept.split(sizes)])
                             for kept in (before, mask)]).tolist()
    order = sorted(range(len(gates)), key=lambda i: (have[i] if had[i] else 0, had[i]))
    largest = set(order[len(gates) - relu_layers:])
    flags = [i in largest and had[i] > 0 for i in range(len(gates))]
    return torch.cat([torch.full((size,), flag, device=mask.device) for size, flag in zip(sizes, flags, strict=True)])


def _lower_scores_(gates: list[GatedReLU], mask: Tensor, excess: int) -> None:
    """Drop the `excess` lowest ReLUs of `mask`, and lower all scores by what puts these below the threshold."""
    # How far a kept ReLU is above the score at which hysteresis drops it.
    height = torch.cat([(gate.score + gate.config.threshold).flatten() for gate in gates])
    kept = mask.nonzero().flatten()
    lowest = kept[torch.sort(height[kept], stable=True).indices[:excess]]
    mask.index_fill_(0, lowest, False)
    fall = height.index_select(0, lowest[-1:]).clamp(min=0)  # an index that is a number would be waited for
    for gate in gates:
        gate.score -= fall


def _keep_highest_(mask: Tensor, score: Tensor, eligible: Tensor, missing: int) -> None:
    """Keep `missing` more ReLUs, those of the highest scores among the eligible; none where it is not above 0."""
    if missing > 0:
        candidates = eligible.nonzero().flatten()
        highest = torch.sort(score[candidates], descending=True, stable=True).indices[:missing]
        mask.index_fill_(0, candidates[highest], True)  # a number set by an index would be copied to the GPU
