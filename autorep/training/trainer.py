"""One loop for baseline, search and fine-tuning.

batch -> forward -> objective -> update (backward, clip, optimiser) -> masks -> log -> maybe evaluate, save.
All that varies with time is a pure function of the step, so a checkpoint holds the step, the states and the RNGs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import RunConfig
from autorep.convert.swap import freeze_gates_
from autorep.dapa.calibrate import calibrate_
from autorep.data.plan import derived_seed
from autorep.gates.gated_relu import iter_gates
from autorep.machine.compilation import compiled
from autorep.machine.device import autocast, to_device
from autorep.machine.distributed import any_rank, buffers_of_main, is_main, rank, world_size
from autorep.machine.stopping import stop_signals
from autorep.runs import checkpoint
from autorep.runs.log import Interval, RunLog, score_quantiles
from autorep.search.budget import budget_penalty, targets_at, within_budget
from autorep.search.masks import project_to_budget_, update_masks_
from autorep.search.price import trace_costs
from autorep.search.relu_count import count_relus
from autorep.search.saliency import init_scores_
from autorep.training.accuracy import evaluate
from autorep.training.optim import set_learning_rates_
from autorep.training.phases import Phase, plan_phases
from autorep.training.update import Update

SAVE_EVERY_SECONDS = 600.0


class Trainer:
    """Trains a model in place and keeps its run folder.

    Args:
        config: the run.
        model: on its device, with its `input_shape`; with gates where `config.gate` is set.
        objective: callable (logits, images, labels, whatever else the batches hold) -> dict of parts with "loss".
        loaders: what `make_loaders` returns.
        payload: what identifies the model in a checkpoint (`describe_model`) and the configuration.
        folder: the run folder.
    """

    def __init__(self, config: RunConfig, model: nn.Module, objective: Callable[..., dict[str, Tensor]], loaders: Any,
                 payload: dict[str, Any], folder: Path) -> None:
        self.config, self.model, self.objective, self.loaders = config, model, objective, loaders
        self.payload, self.folder = payload, folder
        self.device = loaders.train.device
        self.steps_per_epoch = loaders.train.steps_per_epoch
        self.phases = plan_phases(config, self.steps_per_epoch)
        self.num_steps = self.phases[-1].end
        self.step = config.start_epoch * self.steps_per_epoch
        gates = [gate for _, gate in iter_gates(model)]
        self.num_relus, self.num_layers = sum(gate.num_total for gate in gates), len(gates)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "half")
        self.best: dict[str, Any] = {}
        self.projected = 0
        self.seconds_before = 0.0
        self.update: Update | None = None
        self._resumed: dict[str, Any] | None = None
        self._stop = False

    # ---- the loop, in three levels: run, phase, step

    def run(self) -> bool:
        """Train from the current step to the end; False when it was stopped early (time limit or signal)."""
        self._started = self._saved = time.monotonic()
        self.log = RunLog(self.folder if is_main() else None, self.step, self.num_steps)
        self.costs = trace_costs(self.model) if is_main() else None
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
        interval = Interval(self.device)
        epoch, start = divmod(self.step, self.steps_per_epoch)
        while self.step < phase.end and not self._stop:
            for images, *targets in self.loaders.train.batches(epoch, start):
                parts, flips = self._train_step(phase, images, *targets)
                self.step += 1
                interval.add(parts, flips, len(images) * world_size())
                stop = self._should_stop()
                if self.step % self.config.print_freq == 0 or self.step == phase.end or stop:
                    self._log_interval(phase, interval)
                    interval = Interval(self.device)
                if stop:
                    break
                # Not at the end of an epoch, whose validation and projection a resumed run would skip.
                if self.step % self.steps_per_epoch and time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
                    self.save()
            if self.step == phase.end:
                self._leave(phase)
            if self.step % self.steps_per_epoch == 0:
                self._validate(phase)
            self.save()
            epoch, start = epoch + 1, 0

    def _train_step(self, phase: Phase, images: Tensor, *targets: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        config, step = self.config, self.step - phase.start
        if step <= self._refit_until(phase) and step % config.dapa.refit_every == 0 < step:
            self._refit_coefficients_()
        self._set_learning_rates_(phase, step)
        target, layers = self._targets(phase) if phase.name == "search" else (None, None)
        # As a tensor: for every other number a compiled step would be compiled anew. `full` fills it on the device.
        target_tensor = None if target is None else torch.full((), target, device=self.device)
        parts = self._losses(to_device(images, self.device), target_tensor, *targets)
        try:
            self.update.step_(parts)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {self.step}: {error}; the weights were not updated and "
                                     f"{self.folder / 'last.pth.tar'} is as it was: lower --w_lr, or bound the "
                                     "quadratics with --clip_x2_bool --clip_x2 or --w_grad_clip") from None
        flips = None if target is None else update_masks_(self.model, target, layers)
        return {name: value.detach() for name, value in parts.items()}, flips

    def _targets(self, phase: Phase) -> tuple[float, int]:
        return targets_at(self.step - phase.start, phase.num_steps, self.num_relus, self.num_layers, self.config.budget)

    def _compute_losses(self, images: Tensor, relu_budget: Tensor | None, *targets: Tensor) -> dict[str, Tensor]:
        with autocast(self.device, self.config.precision):
            logits = self.model(images)
            parts = self.objective(logits, images, *targets)
        if relu_budget is not None:
            parts["budget"] = budget_penalty(self.model, relu_budget, self.config.budget.penalty_weight)
            parts["loss"] = parts["loss"] + parts["budget"]
        return parts

    # ---- phases

    def _enter(self, phase: Phase) -> None:
        if phase.name == "finetune":
            self._project_()
            freeze_gates_(self.model)
        self.model.train()
        self._losses = compiled(self._compute_losses, self.device, self.config.compile)
        state, self._resumed = self._resumed, None
        goes_on = state is not None and state["phase"] == phase.name
        if phase.name == "search" and not (goes_on or self.config.checkpoint_path):
            self._start_search_()
        averages = phase.name != "search" and self.config.optim.ema_decay > 0
        self.update = Update(self.model, self.config.optim, self.scaler, averages=averages)
        if goes_on:
            self.update.load_state_dict(state)

    def _start_search_(self) -> None:
        if self.config.dapa:
            self._refit_coefficients_()
        if self.config.gate.score_init == "saliency":
            with buffers_of_main(self.model):
                init_scores_(self.model, self.loaders.train.batches(0))

    def _leave(self, phase: Phase) -> None:
        if phase.name == "search":
            self._project_()

    def _project_(self) -> None:
        dropped = project_to_budget_(self.model, self.config.budget.relu_budget, self.config.budget.relu_layers)
        self.projected += dropped
        if is_main() and dropped:
            print(f"{dropped} kept ReLUs were dropped to fit the budget", flush=True)

    def _set_learning_rates_(self, phase: Phase, step: int) -> None:
        config = self.config.optim
        warmup_steps = round(min(config.warmup_epochs * self.steps_per_epoch, phase.num_steps / 5))
        set_learning_rates_(self.update.optimizer, step, phase.num_steps, warmup_steps, config)
        # While coefficients are still refitted they are not trained: a refit would throw the training away.
        if step < self._refit_until(phase):
            for group in self.update.optimizer.param_groups:
                if group["name"] == "coefficients":
                    group["lr"] = 0.0

    def _refit_until(self, phase: Phase) -> int:
        """The last step of a phase that refits the coefficients; -1 where none does."""
        if phase.name != "search" or self.config.dapa is None or self.config.checkpoint_path:
            return -1
        return min(self.config.dapa.refit_until, phase.num_steps // 2)

    def _refit_coefficients_(self) -> None:
        images = (to_device(images, self.device) for images, _ in self.loaders.calibration.batches(0))
        calibration = islice(images, self.config.dapa.calibration_batches)
        with buffers_of_main(self.model):
            calibrate_(self.model, calibration, self.config.dapa, precision=self.config.precision)
        if self.update and self.update.lookahead:
            self.update.lookahead.reset_([gate.coefficients for _, gate in iter_gates(self.model)])

    # ---- log, evaluate, save

    def _log_interval(self, phase: Phase, interval: Interval) -> None:
        epoch = self.step / self.steps_per_epoch
        values = {"phase": phase.name, "epoch": round(epoch, 4), **interval.means(),
                  **{f"lr/{group['name']}": group["lr"] for group in self.update.optimizer.param_groups},
                  "images_per_second": interval.images_per_second()}
        line = f"{phase.name} epoch {epoch:.2f} step {self.step}/{self.num_steps} loss {values['loss']:.4f}"
        if phase.name == "search":
            relus, (target, layers) = count_relus(self.model), self._targets(phase)
            values |= {"relu_kept": relus.kept, "relu_target": target, "layers_with_relu": relus.layers_with_relu,
                       "relu_layers_target": layers, **score_quantiles(self.model)}
            line += f" ReLUs {values['relu_kept']}/{self.num_relus} flips {values['flips']}"
        self.log.scalars(self.step, values)
        self.log.progress(self.step, f"{line} {values['images_per_second']:.0f} images/s")

    def _validate(self, phase: Phase) -> None:
        self.log.gates(self.step, self.model)
        if self.costs and self.config.gate:
            self.log.scalars(self.step, {"phase": phase.name, **self.costs.metrics()})
        if self.loaders.validation is None:
            return
        with self.update.averaged():
            accuracy = evaluate(self.model, self.loaders.validation, precision=self.config.precision)
        self.log.scalars(self.step, {"phase": phase.name, "validation_top1": accuracy.top1,
                                     "validation_top5": accuracy.top5, "validation_loss": accuracy.loss})
        epoch = self.step // self.steps_per_epoch
        self.log.progress(self.step, f"epoch {epoch} validation top-1 {accuracy.top1:.2f} %")
        if within_budget(self.model, self.config.budget) and accuracy.top1 > self.best.get("validation_top1", -1.0):
            self.best = {"validation_top1": accuracy.top1, "step": self.step}
            self._write("best.pth.tar")

    def seconds(self) -> float:
        """Seconds of training, over all attempts."""
        return self.seconds_before + time.monotonic() - self._started

    def save(self) -> None:
        """Write last.pth.tar: all that resuming needs."""
        self._write("last.pth.tar")
        self._saved = time.monotonic()

    def _write(self, name: str) -> None:
        if not is_main():
            return
        phase = next(p for p in self.phases if self.step <= p.end)
        with self.update.averaged():
            state = {"phase": phase.name, **self.update.state_dict()}
            checkpoint.save(self.folder / name, {
                **self.payload, "model": self.model.state_dict(), "state": state, "step": self.step,
                "num_steps": self.num_steps, "seconds": self.seconds(), "best": self.best,
                "projected": self.projected, "rng": checkpoint.rng_state(self.device)})

    def resume_(self, payload: dict[str, Any]) -> None:
        """Resume from a checkpoint of this run. On one process on the CPU the next step is bit for bit what it would
        have been; on a GPU, where sums have no fixed order, it is so up to rounding."""
        self.model.load_state_dict(payload["model"])
        self.scaler.load_state_dict(payload["state"]["scaler"])
        checkpoint.set_rng_state(payload["rng"], self.device)
        if rank() > 0:  # the file has the state of rank 0, and dropout differs between ranks
            torch.manual_seed(derived_seed(self.config.seed, payload["step"], rank()))
        self.step, self.seconds_before = payload["step"], payload["seconds"]
        self.best, self.projected = payload["best"], payload["projected"]
        self._resumed = payload["state"]

    def _request_stop(self) -> None:
        self._stop = True

    def _should_stop(self) -> bool:
        """The same answer on every rank, or some would wait for the others for ever."""
        limit = self.config.max_minutes
        late = limit is not None and time.monotonic() - self._started >= 60 * limit
        self._stop = any_rank(self._stop or late)
        return self._stop
