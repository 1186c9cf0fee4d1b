"""Kept and dropped ReLUs that change places, at the same price: the scores say which. C channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autorep.gates.gated_relu import GatedReLU
from autorep.mpc.cost.gate_prices import IDENTITY, QUADRATIC


class Exchange:
    """Moves masks by hysteresis within groups of pixels that cost the same, kept or dropped.

    A group is what the channels of a layer hold that have one kind of replacement and may keep a ReLU. It keeps as many
    as it had. A channel that loses its last ReLU may fold into the layer before, so the price never rises.

    Args:
        kinds: of the channels of every gate, int64 [C].
        may_keep: which channels may keep a ReLU, bool [C]; None: those that keep one now.
    """

    def __init__(self, kinds: Mapping[GatedReLU, Tensor], may_keep: Mapping[GatedReLU, Tensor] | None = None) -> None:
        self.may_keep = {gate: gate.mask.flatten(1).any(1) if may_keep is None else may_keep[gate].to(gate.mask.device)
                         for gate in kinds}
        self._gates: list[GatedReLU] = []
        groups: list[Tensor] = []  # places in the pixels of all `_gates`, one after another
        kept: list[int] = []
        start = 0
        for gate, kind_C in kinds.items():
            found = _groups_of(gate, kind_C, self.may_keep[gate])
            if found:
                self._gates.append(gate)
                groups += [start + index for index, _ in found]
                kept += [num for _, num in found]
                start += gate.mask.numel()
        if groups:
            sizes = torch.tensor([len(index) for index in groups])
            self._index = torch.cat(groups)
            self._group = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(self._index.device)
            first = (sizes.cumsum(0) - sizes).to(self._index.device)
            num = torch.tensor(kept).to(self._index.device)
            self._rank_kept = torch.arange(len(self._index), device=first.device) < (first + num)[self._group]
            self._last_kept = first + num - 1

    @torch.no_grad()
    def update_(self) -> Tensor:
        """One update of the masks; returns the number of flips, int64 [].

        The scores of a group are shifted together, so that the lowest of its kept ReLUs is where the hysteresis would
        just keep it: masks and scores agree.
        """
        if not self._gates:
            return torch.zeros((), dtype=torch.int64, device=next(iter(self.may_keep)).mask.device)
        mask, score, height = (torch.cat([part(gate).flatten() for gate in self._gates])
                               for part in (lambda g: g.mask, lambda g: g.score, _height))
        height, before = height[self._index], mask[self._index]
        order = torch.sort(height, descending=True, stable=True).indices
        order = order[torch.sort(self._group[order], stable=True).indices]  # group by group, each from the highest
        after = torch.empty_like(before).index_copy_(0, order, self._rank_kept)
        cut = height[order[self._last_kept]]
        mask[self._index], score[self._index] = after, score[self._index] - cut[self._group]
        sizes = [gate.mask.numel() for gate in self._gates]
        for gate, new_mask, new_score in zip(self._gates, mask.split(sizes), score.split(sizes), strict=True):
            gate.mask.copy_(new_mask.view_as(gate.mask))
            gate.score.copy_(new_score.view_as(gate.score))
        return (after != before).sum()


def _groups_of(gate: GatedReLU, kind_C: Tensor, may_keep_C: Tensor) -> list[tuple[Tensor, int]]:
    """The pixels, flat, of every group of a gate in which places can be exchanged, and how many of them are kept."""
    found = []
    for kind in range(IDENTITY, QUADRATIC + 1):
        members_C = may_keep_C & (kind_C == kind)
        index = members_C[:, None].expand(-1, gate.mask[0].numel()).flatten().nonzero().flatten()
        kept = int(gate.mask.flatten()[index].sum())  # read once: what is read at every step would be waited for
        if 0 < kept < len(index):
            found.append((index, kept))
    return found


def _height(gate: GatedReLU) -> Tensor:
    """The scores [C, ...], with the lead that hysteresis gives to a kept pixel."""
    threshold = gate.config.threshold
    return torch.where(gate.mask, gate.score + threshold, gate.score - threshold)


@torch.no_grad()
def rank_scores_(gate: GatedReLU, loss: Tensor) -> None:
    """Scores in the order of a loss [C, ...], evenly spread over an interval of length 1, that agree with the mask."""
    rank = torch.empty(loss.numel(), dtype=gate.score.dtype, device=gate.score.device)
    order = torch.sort(loss.flatten(), stable=True).indices
    rank[order] = torch.arange(len(rank), dtype=rank.dtype, device=rank.device)
    height = ((rank + 0.5) / len(rank)).view_as(gate.score) - (1 - gate.mask.float().mean())
    margin = gate.config.threshold
    gate.score.copy_(torch.where(gate.mask, height.clamp(min=-margin), height.clamp(max=-margin)))
