"""Parameter groups, optimisers, Lookahead, weight averaging, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import pytorch_warmup
import torch
from torch import Tensor, nn

from autorep.config import OptimConfig
from autorep.gates.gated_relu import iter_gates

# A quadratic feeds its own growth through the residual stream, so coefficients move more slowly than weights.
_COEFFICIENT_RATE = 0.1
_FIRST_CYCLES = 7  # 1 + 2 + 4: three cosine cycles, each twice as long as the one before, fill a run


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """The groups "weights" (with weight decay), "coefficients" and "scores" (without); empty and frozen ones left out.

    Each group carries its `name` and its `base_lr`.
    """
    scores = {id(gate.score): gate.score for _, gate in iter_gates(model)}
    coefficients = {id(gate.coefficients): gate.coefficients for _, gate in iter_gates(model)}
    own = scores | coefficients
    weights = [p for p in model.parameters() if id(p) not in own]
    table = [("weights", weights, config.lr, config.weight_decay),
             ("coefficients", coefficients.values(), _COEFFICIENT_RATE * config.lr, 0.0),
             ("scores", scores.values(), config.score_lr, 0.0)]
    groups = [{"name": name, "params": [p for p in params if p.requires_grad], "base_lr": lr, "weight_decay": decay}
              for name, params, lr, decay in table]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with (Nesterov's) momentum or Adam over `parameter_groups`."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.Adam(groups, lr=config.lr)


def lr_factor(step: int, num_steps: int, schedule: str, floor: float) -> float:
    """Learning rate at `step` of `num_steps` as a fraction of the base rate, before warm-up; from 1 down to `floor`.

    "cosine" and "cosine_finetune" fall once; "cosine_rst" restarts (SGDR, Loshchilov & Hutter 2017, equation 5).
    """
    progress = min(1.0, step / max(1, num_steps))
    if schedule == "cosine_rst":
        position = progress * _FIRST_CYCLES + 1
        cycle = 2 ** min(2, int(math.log2(position)))
        progress = min(1.0, (position - cycle) / cycle)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rates_(optimizer: torch.optim.Optimizer, step: int, num_steps: int, warmup_steps: int,
                        config: OptimConfig) -> None:
    """Set every group's learning rate for `step`; a pure function of its arguments, so only the step is saved."""
    factor = lr_factor(step, num_steps, config.schedule, config.lr_min / config.lr)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    if warmup_steps > 0 and config.schedule != "cosine_finetune":
        pytorch_warmup.LinearWarmup(optimizer, warmup_steps, last_step=step - 1)  # dampens for `step` at birth


class Lookahead:
    """Lookahead (Zhang et al. 2019): every `every` steps the slow weights move by `alpha` towards the fast ones."""

    def __init__(self, optimizer: torch.optim.Optimizer, every: int = 5, alpha: float = 0.5) -> None:
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.slow = [p.detach().clone() for p in self.params]
        self.every, self.alpha, self.num_steps = every, alpha, 0

    @torch.no_grad()
    def step_(self) -> None:
        """To be called after each optimiser step."""
        self.num_steps += 1
        if self.num_steps % self.every == 0:
            for slow, fast in zip(self.slow, self.params, strict=True):
                fast.copy_(slow.lerp_(fast, self.alpha))

    @torch.no_grad()
    def reset_(self, params: list[Tensor]) -> None:
        """Take these parameters as they are now: something other than the optimiser has set them."""
        chosen = {id(p) for p in params}
        for slow, fast in zip(self.slow, self.params, strict=True):
            if id(fast) in chosen:
                slow.copy_(fast)

    def state_dict(self) -> dict:
        """The slow weights and the step count."""
        return {"slow": self.slow, "num_steps": self.num_steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self.num_steps = state["num_steps"]
        for slow, saved in zip(self.slow, state["slow"], strict=True):
            slow.copy_(saved)


class WeightAverage:
    """Exponential moving average of all weights and of the batch-norm statistics (Polyak & Juditsky 1992).

    At update t = 0, 1, ... the decay is min(decay, (1 + t) / (10 + t)), so that the start is soon forgotten
    (tf.train.ExponentialMovingAverage with `num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.current = [t.detach() for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()]
        self.average = [t.clone() for t in self.current]
        self.decay, self.num_steps = decay, 0

    @torch.no_grad()
    def step_(self) -> None:
        """To be called after each optimiser step."""
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        self.num_steps += 1
        torch._foreach_lerp_(self.average, self.current, 1 - decay)

    @torch.no_grad()
    def swap_(self) -> None:
        """The model takes the average, and the average what the model had; twice, and all is as before."""
        for average, current in zip(self.average, self.current, strict=True):
            held = current.clone()
            current.copy_(average)
            average.copy_(held)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the average."""
        self.swap_()
        try:
            yield
        finally:
            self.swap_()

    def state_dict(self) -> dict:
        """To be taken within `applied`: what training goes on with, and the update count."""
        return {"current": self.average, "num_steps": self.num_steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, for a model that holds the average."""
        self.num_steps = state["num_steps"]
        for average, current, saved in zip(self.average, self.current, state["current"], strict=True):
            average.copy_(current)
            current.copy_(saved)
