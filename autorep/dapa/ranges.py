"""The range of activations that polynomials see while a network trains."""

from __future__ import annotations

import torch
from torch import nn

from autorep.config import DapaConfig
from autorep.dapa.moments import Moments
from autorep.gates.polynomial_sigmoid import iter_fitted

_PULL = 0.01  # weight of the penalty on (excess / standard deviation)^2 / 2, a pixel and image


@torch.no_grad()
def set_ranges_(model: nn.Module, moments: dict[str, Moments], config: DapaConfig, images_per_step: int) -> None:
    """Give every gate and polynomial sigmoid the range of what it sees: `range_width` deviations around each mean.

    In training mode the polynomials of dropped pixels see no value beyond it, and such values are pulled back. A
    residual stream of quadratics squares in every layer what overshoots: without the range one image in thousands
    spoils the statistics and the gradient of its whole batch, and now and then the network.

    Args:
        images_per_step: of one process, over which its loss is a mean.
    """
    for name, gate in iter_fitted(model):
        found = moments[name]
        std = found.var.clamp_min(config.var_min).sqrt()
        half, pull = config.range_width * std, _PULL / (images_per_step * std**2)
        range_3C = torch.stack([found.mean - half, found.mean + half, pull])
        own = gate.coefficients
        gate.range_3C = range_3C.to(own.device, own.dtype, non_blocking=True) if config.range_width else None
