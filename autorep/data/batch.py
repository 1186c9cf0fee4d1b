"""What a loader yields. N images, C, H, W, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images float32 [N, C, H, W], labels int64 [N] and, where a loader keeps them, teacher logits float32 [N, K].

    Our loaders yield images with channels last in memory, the order in which convolutions are fastest.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None

    @classmethod
    def of(cls, batch: Sequence[Tensor]) -> Batch:
        """The batch of any loader: plain (images, labels) get their names; more than three parts are cut off."""
        return cls(*batch[:3])
