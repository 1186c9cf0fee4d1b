"""Data sets by name: what they are, and their train and test images as uint8 arrays or as lists of files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autorep.data.arrays import ArraySet, split_train
from autorep.data.cache import array_paths, cached
from autorep.data.catalog import DIGITS, SOURCES, DatasetInfo, Source
from autorep.data.folders import ImageList, class_names, decode, list_held_out, list_train, subfolders
from autorep.data.survey import survey

DATASET_NAMES = ("digits", *SOURCES, "folder")
SPLITS = ("train", "test")
DIGITS_TEST_FRACTION = 0.25


def dataset_info(name: str, data_path: str | Path | None) -> DatasetInfo:
    """Classes, shape and statistics of a data set; only `folder` is looked at on disk.

    Raises ValueError for an unknown name, FileNotFoundError for a `folder` that is not there.
    """
    if name == "digits":
        return DIGITS
    if name == "folder":
        lists = _folder_lists(_existing(name, data_path))
        return survey(lists["train"], lists["test"])
    return _source(name).info


def read_arrays(info: DatasetInfo, data_path: str | Path | None) -> dict[str, ArraySet]:
    """The "train" and "test" split of the set that `info` describes.

    A named set is decoded once and cached under `data_path`. `folder` is not, because its contents may change, nor is
    `digits`. Raises FileNotFoundError saying how to get a missing set, ValueError naming a damaged file, an incomplete
    set, or one that must be streamed.
    """
    if info.streaming:
        raise ValueError(f"{info.name} does not fit in memory; stream it (StreamingLoader)")
    if info.name == "digits":
        return _digits()
    root = _existing(info.name, data_path)
    if info.name == "folder":
        return {split: decode(x, info.image_size, info.in_channels) for split, x in _folder_lists(root).items()}
    source = _source(info.name)
    # The default argument binds the split of this iteration.
    arrays = {s: cached(root, info.name, s, lambda s=s: _read_whole(source, root, s)) for s in SPLITS}
    for split in SPLITS:
        _check_fit(arrays[split], info, array_paths(root, info.name, split))
    return arrays


def read_lists(info: DatasetInfo, data_path: str | Path | None) -> dict[str, ImageList]:
    """The files of the "train" and "test" split of a set of images on disk. Raises as `read_arrays` does."""
    root = _existing(info.name, data_path)
    if info.name == "folder":
        return _folder_lists(root)
    source = _source(info.name)
    lists = {}
    for split in SPLITS:
        lists[split] = _list_tree(source, root, split)
        if lists[split] is None:
            raise _missing(source, root, split)
        _check_whole(source, split, len(lists[split]), root)
    return lists


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"invalid dataset {name!r}: expected one of {', '.join(DATASET_NAMES)}")
    return SOURCES[name]


def _existing(name: str, data_path: str | Path | None) -> Path:
    if data_path is None:
        raise ValueError(f"dataset {name} needs a data path (--data_path DIR)")
    if name in SOURCES and not Path(data_path).is_dir():
        raise _missing(SOURCES[name], Path(data_path), "train")
    return Path(data_path)


def _digits() -> dict[str, ArraySet]:
    """The 1,797 real handwritten digits that come with scikit-learn, a fixed quarter of them for testing."""
    from sklearn.datasets import load_digits  # imported here, because no other set should pay the second that it takes

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = split_train(ArraySet(images, digits.target.astype(np.int64)), DIGITS_TEST_FRACTION)
    return {"train": train, "test": test}


def _roots(source: Source, data_path: Path) -> Iterator[Path]:
    """The places below `data_path` where a set may be, the most specific first."""
    yield from (data_path / folder for folder in source.folders)
    yield data_path


def _read_whole(source: Source, data_path: Path, split: str) -> ArraySet:
    """Decode one split from the official files or else from an image folder, and check that no image is missing."""
    if source.read_official is not None:
        for root in _roots(source, data_path):
            arrays = source.read_official(root, split)
            if arrays is not None:
                _check_whole(source, split, len(arrays), data_path)
                _check_fit(arrays, source.info, (root, root))
                return arrays
    listed = _list_tree(source, data_path, split)
    if listed is None:
        raise _missing(source, data_path, split)
    _check_whole(source, split, len(listed), data_path)
    return decode(listed, source.info.image_size, source.info.in_channels)


def _list_tree(source: Source, data_path: Path, split: str) -> ImageList | None:
    """One split from the first root that has class folders for training; None if none has, or lacks the split."""
    for root in _roots(source, data_path):
        classes = class_names(root)
        if classes and len(classes) != source.info.num_classes:
            raise ValueError(
                f"{root / 'train'} has {len(classes)} class folders; "
                f"{source.info.name} has {source.info.num_classes} classes"
            )
        if classes:
            return list_train(root, classes) if split == "train" else _first_held_out(root, classes, source.held_out)
    return None


def _first_held_out(root: Path, classes: list[str], folders: tuple[str, ...]) -> ImageList | None:
    found = (list_held_out(root / folder, classes) for folder in folders)
    return next((listed for listed in found if listed is not None), None)


def _folder_lists(root: Path) -> dict[str, ImageList]:
    classes = class_names(root)
    test = _first_held_out(root, classes, ("test", "val"))
    if not classes or test is None or len(test) == 0:
        others = sorted({f"{split}/{name}" for split in ("test", "val") for name in subfolders(root / split)})
        raise FileNotFoundError(
            f"no image folder at {root}: looked for train/CLASS/IMAGE and, under the same names of classes, "
            f"test/CLASS/IMAGE (or val/CLASS/IMAGE); found the classes {classes[:3]} and the folders {others[:3]}"
        )
    return {"train": list_train(root, classes), "test": test}


def _check_whole(source: Source, split: str, num_images: int, data_path: Path) -> None:
    expected = source.num_images[split]
    if num_images != expected:
        raise ValueError(
            f"{source.info.name} under {data_path} is incomplete: {num_images} {split} images instead of {expected}. "
            f"Remove it and get it again: {_how_to_get(source, data_path)}. For a subset, use the dataset 'folder'"
        )


def _check_fit(arrays: ArraySet, info: DatasetInfo, paths: tuple[Path, Path]) -> None:
    """Arrays may be a subset made by the user, so their number is free; shape and labels are not."""
    expected = (info.image_size, info.image_size, info.in_channels)
    if len(arrays) == 0 or arrays.images.shape[1:] != expected:
        raise ValueError(f"{paths[0]} holds {list(arrays.images.shape)}; {info.name} is {['N', *expected]}, N > 0")
    if arrays.labels.min() < 0 or arrays.labels.max() >= info.num_classes:
        raise ValueError(f"{paths[1]} has labels outside 0..{info.num_classes - 1}")


def _how_to_get(source: Source, data_path: Path) -> str:
    return source.how_to_get.format(data_path=shlex.quote(str(data_path)))


def _missing(source: Source, data_path: Path, split: str) -> FileNotFoundError:
    name = source.info.name
    arrays = " + ".join(path.name for path in array_paths(data_path, name, split))
    trees = " or ".join(f"{folder}/CLASS/IMAGE" for folder in (("train",) if split == "train" else source.held_out))
    places = ", ".join(str(root) for root in _roots(source, data_path))
    return FileNotFoundError(
        f"{name}: no {split} images under {data_path}. Looked for {arrays} there, and for {source.official_files} "
        f"or {trees} in {places}. To get it: " + _how_to_get(source, data_path)
    )
