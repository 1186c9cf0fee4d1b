"""Batch-norm statistics of the network as it is, robust against batches on which its quadratics overshoot."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autorep.machine.device import autocast
from autorep.models.untouched import evaluating


@torch.no_grad()
def reestimate_norms_(model: nn.Module, batches: Iterable[Tensor], *, precision: str = "full") -> None:
    """Set the running statistics of every batch norm in training mode to the median over `batches` of their own ones.

    A residual stream of quadratics can overshoot on a rare image. The running averages then carry the variance of that
    batch for a hundred steps, and a network that ends there is useless in evaluation. The median ignores such batches.
    Batch norms that are frozen (in evaluation mode) and those without running statistics stay as they are.

    Args:
        batches: images [N, C, H, W] on the model's device; no batches, no change.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    found: list[list[tuple[Tensor, Tensor]]] = []
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running statistics become those of the batch
        try:
            for images in batches:
                for norm in norms:  # 0 times what is not finite would stay
                    norm.running_mean.zero_()
                    norm.running_var.zero_()
                with autocast(images.device, precision):
                    model(images)
                found.append([(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms])
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    for norm, values in zip(norms, zip(*found, strict=True), strict=False):
        norm.running_mean.copy_(_median([mean for mean, _ in values]))
        norm.running_var.copy_(_median([var for _, var in values]))


def _median(values: list[Tensor]) -> Tensor:
    """The median over the list, without what is not finite."""
    stacked = torch.stack(values)
    return stacked.where(stacked.isfinite(), torch.nan).nanmedian(0).values
