"""Batches read from image files by worker processes, for sets that do not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autorep.data.batch import Batch
from autorep.data.catalog import DatasetInfo
from autorep.data.folders import ImageList
from autorep.data.pixels import decode_image
from autorep.data.plan import BatchPlan, PlannedLoader, derived_seed, seeded_generator

_LONGEST = 16  # times the shorter side of an image
RESIZE_RATIO = 256 / 224  # evaluation crops the centre of an image whose shorter side is this much larger


class StreamingLoader(PlannedLoader):
    """The interface and the guarantees of `ArrayLoader`, for an `ImageList`.

    Training takes a random resized crop, seeded by (seed, epoch, image); evaluation, and training without `augment`,
    resizes and takes the centre (torchvision's ImageNet recipe). A damaged image raises ValueError
    naming its file.
    """

    def __init__(
        self,
        images: ImageList,
        info: DatasetInfo,
        batch_size: int,
        *,
        train: bool,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        augment: bool = True,
        workers: int = 2,
    ) -> None:
        super().__init__(BatchPlan(len(images), batch_size, train, seed, rank, world_size), info, augment, device)
        self.images, self.workers = images, workers

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches on the device, from step `start` on."""
        loader = DataLoader(
            _SeededImages(self.images, self.info, self.augments, self.mirrored(epoch), (self.plan.seed, epoch)),
            batch_sampler=[batch.tolist() for batch in self.indices(epoch, start)],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # Without its own generator it would draw from the global one, and a resumed run would differ.
            generator=seeded_generator(self.plan.seed, epoch, 0),
        )
        return self._of(loader)

    def _of(self, loader: DataLoader) -> Iterator[Batch]:
        try:
            for images, labels in loader:
                yield self._to_device(images, labels)
        except (ValueError, OSError) as error:  # a worker's comes with its traceback in the text
            reason = str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
            raise type(error)(reason) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ValueError(f"a process that reads images was killed ({str(error).splitlines()[0]}), perhaps for want "
                             f"of memory: free some, or read with fewer than `data.workers`={self.workers}") from error

    def _to_device(self, images: Tensor, labels: Tensor) -> Batch:
        images, labels = (x.to(self.device, non_blocking=True) for x in (images, labels))
        return Batch(self.normalise(images), labels)


class _SeededImages(Dataset):
    """Item i: (image uint8 [H, W, C], label), its randomness seeded by (seed, epoch, i)."""

    def __init__(self, images: ImageList, info: DatasetInfo, augment: bool, mirrored: Tensor,
                 seed_keys: tuple[int, int]) -> None:
        self.images, self.mirrored, self.seed_keys = images, mirrored, seed_keys
        self.channels = info.in_channels
        self.transform = _transform(info, augment)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = _within_ratio(decode_image(self.images.paths[index], self.channels))
        with torch.random.fork_rng(devices=[]):  # the transforms draw from the global CPU generator
            torch.default_generator.manual_seed(derived_seed(*self.seed_keys, 1 + index))  # 0 is the order's
            pixels = self.transform(image).permute(1, 2, 0)
        return pixels.flip(1) if self.mirrored[index] else pixels, int(self.images.labels[index])


def _within_ratio(image: Image.Image) -> Image.Image:
    """The centre of an image that is too long: enlarged to the size of its shorter side it might fill the memory."""
    left, top = (max(0, side - _LONGEST * min(image.size)) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def _transform(info: DatasetInfo, augment: bool) -> Callable[[Image.Image], Tensor]:
    from torchvision.transforms import v2  # here, because it takes seconds

    if augment:
        spatial = [v2.RandomResizedCrop(info.image_size)]
    else:
        spatial = [v2.Resize(round(info.image_size * RESIZE_RATIO)), v2.CenterCrop(info.image_size)]
    # Tensors first, because torchvision crops and resizes bytes in two thirds of the time that Pillow takes.
    return v2.Compose([v2.PILToTensor(), *spatial])
