"""Which images make up which batch: a pure function of (seed, epoch, step), the same for any number of ranks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autorep.data.augment import Normaliser
from autorep.data.catalog import DatasetInfo


def seeded_generator(seed: int, epoch: int, draw: int) -> torch.Generator:
    """A CPU generator for draw number `draw` of an epoch; draw 0 is the order of the images."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch, draw))


def derived_seed(*keys: int) -> int:
    """A 64-bit seed from whole numbers, none negative; unlike a sum it differs between neighbouring runs and epochs."""
    # The length goes in too, because SeedSequence does not tell (1, 2) from (1, 2, 0).
    return int(np.random.SeedSequence([len(keys), *keys]).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class BatchPlan:
    """Cuts `num_images` into global batches of `batch_size`, and each of these into one contiguous slice per rank.

    Training shuffles every epoch and drops the last partial batch, unless there are fewer images than one batch: then
    that is one batch of all. Evaluation keeps the order and every image.
    Raises ValueError for sizes that do not fit.
    """

    num_images: int
    batch_size: int
    train: bool
    seed: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"invalid batch size {self.batch_size}: expected 1 or more")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"invalid rank {self.rank}: expected 0 to {self.world_size - 1}")
        if self.train and self.batch_size % self.world_size:
            raise ValueError(
                f"invalid batch size {self.batch_size}: expected a multiple of the {self.world_size} ranks; "
                f"use {self.batch_size // self.world_size * self.world_size or self.world_size}"
            )
        if self.train and self.num_images < self.world_size:
            raise ValueError(f"{self.num_images} training images are fewer than {self.world_size} ranks; use fewer")

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches, at least 1 unless there are no images."""
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole + (rest > 0 and (whole == 0 or not self.train))

    def order(self, epoch: int) -> Tensor:
        """Image numbers of the epoch, int64 [num_images]."""
        if not self.train:
            return torch.arange(self.num_images)
        return torch.randperm(self.num_images, generator=seeded_generator(self.seed, epoch, 0))

    def steps(self, start: int) -> range:
        """The steps of an epoch from `start` on. Raises ValueError for a start outside the epoch."""
        if not 0 <= start <= self.steps_per_epoch:
            raise ValueError(f"invalid start step {start}: expected 0 to {self.steps_per_epoch}")
        return range(start, self.steps_per_epoch)

    def global_slice(self, step: int) -> slice:
        """The part of the epoch's order that makes up the whole batch of a step."""
        return slice(step * self.batch_size, min((step + 1) * self.batch_size, self.num_images))

    def rank_slice(self, num_in_batch: int) -> slice:
        """This rank's part of a global batch; uneven where `num_in_batch` does not divide, empty if it is too small."""
        bounds = [num_in_batch * r // self.world_size for r in (self.rank, self.rank + 1)]
        return slice(*bounds)


class PlannedLoader:
    """What loaders have in common: their batches follow a plan."""

    def __init__(self, plan: BatchPlan, info: DatasetInfo, augment: bool, device: torch.device | str) -> None:
        self.plan, self.info, self.augment, self.device = plan, info, augment, torch.device(device)
        self.normalise = Normaliser(info.mean, info.std, self.device)

    @property
    def augments(self) -> bool:
        """Whether images are cropped and mirrored."""
        return self.plan.train and self.augment

    def mirrored(self, epoch: int) -> Tensor:
        """Which images an epoch shows mirrored, bool [num_images]: a random half, in the next epoch the others.

        Every two epochs then show each image both ways, which a coin per image does not (Jordan 2024, "94% on CIFAR-10
        in 3.29 seconds on a single GPU": alternating flip).
        """
        if not (self.augments and self.info.horizontal_flip):
            return torch.zeros(self.num_images, dtype=torch.bool)
        generator = torch.Generator().manual_seed(derived_seed(self.plan.seed))
        return (torch.rand(self.num_images, generator=generator) < 0.5) ^ bool(epoch % 2)

    @property
    def num_images(self) -> int:
        """Images of the whole set, over all ranks."""
        return self.plan.num_images

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch."""
        return self.plan.steps_per_epoch

    def indices(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Numbers int64 [n] of this rank's images in each batch from step `start` on; empty ones are left out."""
        order = self.plan.order(epoch)
        batches = (order[self.plan.global_slice(step)] for step in self.plan.steps(start))
        return (mine for batch in batches if len(mine := batch[self.plan.rank_slice(len(batch))]))

    def without_augmentation(self) -> PlannedLoader:
        """A loader of the same images in fixed order, every one of them, not augmented; shares the memory."""
        plain = copy.copy(self)
        plain.plan = dataclasses.replace(self.plan, train=False)
        return plain
