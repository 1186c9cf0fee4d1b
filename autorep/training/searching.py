"""What a search does besides training: fit coefficients, start scores, update masks, keep to the budget."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

from torch import Tensor, nn

from autorep.config import RunConfig
from autorep.dapa.calibrate import record
from autorep.dapa.fit import fit_coefficients_
from autorep.dapa.moments import Moments
from autorep.dapa.ranges import set_ranges_
from autorep.data.batch import Batch
from autorep.gates.gated_relu import iter_gates
from autorep.gates.polynomial_sigmoid import iter_fitted
from autorep.machine.device import to_device
from autorep.machine.distributed import buffers_of_main, is_main, world_size
from autorep.search.budget import budget_penalty, targets_at, within_budget
from autorep.search.masks import project_to_budget_, update_masks_
from autorep.search.relu_count import count_relus
from autorep.search.saliency import init_scores_
from autorep.training.averaging import Lookahead
from autorep.training.norms import reestimate_norms_

# Batches for a median; all those of an epoch would, on a large set, take as long as training.
_FEWEST_NORM_BATCHES, _MOST_NORM_BATCHES = 10, 50


class Search:
    """The search of a run, over its first `num_steps` steps (0 where a run only fine-tunes).

    Args:
        config: a run with gates.
        model: with gates, changed in place.
        loaders: what `make_loaders` returns.
    """

    def __init__(self, config: RunConfig, model: nn.Module, loaders: Any, num_steps: int) -> None:
        self.config, self.model, self.loaders, self.num_steps = config, model, loaders, num_steps
        relus = count_relus(model)
        self.num_relus, self.num_layers = relus.total, len(relus.layers)
        self.dropped_at_the_end = 0
        fits = config.dapa is not None and not config.checkpoint_path
        self._last_fit = -1
        if fits:
            until = config.dapa.refit_until
            until = num_steps if until is None else min(until, num_steps // 2)
            self._last_fit = until - until % config.dapa.refit_every

    def enter_(self, starts: bool) -> None:
        """To be called as a phase begins or resumes; `starts` at the start of the search.

        Then coefficients and scores get their first values. A run from a checkpoint keeps those that it finds there.
        """
        if starts and not self.config.checkpoint_path:
            self._start_()
        elif self._has_ranges and all(gate.range_3C is None for _, gate in iter_gates(self.model)):
            self._record_()

    @property
    def _has_ranges(self) -> bool:
        """Where there are none, activations that an image makes infinite do no harm after the last fit."""
        return self.config.dapa is not None and self.config.dapa.range_width > 0

    def _start_(self) -> None:
        if self.config.dapa:
            self._fit_()
        if self.config.gate.score_init == "saliency":
            with buffers_of_main(self.model):
                init_scores_(self.model, self.loaders.train.batches(0))

    def trains_coefficients(self, step: int) -> bool:
        """While coefficients are still fitted they are not trained, since the next fit would undo the training."""
        return step >= self._last_fit

    def before_step_(self, step: int, lookahead: Lookahead | None) -> None:
        """Fit the coefficients again every `refit_every` steps, and after that record ranges again once an epoch.

        Lookahead restarts from the fitted ones.
        """
        self._refresh_ranges_(step, settled=self._last_fit)
        if self._refits(step):
            self._fit_()
            if lookahead:
                lookahead.reset_([each.coefficients for _, each in iter_fitted(self.model)])

    def _refits(self, step: int) -> bool:
        return 0 < step <= self._last_fit and step % self.config.dapa.refit_every == 0

    def _refresh_ranges_(self, step: int, settled: int) -> None:
        """Record ranges again once an epoch, after the step `settled`, up to which fits do."""
        if settled < step and step % self.loaders.train.steps_per_epoch == 0 and self._has_ranges:
            self._record_()

    def _fit_(self) -> None:
        fit_coefficients_(self.model, self._record_(), self.config.dapa)

    def _record_(self) -> dict[str, Moments]:
        """The moments of all that is fitted, which also give it its range."""
        batches = map(Batch.of, islice(self.loaders.calibration.batches(0), self.config.dapa.calibration_batches))
        images = (to_device(batch.images, self.loaders.train.device) for batch in batches)
        with buffers_of_main(self.model):
            moments = record(self.model, images, precision=self.config.precision)
        set_ranges_(self.model, moments, self.config.dapa, self.config.data.batch_size // world_size())
        return moments

    def targets(self, step: int) -> tuple[float, int]:
        """How many ReLUs, and how many layers that hold one, are allowed at a step."""
        return targets_at(step, self.num_steps, self.num_relus, self.num_layers, self.config.budget)

    def penalty(self, allowed: Tensor) -> Tensor | None:
        """The budget penalty, for a number of ReLUs that is a tensor on the device; None where there is none."""
        return budget_penalty(self.model, allowed, self.config.budget.penalty_weight)

    def after_step_(self, step: int, lookahead: Lookahead | None) -> Tensor:
        """Update the masks after a step; returns the number of flips, int64 []."""
        hold = self.config.budget.schedule != "constant"
        flips = update_masks_(self.model, *self.targets(step), hold=hold)
        if lookahead and hold:  # or Lookahead would take back half of what the scores were lowered by
            lookahead.reset_([gate.score for _, gate in iter_gates(self.model)])
        return flips

    def reestimate_norms_(self, epoch: int, share: float = 1.0) -> None:
        """Give the batch norms the statistics of the network as it is now, from a share of the images of an epoch."""
        num_batches = min(_MOST_NORM_BATCHES, max(_FEWEST_NORM_BATCHES,
                                                  math.ceil(share * self.loaders.train.steps_per_epoch)))
        batches = map(Batch.of, islice(self.loaders.train.batches(epoch), num_batches))
        images = (to_device(batch.images, self.loaders.train.device) for batch in batches)
        reestimate_norms_(self.model, images, precision=self.config.precision)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the model."""
        ranges = {name: each.range_3C for name, each in iter_fitted(self.model)}
        return {"dropped_at_the_end": self.dropped_at_the_end, "ranges": ranges}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.dropped_at_the_end = state["dropped_at_the_end"]
        for name, each in iter_fitted(self.model):
            found = state.get("ranges", {}).get(name)
            own = each.coefficients
            each.range_3C = None if found is None else found.to(own.device, own.dtype)

    def fits(self) -> bool:
        """Whether the network holds its budget."""
        return within_budget(self.model, self.config.budget)

    def metrics(self, step: int) -> dict[str, float]:
        """What there is to log at a step beside the number of ReLUs."""
        return {}

    def summary(self) -> dict[str, Any]:
        """What the summary of a run says of its budget beside the number of ReLUs."""
        return {}

    def project_(self) -> None:
        """Drop what is above the budget."""
        dropped = project_to_budget_(self.model, self.config.budget.relu_budget, self.config.budget.relu_layers)
        self.dropped_at_the_end += dropped
        if is_main() and dropped:
            print(f"{dropped} kept ReLUs were dropped to fit the budget", flush=True)
