"""Augmentation and normalisation of whole batches, on whichever device holds them.

Random numbers are drawn on the CPU for a whole batch at a time, so that all devices and any number of ranks see the
same. N images, H, W, C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class CropFlip(NamedTuple):
    """Per image: the (row, column) of its crop in the padded image, int64 [N, 2]; whether to mirror it, bool [N]."""

    corners: Tensor
    mirrored: Tensor


def draw_corners(num_images: int, padding: int, generator: torch.Generator) -> Tensor:
    """Uniform crop corners in 0..2 * padding, int64 [num_images, 2]."""
    return torch.randint(0, 2 * padding + 1, (num_images, 2), generator=generator)


def crop_flip(images: Tensor, padding: int, drawn: CropFlip) -> Tensor:
    """Crop `images` [N, H, W, C] out of their zero-padded selves, then mirror, by one gather for the batch."""
    num_images, height, width, _ = images.shape
    corners, mirrored = (x.to(images.device, non_blocking=True) for x in drawn)
    rows_NH = corners[:, :1] + torch.arange(height, device=images.device)
    columns_W = torch.arange(width, device=images.device)
    columns_NW = corners[:, 1:] + torch.where(mirrored[:, None], columns_W.flip(0), columns_W)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    index_N = torch.arange(num_images, device=images.device)
    return padded[index_N[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]


class Normaliser:
    """Makes floats of bytes: (pixel / 255 - mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        # On the device once: a copy per batch would make the host wait for it.
        self.mean_C, self.std_C = (255 * torch.tensor(x, dtype=torch.float32, device=device) for x in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, H, W, C] to float32 [N, C, H, W], in the same memory order: channels last."""
        return images.sub(self.mean_C).div_(self.std_C).permute(0, 3, 1, 2)
