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
        self._groups: list[tuple[GatedReLU, Tensor, int]] = []
        for gate, kind_C in kinds.items():
            for kind in range(IDENTITY, QUADRATIC + 1):
                members_C = self.may_keep[gate] & (kind_C == kind)
                index = members_C[:, None].expand(-1, gate.mask[0].numel()).flatten().nonzero().flatten()
                kept = int(gate.mask.flatten()[index].sum())
                if 0 < kept < len(index):  # read once: a number that is read at every step would be waited for
                    self._groups.append((gate, index, kept))

    @torch.no_grad()
    def update_(self) -> Tensor:
        """One update of the masks; returns the number of flips, int64 [].

        The scores of a group are shifted together, so that the lowest of its kept ReLUs is where the hysteresis would
        just keep it: masks and scores agree.
        """
        flips = torch.zeros((), dtype=torch.int64, device=next(iter(self.may_keep)).mask.device)
        for gate, index, kept in self._groups:
            before, score = gate.mask.view(-1)[index], gate.score.view(-1)[index]
            threshold = gate.config.threshold
            height = torch.where(before, score + threshold, score - threshold)
            order = torch.sort(height, descending=True, stable=True).indices
            after = torch.zeros_like(before).index_fill_(0, order[:kept], True)
            gate.mask.view(-1)[index] = after
            gate.score.view(-1)[index] = score - height[order[kept - 1]]
            flips += (after != before).sum()
        return flips


@torch.no_grad()
def rank_scores_(gate: GatedReLU, loss: Tensor) -> None:
    """Scores in the order of a loss [C, ...], evenly spread over an interval of length 1, that agree with the mask."""
    rank = torch.empty(loss.numel(), dtype=gate.score.dtype, device=gate.score.device)
    order = torch.sort(loss.flatten(), stable=True).indices
    rank[order] = torch.arange(len(rank), dtype=rank.dtype, device=rank.device)
    height = ((rank + 0.5) / len(rank)).view_as(gate.score) - (1 - gate.mask.float().mean())
    margin = gate.config.threshold
    gate.score.copy_(torch.where(gate.mask, height.clamp(min=-margin), height.clamp(max=-margin)))
