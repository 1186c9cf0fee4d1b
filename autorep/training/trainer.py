"""One loop for baseline, search and fine-tuning.

batch -> forward -> objective -> update (backward, clip, optimiser) -> masks -> log -> maybe evaluate, save.
All that varies with time is a pure function of the step, so a checkpoint holds the step, the states and the RNGs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import RunConfig
from autorep.convert.swap import freeze_gates_
from autorep.data.batch import Batch
from autorep.data.plan import derived_seed
from autorep.machine.compilation import compiled
from autorep.machine.device import autocast, to_device
from autorep.machine.distributed import any_rank, is_main, rank, world_size
from autorep.machine.stopping import stop_signals
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.runs.log import Interval, RunLog, score_quantiles
from autorep.search.price import trace_prices
from autorep.search.relu_count import count_relus
from autorep.training.accuracy import evaluate
from autorep.training.divergence import grown_layer
from autorep.training.optim import set_learning_rates_
from autorep.training.phases import Phase, plan_phases
from autorep.training.price_search import build_search
from autorep.training.update import Update

SAVE_EVERY_SECONDS = 600.0
_NORM_SHARE = 0.05  # of the images of an epoch, before a validation
_MOST_SKIPPED = 3  # batches in a row; more are a divergence
# The last loss is that of a divergence from here on: so many times the lowest, or so large [nats].
_DIVERGED, _NO_LOSS = 10.0, 1e3


class Trainer:
    """Trains a model in place and keeps its run folder.

    Args:
        config: the run.
        model: on its device, with its `input_shape`; with gates where `config.gate` is set.
        objective: callable (logits, `Batch`) -> dict of parts with "loss".
        loaders: what `make_loaders` returns.
        payload: what identifies the model in a checkpoint (`describe_model`) and the configuration.
        folder: the run folder.
    """

    def __init__(self, config: RunConfig, model: nn.Module, objective: Callable[..., dict[str, Tensor]], loaders: Any,
                 payload: dict[str, Any], folder: RunFolder) -> None:
        self.config, self.model, self.objective, self.loaders = config, model, objective, loaders
        self.payload, self.folder = payload, folder
        self.device = loaders.train.device
        self.steps_per_epoch = loaders.train.steps_per_epoch
        self.phases = plan_phases(config, self.steps_per_epoch)
        self.num_steps = self.phases[-1].end
        self.step = config.start_epoch * self.steps_per_epoch
        search_steps = config.search_epochs * self.steps_per_epoch
        self.search = build_search(config, model, loaders, search_steps) if config.gate else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "half")
        self.update: Update | None = None
        self.best: dict[str, Any] = {}
        self.prices = trace_prices(model) if is_main() else None
        self.log = RunLog(None, 0, 0)
        self.interval = Interval(self.device)
        self.seconds_before = 0.0
        self._started = self._saved = time.monotonic()
        self._losses = self._compute_losses
        self._resumed: dict[str, Any] | None = None
        self._stop_requested = self._stop = False
        self._skipped = 0
        self.last_loss, self._lowest_loss = 0.0, math.inf  # means between log lines

    @property
    def diverged(self) -> bool:
        """Whether the loss ended far above its lowest within the budget, or above any that trains."""
        return not self.last_loss <= min(_DIVERGED * self._lowest_loss, _NO_LOSS)

    # ---- the loop, in three levels: run, phase, step

    def run(self) -> bool:
        """Train from the current step to the end; False when it was stopped early (time limit or signal)."""
        self.log = RunLog(self.folder if is_main() else None, self.step, self.num_steps)
        try:
            with stop_signals(self._request_stop):
                for phase in self.phases:
                    if self.step < phase.end and not self._stop:
                        self._run_phase(phase)
        finally:
            self.log.close()
        if self.step == self.num_steps and self.update and self.update.average:
            self.update.average.swap_()
        return self.step == self.num_steps

    def _run_phase(self, phase: Phase) -> None:
        self._enter(phase)
        for batch in self._batches(phase.end):
            self.interval.add(*self._train_step(phase, batch), len(batch.images) * world_size())
            self.step += 1
            stop, epoch_ends = self._should_stop(), self.step % self.steps_per_epoch == 0
            if stop or self.step == phase.end or self.step % self.config.print_freq == 0:
                self._log_interval(phase)
            if self.step == phase.end:
                self._leave(phase)
            if epoch_ends:
                self._validate(phase)
            if epoch_ends or stop or time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
                self.save()
            if stop:
                return

    def _batches(self, end: int) -> Iterator[Batch]:
        """The batches from the current step to step `end`, which ends an epoch."""
        first, start = divmod(self.step, self.steps_per_epoch)
        for epoch in range(first, end // self.steps_per_epoch):
            yield from map(Batch.of, self.loaders.train.batches(epoch, start if epoch == first else 0))

    def _train_step(self, phase: Phase, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Losses by part, and the number of flips in a search."""
        search = self.search if phase.name == "search" else None
        if search:
            search.before_step_(self.step, self.update.lookahead)
        self._set_learning_rates_(phase)
        # As a tensor: a compiled step would be compiled again for every other number. `full` fills it on the device.
        allowed = search and torch.full((), search.targets(self.step)[0], device=self.device)
        images = to_device(batch.images, self.device)
        parts = self._losses(batch._replace(images=images), allowed)
        try:
            self.update.step_(parts)
            self._skipped = 0
            flips = search and search.after_step_(self.step, self.update.lookahead)
        except FloatingPointError as error:
            where = grown_layer(self.model, images, precision=self.config.precision)
            self._skip_or_raise_(f"{error}; {where}")
            flips = None
        return {name: value.detach() for name, value in parts.items()}, flips

    def _skip_or_raise_(self, error: str) -> None:
        """Go on without a batch on which the quadratics overshot; batch norms forget what it made of their averages."""
        if self.search is None or self._skipped == _MOST_SKIPPED:
            raise FloatingPointError(f"step {self.step}: {error}; the weights were not updated and {self.folder} is as "
                                     "it was. Start again with another `ext` and a lower `optim.lr`, a lower "
                                     "`dapa.scale_x2` or a lower `optim.grad_clip`") from None
        self._skipped += 1
        self.log.progress(self.step, f"step {self.step} skipped: {error}")
        self.search.reestimate_norms_(self.step // self.steps_per_epoch)

    def _compute_losses(self, batch: Batch, allowed: Tensor | None) -> dict[str, Tensor]:
        with autocast(self.device, self.config.precision):
            logits = self.model(batch.images)
            parts = self.objective(logits, batch)
        if allowed is not None and (penalty := self.search.penalty(allowed)) is not None:
            parts |= {"budget": penalty, "loss": parts["loss"] + penalty}
        return parts

    def _set_learning_rates_(self, phase: Phase) -> None:
        config = self.config.optim
        warmup_steps = round(min(config.warmup_epochs * self.steps_per_epoch, phase.num_steps / 5))
        set_learning_rates_(self.update.optimizer, self.step - phase.start, phase.num_steps, warmup_steps,
                            self.steps_per_epoch, config)
        if phase.name == "search" and not self.search.trains_coefficients(self.step):
            for group in self.update.optimizer.param_groups:
                if group["name"] == "coefficients":
                    group["lr"] = 0.0

    # ---- phases

    def _enter(self, phase: Phase) -> None:
        state, self._resumed = self._resumed, None
        resumes = state is not None and state["phase"] == phase.name
        if self.search:
            self.search.enter_(starts=phase.name == "search" and not resumes)
        if phase.name == "finetune":
            self.search.project_()
            freeze_gates_(self.model)
        self.model.train()
        self._losses = compiled(self._compute_losses, self.device, self.config.compile)
        self.interval = Interval(self.device)
        averages = phase.name != "search" and self.config.optim.ema_decay > 0
        self.update = Update(self.model, self.config.optim, self.scaler, averages=averages)
        if resumes:
            self.update.load_state_dict(state)

    def _leave(self, phase: Phase) -> None:
        if phase.name == "search":
            self.search.project_()
        if self.search:
            with self.update.averaged():
                self.search.reestimate_norms_(self.step // self.steps_per_epoch)

    # ---- log, evaluate, save

    def _log_interval(self, phase: Phase) -> None:
        epoch = self.step / self.steps_per_epoch
        values = {"phase": phase.name, "epoch": round(epoch, 4), **self.interval.means(),
                  **{f"lr/{group['name']}": group["lr"] for group in self.update.optimizer.param_groups},
                  "images_per_second": self.interval.images_per_second()}
        self.interval = Interval(self.device)
        self.last_loss = values["loss"]
        # While ReLUs are dropped the loss rises, in a healthy search too.
        settled = phase.name != "search" or self.search.fits()
        self._lowest_loss = min(self._lowest_loss, self.last_loss) if settled else math.inf
        line = f"{phase.name} epoch {epoch:.2f} step {self.step}/{self.num_steps} loss {values['loss']:.4f}"
        if phase.name == "search":
            relus, (target, layers) = count_relus(self.model), self.search.targets(self.step - 1)
            if self.config.budget.relu_budget is not None:
                values["relu_target"] = target
            values |= {"relu_kept": relus.kept, "layers_with_relu": relus.layers_with_relu,
                       "relu_layers_target": layers, **score_quantiles(self.model),
                       **self.search.metrics(self.step - 1)}
            line += f" ReLUs {values['relu_kept']}/{self.search.num_relus} flips {values['flips']}"
        self.log.scalars(self.step, values)
        self.log.progress(self.step, f"{line} {values['images_per_second']:.0f} images/s")

    def _validate(self, phase: Phase) -> None:
        self.log.gates(self.step, self.model)
        if self.prices and self.config.gate:
            self.log.scalars(self.step, {"phase": phase.name, **self.prices.metrics()})
        if self.loaders.validation is None:
            return
        with self.update.averaged():
            if self.search and self.step < phase.end:  # at its end that has been done, with more images
                self.search.reestimate_norms_(self.step // self.steps_per_epoch, share=_NORM_SHARE)
            accuracy = evaluate(self.model, self.loaders.validation, precision=self.config.precision)
        self.log.scalars(self.step, {"phase": phase.name, "validation_top1": accuracy.top1,
                                     "validation_top5": accuracy.top5, "validation_loss": accuracy.loss})
        epoch = self.step // self.steps_per_epoch
        self.log.progress(self.step, f"epoch {epoch} validation {accuracy}")
        if (self.search is None or self.search.fits()) and accuracy.top1 > self.best.get("validation_top1", -1.0):
            self.best = {"validation_top1": accuracy.top1, "step": self.step}
            self._write(self.folder.best)

    def seconds(self) -> float:
        """Seconds of training, over all attempts."""
        return self.seconds_before + time.monotonic() - self._started

    def save(self) -> None:
        """Write last.pth.tar: all that resuming needs."""
        self._write(self.folder.last)
        self._saved = time.monotonic()

    def _write(self, path: Path) -> None:
        if not is_main():
            return
        phase = next(p for p in self.phases if self.step <= p.end)
        with self.update.averaged():
            state = {"phase": phase.name, **self.update.state_dict()}
            checkpoint.save(path, {
                **self.payload, "model": self.model.state_dict(), "state": state, "step": self.step,
                "num_steps": self.num_steps, "seconds": self.seconds(), "best": self.best,
                "search": self.search.state_dict() if self.search else {},
                "rng": checkpoint.rng_state(self.device)})

    def resume_(self, payload: dict[str, Any]) -> None:
        """Resume from a checkpoint of this run. On one process on the CPU the next step is bit for bit what it would
        have been; on a GPU, where sums have no fixed order, it is so up to rounding."""
        if payload["num_steps"] != self.num_steps or not 0 <= payload["step"] <= self.num_steps:
            raise ValueError(f"the checkpoint is from step {payload['step']} of {payload['num_steps']}, and this run "
                             f"has {self.num_steps} steps: the data set has changed, or the file is damaged. Start a "
                             "new run with `ext`=NAME")
        self.model.load_state_dict(payload["model"])
        self.scaler.load_state_dict(payload["state"]["scaler"])
        checkpoint.set_rng_state(payload["rng"], self.device)
        if rank() > 0:  # the file has the state of rank 0, and dropout differs between ranks
            torch.manual_seed(derived_seed(self.config.seed, payload["step"], rank()))
        self.step, self.seconds_before, self.best = payload["step"], payload["seconds"], payload["best"]
        if self.search:
            # Checkpoints of earlier versions hold no more than this of the search.
            self.search.load_state_dict(payload.get("search") or {"dropped_at_the_end": payload["projected"]})
        self._resumed = payload["state"]

    def _request_stop(self) -> None:
        self._stop_requested = True

    def _should_stop(self) -> bool:
        """The same answer on every rank, or some would wait for the others for ever.

        A signal may come while the ranks agree: it then counts at the next step.
        """
        limit = self.config.max_minutes
        late = limit is not None and time.monotonic() - self._started >= 60 * limit
        self._stop = any_rank(self._stop_requested or late)
        return self._stop
