"""What an unknown image folder looks like: its DatasetInfo, found by looking at its files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from autorep.data.catalog import DatasetInfo
from autorep.data.folders import ImageList
from autorep.data.pixels import decode_image, read_header

IN_MEMORY_BYTES = 4 * 2**30  # a folder whose pixels take more is streamed
STREAMED_SIZE = 224  # pixels; what images of unequal size are cropped to
SAMPLED_IMAGES = 2000  # mean and std are those of this many training images, evenly spaced in the list
MIN_STD = 1 / 255  # one grey level, for folders of constant images


def survey(train: ImageList, held_out: ImageList) -> DatasetInfo:
    """Describe a folder: held in memory where all images are squares of one size, else streamed at 224 pixels.

    Grey images make one channel and are never mirrored, because most such sets hold characters or scans.
    Raises ValueError naming a file that cannot be read.
    """
    common = _common_header([*train.paths, *held_out.paths])
    image_size, channels = common or (STREAMED_SIZE, 3)
    streaming = common is None or (len(train) + len(held_out)) * image_size**2 * channels > IN_MEMORY_BYTES
    if streaming:
        image_size = STREAMED_SIZE
    mean, std = _pixel_statistics(train, image_size, channels)
    return DatasetInfo(
        name="folder",
        num_classes=len(train.classes),
        in_channels=channels,
        image_size=image_size,
        mean=mean,
        std=std,
        streaming=streaming,
        crop_padding=image_size // 8,
        horizontal_flip=channels == 3,
    )


def _common_header(paths: list[str]) -> tuple[int, int] | None:
    """(pixels, channels) if all images are squares of one size, else None as soon as one differs."""
    with ThreadPoolExecutor() as pool:
        headers = pool.map(read_header, paths)
        (width, height), most = next(headers)
        for size, channels in headers:
            if size != (width, height) or width != height:
                return None
            most = max(most, channels)
    return (width, most) if width == height else None


def _pixel_statistics(train: ImageList, image_size: int, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on a 0..1 scale, by sums so that one image at a time is held."""
    chosen = np.unique(np.linspace(0, len(train) - 1, SAMPLED_IMAGES).astype(int))

    def moments(index: int) -> np.ndarray:
        image = decode_image(train.paths[index], channels).resize((image_size, image_size))
        pixels = np.asarray(image, dtype=np.float64).reshape(-1, channels) / 255
        return np.stack([pixels.mean(axis=0), np.square(pixels).mean(axis=0)])

    with ThreadPoolExecutor() as pool:
        mean, mean_square = np.mean(list(pool.map(moments, chosen)), axis=0)
    std = np.sqrt(np.maximum(mean_square - mean**2, MIN_STD**2))
    return tuple(mean.tolist()), tuple(std.tolist())
