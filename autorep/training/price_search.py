"""A search that keeps to a price: it solves for what every pixel and channel is to be."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep.config import DapaConfig, RunConfig
from autorep.dapa.fit import activation_of, fit_coefficients_, fitted_coefficients
from autorep.dapa.moments import Moments
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.gates.polynomial_sigmoid import iter_fitted
from autorep.machine.distributed import buffers_of_main, is_main
from autorep.mpc.cost.gate_prices import QUADRATIC
from autorep.search.allocation import Choice, allocate
from autorep.search.budget import annealed
from autorep.search.exchange import Exchange, rank_scores_
from autorep.search.kinds import HeldKinds, identity_like
from autorep.search.masks import less_left_out
from autorep.search.price_model import PriceModel
from autorep.search.saliency import NUM_BATCHES, candidate_saliency
from autorep.training.averaging import Lookahead
from autorep.training.searching import Search

# In how many strides the price falls.
_NUM_STRIDES = 10
# The share of the loss estimated for a quadratic that training does not win back. Without it the search would trade
# quadratics for lines and few ReLUs, and end below a network of quadratics at the same price.
_LEFT_BY_TRAINING = 0.5
# Steps between two exchanges, which take a third of a step of ResNet-20: scores move by a hundredth in so many.
_EXCHANGE_EVERY = 10


class PriceSearch(Search):
    """The search of a run under `budget.price`.

    What the loss pays for each candidate of every pixel is estimated once, before anything is dropped, and a quadratic
    at its full curvature, which training gives it. In strides, while the allowed price falls, the choice is solved for;
    where the price has arrived it stands, but for ReLUs that change places where the price is the same: scores, which
    start in the order of the losses, say which from then on.
    """

    def __init__(self, config: RunConfig, model: nn.Module, loaders: Any, num_steps: int) -> None:
        super().__init__(config, model, loaders, num_steps)
        budget, device = config.budget, next(model.parameters()).device
        self.price = PriceModel(model, torch.zeros(1, *model.input_shape, device=device), budget)
        self._names = {gate: name for name, gate in iter_gates(model)}
        self._kinds: HeldKinds | None = None
        self._losses: dict[str, Tensor] = {}
        self._saved_kinds: dict[str, Tensor] | None = None
        self._exchange: Exchange | None = None
        self._may_keep: dict[str, Tensor] | None = None
        at_once = budget.schedule == "constant" or config.checkpoint_path
        self._arrival = 0 if at_once else math.ceil(budget.anneal_fraction * num_steps)
        self._flips = torch.zeros((), dtype=torch.int64, device=device)
        self._entered = False

    def enter_(self, starts: bool) -> None:
        super().enter_(starts)
        self._kinds = self._kinds or HeldKinds(self.model, self._saved_kinds)
        if self._exchange is None:
            may_keep = self._may_keep and {gate: self._may_keep[name] for gate, name in self._names.items()}
            self._exchange = Exchange(self._kinds.of, may_keep)
        self._entered = True

    def _start_(self) -> None:
        self._fit_()

    def allowed_price(self, step: int) -> float:
        """What the network may cost at a step."""
        if step >= self._arrival:
            return self.price.allowed
        return annealed(self.price.all_relu, self.price.allowed, step, self.num_steps, self.config.budget)

    def before_step_(self, step: int, lookahead: Lookahead | None) -> None:
        """Choose anew where the price falls, and fit coefficients and record ranges as any search does."""
        self._refresh_ranges_(step, settled=max(self._arrival, self._last_fit))
        refits = self._refits(step)
        late = self._entered and step >= self._arrival and not self.fits()  # as after --start_epoch
        self._entered = False
        falls = late or self._falls(step)
        if refits or falls:
            self._choose_(self.targets(step)[0] if falls else None, self.allowed_price(step), refits)
            if lookahead:
                lookahead.reset_([each.coefficients for _, each in iter_fitted(self.model)])
        if step >= self._arrival:
            self._losses = {}

    def after_step_(self, step: int, lookahead: Lookahead | None) -> Tensor:
        self._kinds.hold_()
        flips, self._flips = self._flips, torch.zeros_like(self._flips)
        if step >= self._arrival and step % _EXCHANGE_EVERY == 0:
            flips = flips + self._exchange.update_()
            if lookahead:
                lookahead.reset_([gate.score for gate in self._names])
        return flips

    def penalty(self, allowed: Tensor) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        kinds, may_keep = ({self._names[gate]: value for gate, value in values.items()}
                           for values in (self._kinds.of, self._exchange.may_keep))
        return super().state_dict() | {"losses": self._losses, "kinds": kinds, "may_keep": may_keep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._losses, self._saved_kinds, self._may_keep = state["losses"], state["kinds"], state.get("may_keep")

    def fits(self) -> bool:
        return super().fits() and self.price.now() <= self.price.allowed * (1 + 1e-9)  # sums in another order

    def metrics(self, step: int) -> dict[str, float]:
        last = step if step >= self._arrival else step - step % self._stride
        return {"price": self.price.now(), "price_allowed": self.allowed_price(last)}

    def summary(self) -> dict[str, Any]:
        budget, price = self.config.budget, self.price
        return {"price": budget.price, "price_budget": budget.price_budget, "price_unit": price.price.unit,
                "price_all_relu": price.all_relu, "price_allowed": price.allowed, "price_used": price.now()}

    def project_(self) -> None:
        """Drop what the price does not allow, so that the result never exceeds it."""
        if self.fits():
            return
        before = sum(gate.num_kept for gate in self._names)
        self._choose_(self.num_relus if self.config.budget.relu_budget is None else self.config.budget.relu_budget,
                      self.price.allowed, refits=False)
        dropped = before - sum(gate.num_kept for gate in self._names)
        self.dropped_at_the_end += dropped
        if is_main():
            print(f"{dropped} kept ReLUs were dropped to fit the price", flush=True)

    def targets(self, step: int) -> tuple[float, int]:
        layers = self.config.budget.relu_layers
        return super().targets(step)[0], self.num_layers if layers is None else layers

    @property
    def _stride(self) -> int:
        return max(1, math.ceil(self._arrival / _NUM_STRIDES))

    def _falls(self, step: int) -> bool:
        """Whether the price falls at a step: in equal strides to its arrival."""
        return step == self._arrival or 0 < step < self._arrival and step % self._stride == 0

    @torch.no_grad()
    def _choose_(self, relus: float | None, allowed: float, refits: bool) -> None:
        """Choose what a number of ReLUs and a price allow, or leave it (None).

        Coefficients of new kinds are fitted, with `refits` all.
        """
        moments = self._record_()
        if refits:  # of sigmoids too; gates get those of their kinds below
            fit_coefficients_(self.model, moments, self.config.dapa)
        fitted = self._candidates(moments, self.config.dapa)
        chosen = {} if relus is None else self._allocated(math.floor(relus), allowed, moments)
        for gate, before in list(self._kinds.of.items()):
            kind = before
            if choice := chosen.get(gate):
                mask, kind = (t.to(gate.mask.device) for t in (choice.mask.view_as(gate.mask), choice.kind))
                self._flips += (mask != gate.mask).sum()
                gate.mask.copy_(mask)
                self._score_(gate, kind)
            new = fitted[self._names[gate]][kind, torch.arange(len(kind), device=kind.device)]
            stays = (kind == before) & (not refits)
            self._kinds.set_(gate, torch.where(stays[:, None], gate.coefficients, new), kind)
        if chosen:
            self._exchange = Exchange(self._kinds.of)

    def _score_(self, gate: GatedReLU, kind_C: Tensor) -> None:
        loss_KCP = self._losses[self._names[gate]].to(gate.score)
        rank_scores_(gate, loss_KCP[kind_C, torch.arange(len(kind_C), device=kind_C.device)])

    def _allocated(self, relus: int, allowed: float, moments: dict[str, Moments]) -> dict[GatedReLU, Choice]:
        if not self._losses:
            full = self._candidates(moments, replace(self.config.dapa, scale_x2=1.0))
            batches = islice(self.loaders.train.batches(0), NUM_BATCHES)
            with torch.enable_grad(), buffers_of_main(self.model):
                found = candidate_saliency(self.model, batches, full)
            self._losses = {name: loss.reshape(*loss.shape[:2], -1).cpu() for name, loss in found.items()}
            for loss in self._losses.values():
                loss[QUADRATIC:] *= _LEFT_BY_TRAINING
        gates = self.price.gates
        relus_here, layers_here = less_left_out(self.model, relus, self.targets(0)[1])
        choices = allocate(list(gates.values()), [self._losses[self._names[gate]] for gate in gates],
                           allowed - self.price.base, relu_budget=relus_here, relu_layers=layers_here)
        return dict(zip(gates, choices, strict=True))

    def _candidates(self, moments: dict[str, Moments], dapa: DapaConfig) -> dict[str, Tensor]:
        """Gate -> fitted coefficients [K, C, D] of every kind that its degree allows, by kind."""
        found = {}
        for gate, name in self._names.items():
            now = gate.coefficients.detach()
            fits = [fitted_coefficients(moments[name], degree, dapa, activation_of(gate))
                    for degree in range(1, now.shape[1])]
            padded = [F.pad(fit, (0, now.shape[1] - fit.shape[1])).to(now) for fit in fits]
            found[name] = torch.stack([identity_like(now), *padded])
        return found


def build_search(config: RunConfig, model: nn.Module, loaders: Any, num_steps: int) -> Search:
    """The search that a configuration asks for."""
    kind = Search if config.budget.price is None else PriceSearch
    return kind(config, model, loaders, num_steps)
