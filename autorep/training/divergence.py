"""Where a training that diverges has grown."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from autorep.convert.hooks import watching_all
from autorep.machine.device import autocast
from autorep.models.untouched import untouched


@torch.no_grad()
def grown_layer(model: nn.Module, images: Tensor, *, precision: str = "full") -> str:
    """The first layer whose activations are not finite, or the one with the largest, in words.

    The model runs once more, in the mode that it is in, and stays as it was.

    Args:
        images: [N, C, H, W] on the model's device.
    """
    peaks = {"the images": images.abs().max().item()}

    def watch(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                peaks[name] = output.abs().max().item()

        module.register_forward_hook(hook)

    with untouched(model), watching_all(), autocast(images.device, precision):
        for name, module in model.named_modules():
            if not module._modules:
                watch(name, module)
        model(images)
    lost = next((name for name, peak in peaks.items() if not math.isfinite(peak)), None)
    if lost is not None:
        return f"the first activations that are not finite are those of {lost}"
    largest = max(peaks, key=peaks.get)
    return f"the largest activations, {peaks[largest]:.3g}, are those of {largest}"
