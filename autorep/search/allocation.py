"""Which pixels keep their ReLU, and what replaces the others, at the least loss that a price allows.

A layer without any ReLU saves rounds, whatever else it holds: a knapsack with fixed charges. Once it is decided what
may occur in a layer, a Lagrange multiplier, the loss that a unit of the price is worth, makes its pixels and channels
independent of one another. A sweep over multipliers gives the frontier of each layer, those choices that no other one
beats in price and loss, and a dynamic programme over the price picks one point of each frontier. What sweep and bins
leave of the budget goes to the dropped ReLUs that are worth the most for their price.

K kinds of replacement, C channels, P pixels of a channel, L multipliers, O options of a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autorep.mpc.cost.gate_prices import IDENTITY, LINEAR, GatePrices

_NUM_MULTIPLIERS = 64
_NUM_BINS = 4096  # of the price: every layer is rounded up to whole bins, so that the sum never exceeds the budget
_ROUNDING = 1 + 1e-12  # by which sums of the whole price in another order may differ
_NUM_HALVINGS = 12  # of the interval that holds the worth of a ReLU, where their number is limited too


class Choice(NamedTuple):
    """What a layer becomes: the kept ReLUs, `mask` bool [C, P], and what replaces the others, `kind` int64 [C]."""

    mask: Tensor
    kind: Tensor


class _Option(NamedTuple):
    """What a channel may become: its kind, the price of a dropped pixel, and whether others may keep their ReLU."""

    kind: int
    price: float
    keeps: bool


class _Sorted(NamedTuple):
    """The losses of a layer [K, C, P]; the pixels of each channel by rising loss; sums of the first so many of them.

    `positive`: those above 0, flat.
    """

    loss_KCP: Tensor
    ascending_KCP: Tensor
    sums_KCP: Tensor
    positive: Tensor

    @classmethod
    def of(cls, loss_KCP: Tensor) -> _Sorted:
        ascending_KCP = loss_KCP.sort(2).values
        return cls(loss_KCP, ascending_KCP, F.pad(ascending_KCP.cumsum(2), (1, 0)), loss_KCP[loss_KCP > 0])


class _Point(NamedTuple):
    """A choice of a layer: whether ReLUs may be kept, the costliest kind that may occur, and the multiplier.

    The multiplier None keeps all of them, also those that are worth nothing: to drop any may cost more than it saves.
    """

    keeps: bool
    costliest: int
    multiplier: float | None


def allocate(prices: Sequence[GatePrices], losses: Sequence[Tensor], budget: float, *, relu_budget: int | None = None,
             relu_layers: int | None = None) -> list[Choice]:
    """The choice for every layer that loses the least, within all limits together.

    It is nearly the best one, as tests show; with `relu_budget`, for some worth of a ReLU.

    Args:
        prices: of every layer.
        losses: of every layer, float64 [K, C, P] on the CPU: by how much the loss rises if a pixel becomes the
            identity, linear or quadratic, as far as K goes.
        budget: of all layers together, in the unit of `prices`.
        relu_budget: how many ReLUs may be kept; None is no limit.
        relu_layers: how many layers may keep any; None is no limit.

    Raises:
        ValueError: not even the identity everywhere fits, or a loss is not finite.
    """
    for i, loss in enumerate(losses):
        if not loss.isfinite().all():
            raise ValueError(f"invalid losses of layer {i}: expected finite numbers, found "
                             f"{int((~loss.isfinite()).sum())} others; measure them on images that do not overshoot")
    layers = [_Sorted.of(loss) for loss in losses]

    def solved(worth: float) -> list[Choice]:
        frontiers = [_Frontier(price, layer, worth) for price, layer in zip(prices, layers, strict=True)]
        picked = _knapsack(frontiers, budget, len(frontiers) if relu_layers is None else relu_layers)
        return [frontier.choice(point) for frontier, point in zip(frontiers, picked, strict=True)]

    def fits(choices: list[Choice]) -> bool:
        return relu_budget is None or sum(int(choice.mask.sum()) for choice in choices) <= relu_budget

    def filled(choices: list[Choice]) -> list[Choice]:
        return _filled(choices, prices, losses, budget, relu_budget)

    found = solved(0.0)
    if fits(found):
        return filled(found)
    low, high = 0.0, 2 * max(loss.max().item() for loss in losses) or 1.0  # above any loss of a pixel nothing is kept
    found = solved(high)
    for _ in range(_NUM_HALVINGS):
        worth = (low * high) ** 0.5 if low else high / 16
        choices = solved(worth)
        if fits(choices):
            high, found = worth, choices
        else:
            low = worth
    return filled(found)


class _Frontier:
    """The best choices of one layer with and without ReLUs, as points: `cost`, `loss`, and whether it `keeps` any.

    Args:
        worth: loss that is added for every kept ReLU.
    """

    def __init__(self, price: GatePrices, layer: _Sorted, worth: float) -> None:
        self._price, self._worth = price, worth
        self._loss_KCP, self._ascending_KCP, self._sums_KCP, positive = layer
        self.multipliers = self._multipliers(positive)
        self._points: list[_Point] = []
        costs, losses = [], []
        for keeps in (False, True):
            points, cost, loss = self._sweep(keeps)
            best = _undominated(cost, loss)
            self._points += [points[i] for i in best.tolist()]
            costs.append(cost[best])
            losses.append(loss[best])
        self.cost, self.loss = torch.cat(costs), torch.cat(losses)
        self.keeps = torch.tensor([point.keeps for point in self._points])

    def _multipliers(self, positive: Tensor) -> Tensor:
        """From one at which nothing is given up to one at which everything is."""
        unit = max(self._price.kept, *self._price.dropped)
        if not len(positive) or not unit:
            return torch.zeros(1, dtype=torch.float64)
        low, high = (positive.min() / unit).log10(), (positive.sum() / unit).log10()
        return F.pad(torch.logspace(low, high, _NUM_MULTIPLIERS, dtype=torch.float64), (1, 0))

    def _sweep(self, keeps: bool) -> tuple[list[_Point], Tensor, Tensor]:
        points, costs, losses = [], [], []
        for costliest in range(len(self._loss_KCP)):
            which_CL, cost_OCL, loss_OCL = self._best(self._options(keeps, costliest), self.multipliers)
            cost_L, loss_L = (t.gather(0, which_CL[None])[0].sum(0) for t in (cost_OCL, loss_OCL))
            costs.append(cost_L + self._price.charge(keeps, costliest))
            losses.append(loss_L)
            points += [_Point(keeps, costliest, multiplier) for multiplier in self.multipliers.tolist()]
        if keeps:
            num_pixels = self._loss_KCP[0].numel()
            cost = num_pixels * self._price.kept + self._price.charge(True, IDENTITY, drops=False)
            costs.append(torch.tensor([cost], dtype=torch.float64))
            losses.append(torch.tensor([num_pixels * self._worth], dtype=torch.float64))
            points.append(_Point(True, IDENTITY, None))
        return points, torch.cat(costs), torch.cat(losses)

    def _options(self, keeps: bool, costliest: int) -> list[_Option]:
        found = [_Option(kind, self._price.dropped[kind], keeps) for kind in range(costliest + 1)]
        folded = self._price.folds and len(self._loss_KCP) > LINEAR
        return [*found, _Option(LINEAR, self._price.dropped[IDENTITY], False)] if folded else found

    def _best(self, options: list[_Option], multipliers_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every channel and multiplier the best option [C, L]; cost and loss of all of them [O, C, L]."""
        num_pixels = self._loss_KCP.shape[2]
        costs, losses = [], []
        for option in options:
            threshold_CL = self._threshold(option, multipliers_L).expand(self._loss_KCP.shape[1], -1).contiguous()
            dropped_CL = torch.searchsorted(self._ascending_KCP[option.kind], threshold_CL, right=True)
            kept_CL = (num_pixels - dropped_CL).double()  # or a product with a float would be one of float32
            costs.append(dropped_CL.double() * option.price + kept_CL * self._price.kept)
            losses.append(self._sums_KCP[option.kind].gather(1, dropped_CL) + kept_CL * self._worth)
        cost_OCL, loss_OCL = torch.stack(costs), torch.stack(losses)
        return _least(loss_OCL + multipliers_L * cost_OCL), cost_OCL, loss_OCL

    def _threshold(self, option: _Option, multipliers_L: Tensor) -> Tensor:
        """Up to which loss a pixel is dropped [L]."""
        if not option.keeps:
            return torch.full_like(multipliers_L, torch.inf)
        return multipliers_L * (self._price.kept - option.price) + self._worth

    def choice(self, index: int) -> Choice:
        """The choice behind a point."""
        point, shape = self._points[index], self._loss_KCP.shape[1:]
        if point.multiplier is None:
            return Choice(torch.ones(shape, dtype=torch.bool), torch.full(shape[:1], IDENTITY))
        options, multiplier = self._options(point.keeps, point.costliest), torch.tensor([point.multiplier]).double()
        which_C = self._best(options, multiplier)[0][:, 0]
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, option in enumerate(options):
            kept = self._loss_KCP[option.kind] > self._threshold(option, multiplier)
            mask = torch.where((which_C == i)[:, None], kept, mask)
        return Choice(mask, torch.tensor([option.kind for option in options])[which_C])


