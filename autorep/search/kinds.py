"""What replaces the dropped ReLUs of each channel: quadratic, linear or the identity, held while coefficients train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.mpc.cost.gate_prices import IDENTITY, LINEAR, QUADRATIC


def identity_like(coefficients_CD: Tensor) -> Tensor:
    """The coefficients of the identity, in this shape."""
    identity = torch.zeros_like(coefficients_CD)
    identity[:, 1] = 1
    return identity


def kinds_of(gate: GatedReLU) -> Tensor:
    """The kind of each channel, int64 [C], by its coefficients: those of a kind that is held are exact."""
    found = gate.coefficients.detach()
    if found.shape[1] == 1:
        return torch.full((len(found),), LINEAR, device=found.device)
    linear = (found[:, 2:] == 0).all(1)
    same = (found == identity_like(found)).all(1)
    return torch.where(same, IDENTITY, torch.where(linear, LINEAR, QUADRATIC))


class HeldKinds:
    """Keeps the coefficients of every gate to the kinds of its channels.

    What a kind fixes gets no gradient, so that it takes no part in clipping. An optimiser may move it all the same, by
    momentum: so call `hold_` after every step.

    Args:
        kinds: qualified gate name -> kind of each channel, int64 [C]; at first those that the coefficients have.
    """

    def __init__(self, model: nn.Module, kinds: dict[str, Tensor] | None = None) -> None:
        self.of: dict[GatedReLU, Tensor] = {}
        self._free: dict[GatedReLU, Tensor] = {}  # which coefficients may train, bool [C, D]
        for name, gate in iter_gates(model):
            self.of[gate] = kinds[name].to(gate.mask.device) if kinds else kinds_of(gate)
            self._free[gate] = _free(gate.coefficients, self.of[gate])
            if gate.coefficients.requires_grad:
                gate.coefficients.register_hook(lambda grad, gate=gate: grad * self._free[gate])

    @torch.no_grad()
    def set_(self, gate: GatedReLU, coefficients_CD: Tensor, kind_C: Tensor) -> None:
        """Give a gate coefficients and the kinds that they have from now on."""
        gate.coefficients.copy_(coefficients_CD)
        self.of[gate] = kind_C
        self._free[gate].copy_(_free(gate.coefficients, kind_C))
        self._hold_(gate)

    @torch.no_grad()
    def hold_(self) -> None:
        """Put back what a kind fixes."""
        for gate in self._free:
            self._hold_(gate)

    def _hold_(self, gate: GatedReLU) -> None:
        found = gate.coefficients
        found.copy_(torch.where(self._free[gate], found, identity_like(found).where(~self._free[gate][:, 1:2], 0)))


def _free(coefficients_CD: Tensor, kind_C: Tensor) -> Tensor:
    power = torch.arange(coefficients_CD.shape[1], device=coefficients_CD.device)
    return (kind_C[:, None] == QUADRATIC) | (kind_C[:, None] == LINEAR) & (power < 2)
