"""What follows the weights from step to step: Lookahead, and their moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


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
        """Call it within `applied`: the weights that training continues with, and the update count."""
        return {"current": self.average, "num_steps": self.num_steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`, for a model that holds the average."""
        self.num_steps = state["num_steps"]
        for average, current, saved in zip(self.average, self.current, state["current"], strict=True):
            average.copy_(current)
            current.copy_(saved)