def _least(values: Tensor) -> Tensor:
    """`values.argmin(0)`, the first one of equals; several times as fast for a few rows."""
    least, which = values[0], torch.zeros(values.shape[1:], dtype=torch.int64)
    for i, row in enumerate(values[1:], 1):
        which = torch.where(row < least, i, which)
        least = torch.minimum(least, row)
    return which


def _undominated(cost: Tensor, loss: Tensor) -> Tensor:
    """The points that no other one beats in both, by rising cost."""
    order = loss.argsort(stable=True)
    order = order[cost[order].argsort(stable=True)]
    lowest = loss[order].cummin(0).values
    better = torch.ones(len(order), dtype=torch.bool)
    better[1:] = loss[order][1:] < lowest[:-1]
    return order[better]


def _knapsack(frontiers: Sequence[_Frontier], budget: float, relu_layers: int) -> list[int]:
    """One point of every layer, of the least loss together, within `budget` and with ReLUs in `relu_layers` layers."""
    floors = [frontier.cost.min().item() for frontier in frontiers]
    if sum(floors) > budget:
        raise ValueError(f"invalid budget={budget}: expected at least {sum(floors)}, what these layers cost without "
                         "any ReLU or polynomial")
    best = [int(frontier.loss.argmin()) for frontier in frontiers]
    cost = sum(frontier.cost[i].item() for frontier, i in zip(frontiers, best, strict=True))
    layers = sum(bool(frontier.keeps[i]) for frontier, i in zip(frontiers, best, strict=True))
    if cost <= budget * _ROUNDING and layers <= relu_layers:  # rounded up to bins it may not fit
        return best
    limited = relu_layers < len(frontiers)
    # What every layer costs at least is set aside; what is above it is counted in bins.
    bin_size = (budget - sum(floors)) / _NUM_BINS
    used = [((frontier.cost - floor) / bin_size - 1e-9).nan_to_num(0.0).ceil().clamp(0, _NUM_BINS + 1).long()
            for frontier, floor in zip(frontiers, floors, strict=True)]
    opens = [frontier.keeps.long() * limited for frontier in frontiers]
    # The least loss of the layers so far, by how many of them may keep ReLUs and by the bins that they may use.
    best = torch.zeros(limited * relu_layers + 1, _NUM_BINS + 1, dtype=torch.float64)
    picked = []
    for frontier, bins, opened in zip(frontiers, used, opens, strict=True):
        rows = torch.full((len(bins), *best.shape), torch.inf, dtype=torch.float64)
        for row, loss, n, o in zip(rows, frontier.loss.tolist(), bins.tolist(), opened.tolist(), strict=True):
            if n <= _NUM_BINS and o < len(best):
                row[o:, n:] = best[: len(best) - o, : _NUM_BINS + 1 - n] + loss
        best, which = rows.min(0)
        picked.append(which)
    left, layers, found = _NUM_BINS, len(best) - 1, []
    for which, bins, opened in zip(reversed(picked), reversed(used), reversed(opens), strict=True):
        point = int(which[layers, left])
        found.append(point)
        left, layers = left - int(bins[point]), layers - int(opened[point])
    return found[::-1]


