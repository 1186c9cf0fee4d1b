"""Record a model on batches and fit the coefficients of its gates, on one process or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from autorep.config import DapaConfig
from autorep.dapa.fit import fit_coefficients_
from autorep.dapa.moments import Moments, on_cpu, record_moments
from autorep.data.batch import Batch
from autorep.machine.device import autocast
from autorep.machine.distributed import gather
from autorep.models.untouched import evaluating


@torch.no_grad()
def calibrate_(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], config: DapaConfig, *,
               precision: str = "full") -> None:
    """Fit every gate's coefficients to the activations that `batches` cause.

    The model runs in evaluation mode, so that batch-norm statistics stay as they are; every module keeps its own mode.

    Args:
        batches: images [N, C, H, W] on the model's device, alone or with their labels, as loaders yield them.

    Raises:
        ValueError: as `record`, or no batch; then no coefficient has changed.
    """
    fit_coefficients_(model, record(model, batches, precision=precision), config)


@torch.no_grad()
def record(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], *,
           precision: str = "full") -> dict[str, Moments]:
    """The moments of what every gate sees of `batches`, as in `calibrate_`, over all ranks and on the CPU.

    Raises:
        ValueError: they are not finite.
    """
    with evaluating(model), record_moments(model) as moments:
        for batch in batches:
            images = batch if isinstance(batch, Tensor) else Batch.of(batch).images
            with autocast(images.device, precision):
                model(images)
    merged = _merged(on_cpu(moments))
    for name, found in merged.items():  # in the order in which they ran
        if not (found.mean + found.var).isfinite().all():
            raise ValueError(f"the activations that {name} sees of the images for calibration are not finite, the "
                             "first that are not: look for NaN in the images and in the weights, or start again with "
                             "a lower `optim.lr` or `dapa.scale_x2`")
    return merged


def _merged(moments: dict[str, Moments]) -> dict[str, Moments]:
    """The moments over all ranks, merged in rank order so that every rank gets the same bits.

    They are gathered from the CPU, since a tensor of a GPU arrives on the GPU of its sender.
    """
    merged: dict[str, Moments] = {}
    for part in gather(moments):
        for name, value in part.items():
            merged[name] = merged[name].merge(value) if name in merged else value
    return merged
