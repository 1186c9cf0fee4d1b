"""Image folders: which files belong to which class."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from autorep.data.arrays import ArraySet
from autorep.data.pixels import decode_image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"})
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
    return subfolders(root / "train")


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
    present = subfolders(folder)
    if set(present) & set(classes):
        unknown = set(present) - set(classes) - {"images"}  # "images" stays behind when Tiny-ImageNet's val is sorted
        if unknown:
            raise ValueError(f"{folder / min(unknown)} is a class that the training folder does not have")
        return _list_classes(folder, [name for name in present if name in set(classes)], classes)
    annotations = folder / "val_annotations.txt"
    return _list_annotated(folder / "images", annotations, classes) if annotations.is_file() else None


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


def subfolders(folder: Path) -> list[str]:
    """The names of its folders, sorted, without hidden ones; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_classes(folder: Path, present: Sequence[str], classes: list[str]) -> ImageList:
    numbers = {name: number for number, name in enumerate(classes)}
    paths: list[str] = []
    labels: list[int] = []
    left_out: list[str] = []
    for name in present:
        files = _files_below(folder / name)
        found = [path for path in files if _suffix(path) in IMAGE_SUFFIXES]
        left_out += [path for path in files if _suffix(path) in _other_suffixes()]
        paths += found
        labels += [numbers[name]] * len(found)
    if left_out:
        endings = ", ".join(sorted(set(map(_suffix, left_out))))
        warnings.warn(f"{len(left_out)} images in {folder} are left out, such as {left_out[0]}: files that end in "
                      f"{endings} are not read; save them as .png", stacklevel=2)
    return ImageList(paths, np.array(labels, dtype=np.int64), classes)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


@functools.cache
def _other_suffixes() -> frozenset[str]:
    """Those of images that this package leaves out, as torchvision does."""
    return frozenset(Image.registered_extensions()) - IMAGE_SUFFIXES


def _files_below(folder: Path) -> list[str]:
    """The files that torchvision's ImageFolder looks at: at any depth, links followed, but not back up."""
    found: list[str] = []
    # Strings, not Path objects: ImageNet has more than a million.
    for inner, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [name for name in folders if not _leads_back(os.path.join(inner, name))]
        found += [os.path.join(inner, name) for name in names if not name.startswith("._")]  # macOS leaves those
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _leads_back(path: str) -> bool:
    """Whether a link leads to a folder that it is in."""
    return os.path.islink(path) and Path(os.path.realpath(os.path.dirname(path))).is_relative_to(os.path.realpath(path))


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
