"""Batches of a data set, and the loaders that a run needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from autorep.data.arrays import ArraySet, stratified_indices
from autorep.data.augment import CropFlip, crop_flip, draw_corners
from autorep.data.batch import Batch
from autorep.data.catalog import DatasetInfo
from autorep.data.datasets import dataset_info, read_arrays, read_lists
from autorep.data.folders import ImageList
from autorep.data.plan import BatchPlan, PlannedLoader, seeded_generator
from autorep.data.streaming import StreamingLoader


class ArrayLoader(PlannedLoader):
    """Batches of an `ArraySet` whose bytes are all held on the device.

    Every batch is a pure function of (seed, epoch, step), so a run can be resumed anywhere without stored state.
    All ranks draw the randomness of the whole batch and take their own slice of it: concatenating the ranks gives what
    one process would see. Raises ValueError as `BatchPlan` does.
    """

    def __init__(
        self,
        arrays: ArraySet,
        info: DatasetInfo,
        batch_size: int,
        *,
        train: bool,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        augment: bool = True,
    ) -> None:
        super().__init__(BatchPlan(len(arrays), batch_size, train, seed, rank, world_size), info, augment, device)
        self.images = torch.from_numpy(arrays.images).to(self.device)
        self.labels = torch.from_numpy(arrays.labels).to(self.device)
        self.teacher_logits: Tensor | None = None

    def add_teacher_logits_(self, logits: Tensor) -> None:
        """From now on batches hold the rows of `logits` [num_images, K] that belong to their images."""
        self.teacher_logits = logits

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches on the device, from step `start` on.

        In evaluation a rank gets no batch where its slice of a last, small one is empty.
        """
        order, mirrored = self.plan.order(epoch), self.mirrored(epoch)
        batches = (self._batch(order[self.plan.global_slice(step)], mirrored, epoch, step)
                   for step in self.plan.steps(start))
        return (batch for batch in batches if len(batch.labels))

    def _batch(self, indices: Tensor, mirrored: Tensor, epoch: int, step: int) -> Batch:
        mine = self.plan.rank_slice(len(indices))
        chosen = indices[mine].to(self.device, non_blocking=True)
        images = self.images[chosen]
        if self.augments:
            padding = self.info.crop_padding
            corners = draw_corners(len(indices), padding, seeded_generator(self.plan.seed, epoch, 1 + step))
            images = crop_flip(images, padding, CropFlip(corners[mine], mirrored[indices[mine]]))
        logits = None if self.teacher_logits is None else self.teacher_logits[chosen]
        return Batch(self.normalise(images), self.labels[chosen], logits)


class Loaders(NamedTuple):
    """The loaders of a run. `calibration` goes over the training part without augmentation; `test` only reports."""

    info: DatasetInfo
    train: ArrayLoader | StreamingLoader
    validation: ArrayLoader | StreamingLoader | None
    test: ArrayLoader | StreamingLoader
    calibration: ArrayLoader | StreamingLoader


def make_loaders(
    name: str,
    data_path: str | Path | None,
    batch_size: int,
    *,
    device: torch.device | str,
    seed: int,
    validation_fraction: float = 0.1,
    workers: int = 2,
    rank: int = 0,
    world_size: int = 1,
    augment: bool = True,
) -> Loaders:
    """The loaders of a data set, held in memory, or streamed by `workers` processes if it is too large.

    Validation is a stratified cut of the training set that does not depend on `seed`, so that a teacher and its
    student share it; None where the fraction is 0. Raises as `dataset_info`, `read_arrays` and `BatchPlan` do.
    """
    info = dataset_info(name, data_path)
    splits = read_lists(info, data_path) if info.streaming else read_arrays(info, data_path)
    kept, held_out = stratified_indices(splits["train"].labels, validation_fraction)

    def loader(images: ArraySet | ImageList, train: bool) -> ArrayLoader | StreamingLoader:
        common = {"train": train, "device": device, "seed": seed, "rank": rank, "world_size": world_size,
                  "augment": augment}
        if info.streaming:
            return StreamingLoader(images, info, batch_size, workers=workers, **common)
        return ArrayLoader(images, info, batch_size, **common)

    train = loader(splits["train"].subset(kept), train=True)
    validation = loader(splits["train"].subset(held_out), train=False) if len(held_out) else None
    return Loaders(info, train, validation, loader(splits["test"], train=False), train.without_augmentation())
