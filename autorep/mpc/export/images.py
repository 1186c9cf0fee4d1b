"""Images of a data set as its network takes them, whether the set is held in memory or read from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from autorep.data.augment import Normaliser
from autorep.data.catalog import DatasetInfo
from autorep.data.datasets import read_arrays, read_lists
from autorep.data.streaming import StreamingLoader

_BATCH = 64


def read_images(info: DatasetInfo, data_path: str | Path | None,
                choose: Mapping[str, Callable[[int], np.ndarray]]) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Split -> normalised images [N, C, H, W] as evaluation sees them, and their labels int64 [N].

    Args:
        choose: split -> callable that gives the indices [N] of the images to read, from how many there are.

    Raises:
        FileNotFoundError, ValueError: as `read_arrays`.
    """
    splits = (read_lists if info.streaming else read_arrays)(info, data_path)
    found = {}
    for name, chosen in choose.items():
        split = splits[name].subset(chosen(len(splits[name])))
        if info.streaming:
            loader = StreamingLoader(split, info, _BATCH, train=False, device="cpu", seed=0, workers=0)
            images = torch.cat([batch.images for batch in loader.batches(0)])
        else:
            images = Normaliser(info.mean, info.std)(torch.from_numpy(split.images))
        found[name] = images.contiguous(), split.labels
    return found