def _filled(choices: Sequence[Choice], prices: Sequence[GatePrices], losses: Sequence[Tensor], budget: float,
            relu_budget: int | None) -> list[Choice]:
    """The choices with more ReLUs kept: those worth the most for their price, one after another, while they fit."""
    masks = [choice.mask for choice in choices]
    gain, cost = (torch.cat(parts) for parts in zip(*map(_gains, choices, prices, losses), strict=True))
    used = sum(price.of(mask.numpy(), kind.numpy()) for price, (mask, kind) in zip(prices, choices, strict=True))
    left = budget - used
    kept = torch.cat([mask.flatten() for mask in masks])
    spare = len(kept) if relu_budget is None else relu_budget - int(kept.sum())
    wanted = gain.nonzero().flatten()
    wanted = wanted[(gain[wanted] / cost[wanted]).argsort(descending=True, stable=True)]
    while spare and len(wanted := wanted[cost[wanted] <= left]):
        taken = wanted[:spare][cost[wanted[:spare]].cumsum(0) <= left]
        kept[taken] = True
        left, spare, wanted = left - cost[taken].sum().item(), spare - len(taken), wanted[len(taken):]
    parts = kept.split([mask.numel() for mask in masks])
    return [Choice(part.view_as(mask), choice.kind) for part, mask, choice in zip(parts, masks, choices, strict=True)]


def _gains(choice: Choice, price: GatePrices, loss_KCP: Tensor) -> tuple[Tensor, Tensor]:
    """What keeping each pixel after all would gain in loss, and cost, both [C * P].

    No gain where the cost would be more than that of the pixel: in a layer without any ReLU, which would be charged,
    and in a channel that is folded into the layer before.
    """
    mask, kind_C = choice
    folded_C = (kind_C == LINEAR) & ~mask.any(1) & price.folds
    open_C = mask.any() & ~folded_C
    gain_CP = loss_KCP[kind_C, torch.arange(len(kind_C))].where(open_C[:, None] & ~mask, 0.0)
    cost_C = (price.kept - torch.tensor(price.dropped, dtype=torch.float64)[kind_C]).clamp(min=0.0)
    return gain_CP.flatten(), cost_C[:, None].expand_as(mask).flatten()
