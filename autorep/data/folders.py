"""Image folders: which files belong to which class, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from autorep.data.arrays import ArraySet

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"})
COLOUR_MODES = {1: "L", 3: "RGB"}  # number of channels -> Pillow's name
CHUNK = 256  # images decoded by one task of the thread pool


@dataclass(frozen=True, eq=False)
class ImageList:
    """Paths of N images, their class numbers int64 [N], and the class names that these number."""

    paths: list[str]
    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: np.ndarray) -> ImageList:
        """The images at `indices` [M], in that order."""
        return ImageList([self.paths[i] for i in indices], self.labels[indices], self.classes)


def class_names(root: Path) -> list[str]:
    """The folder names in ROOT/train, sorted, whose positions are the class numbers; empty without such a folder."""
    return _subfolders(root / "train")


def list_train(root: Path, classes: list[str]) -> ImageList:
    """ROOT/train/CLASS/IMAGE, at any depth below the class. Raises ValueError naming a class without images."""
    listed = _list_classes(root / "train", classes, classes)
    empty = set(range(len(classes))) - set(listed.labels.tolist())
    if empty:
        raise ValueError(f"{root / 'train' / classes[min(empty)]} holds no images")
    return listed


def list_held_out(folder: Path, classes: list[str]) -> ImageList | None:
    """FOLDER/CLASS/IMAGE, or Tiny-ImageNet's FOLDER/images + val_annotations.txt; None where there is neither.

    Images may lie at any depth below their class.
    `classes` are those of the training folder, which give the numbers. Raises ValueError naming a class folder that
    training does not have, or a damaged annotation file.
    """
    present = _subfolders(folder)
    if set(present) & set(classes):
        unknown = set(present) - set(classes) - {"images"}  # "images" stays behind when Tiny-ImageNet's val is sorted
        if unknown:
            raise ValueError(f"{folder / min(unknown)} is a class that the training folder does not have")
        return _list_classes(folder, [name for name in present if name in set(classes)], classes)
    annotations = folder / "val_annotations.txt"
    return _list_annotated(folder / "images", annotations, classes) if annotations.is_file() else None


def decode_image(path: str, channels: int) -> Image.Image:
    """The image as grey (1 channel) or RGB (3). Raises ValueError naming a file that cannot be decoded."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # convert() would cut off what it should scale
                image = Image.fromarray(_bytes_of_grey(image))
            return image.convert(COLOUR_MODES[channels])
    except _UnknownRange as error:
        raise ValueError(f"{path} holds {error}") from error
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged bytes
        raise ValueError(f"{path} is damaged or not an image ({error})") from error


class _UnknownRange(ValueError):
    """Numbers of which nothing says what is black and what is white."""


def _bytes_of_grey(image: Image.Image) -> np.ndarray:
    """A grey image of 16 bits, or of floats from 0 to 1, as uint8 [H, W]."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise _UnknownRange(f"floats from {values.min():g} to {values.max():g}: expected 0 (black) to 1 (white); "
                                "scale it, or save it with 8 or 16 bits")
        return (255 * values).round().astype(np.uint8)
    # Pillow gives PNG and PGM of 16 bits as 32 bits, too.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise _UnknownRange("whole numbers of 32 bits, whose white is unknown: save it with 8 or 16 bits")
    return (values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)


def decode(listed: ImageList, image_size: int, channels: int) -> ArraySet:
    """Decode images that all measure `image_size` squared, in parallel.

    Raises ValueError naming a file that is damaged or has a different size.
    """
    images = np.empty((len(listed), image_size, image_size, channels), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for i, path in enumerate(listed.paths[start : start + CHUNK], start):
            image = decode_image(path, channels)
            if image.size != (image_size, image_size):
                raise ValueError(f"{path} measures {image.size}; expected {image_size} x {image_size} pixels")
            images[i] = np.asarray(image).reshape(images.shape[1:])

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode_chunk, range(0, len(listed), CHUNK)):
            pass
    return ArraySet(images, listed.labels)


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_classes(folder: Path, present: Sequence[str], classes: list[str]) -> ImageList:
    numbers = {name: number for number, name in enumerate(classes)}
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        found = _image_files(folder / name)
        paths += found
        labels += [numbers[name]] * len(found)
    return ImageList(paths, np.array(labels, dtype=np.int64), classes)


def _image_files(folder: Path) -> list[str]:
    """As torchvision's ImageFolder finds them: at any depth, links followed."""
    # Strings, not Path objects: ImageNet has more than a million. macOS leaves ._NAME files.
    return sorted(os.path.join(inner, name) for inner, _, names in os.walk(folder, followlinks=True) for name in names
                  if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)


def _list_annotated(folder: Path, annotations: Path, classes: list[str]) -> ImageList:
    numbers = {name: number for number, name in enumerate(classes)}
    paths, labels = [], []
    for line in annotations.read_text(errors="replace").splitlines():
        file_name, _, rest = line.partition("\t")
        label = numbers.get(rest.split("\t")[0])
        if label is None:
            raise ValueError(f"{annotations} is damaged: no known class in the line {line!r}")
        paths.append(str(folder / file_name))
        labels.append(label)
    return ImageList(paths, np.array(labels, dtype=np.int64), classes)
