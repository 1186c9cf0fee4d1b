"""One update: gradients over all ranks, finite check, clip, optimiser, and what follows: Lookahead, weight averages."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import OptimConfig
from autorep.machine.distributed import any_rank, average_gradients_, require_same_gradients
from autorep.training.averaging import Lookahead, WeightAverage
from autorep.training.optim import build_optimizer


class Update:
    """Updates the trainable parameters of a model from their gradients, for one phase of a run.

    Args:
        scaler: of the loss; all phases share it.
        averages: whether the weights are averaged, with `config.ema_decay`.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, scaler: torch.amp.GradScaler, *, averages: bool) -> None:
        self.stepped = False
        self.scaler = scaler
        bound = config.grad_clip or float("inf")
        # Clip scores separately: their gradients are on a different scale. Clip both, because a batch that makes the
        # quadratics overshoot would otherwise fill Adam's second moments and stop the masks for a thousand steps.
        self.bounds = {("weights", "coefficients"): bound, ("scores",): bound if config.clip_scores else float("inf")}
        self.optimizer = build_optimizer(model, config)
        self.lookahead = Lookahead(self.optimizer) if config.lookahead else None
        self.average = WeightAverage(model, config.ema_decay) if averages else None

    def step_(self, parts: dict[str, Tensor]) -> None:
        """Take the gradients of `parts["loss"]`, scaled, and move. With fp16 the scaler skips those that overflow.

        Raises:
            FloatingPointError: loss or gradients are not finite; nothing has moved.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(parts["loss"]).backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if not self.stepped:
            require_same_gradients(parameters)
            self.stepped = True
        average_gradients_(parameters)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip_()
        watched = parts["loss"].detach() if self.scaler.is_enabled() else parts["loss"].detach() + norm
        if any_rank(not torch.isfinite(watched)):  # on all ranks, or the others would continue
            values = ", ".join(f"{name}={value.item():.6g}" for name, value in parts.items())
            raise FloatingPointError(f"not finite ({values}, gradient norm {norm.item():.6g})")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.lookahead:
            self.lookahead.step_()
        if self.average:
            self.average.step_()

    def _clip_(self) -> Tensor:
        norms = []
        for names, bound in self.bounds.items():
            params = [p for group in self.optimizer.param_groups if group["name"] in names for p in group["params"]]
            norms.append(nn.utils.clip_grad_norm_(params, bound))
        return sum(norms)

    def averaged(self) -> contextlib.AbstractContextManager:
        """Within the block the model is the result: the average of the weights, where there is one."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Call it within `averaged`."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                "lookahead": self.lookahead.state_dict() if self.lookahead else None,
                "average": self.average.state_dict() if self.average else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for a model that holds the average; the scaler belongs to the run."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lookahead:
            self.lookahead.load_state_dict(state["lookahead"])
        if self.average:
            self.average.load_state_dict(state["average"])
