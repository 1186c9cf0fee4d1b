"""The cache of decoded sets: NAME-SPLIT-images.npy and NAME-SPLIT-labels.npy under the data path.

Only the holder of a lock replaces a file, and only as a whole. It removes the old labels first and writes the new ones
last, so that two files which are both there were written together, whenever a writer was killed.
"""

from __future__ import annotations

import contextlib
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from autorep.data.arrays import ArraySet
from autorep.machine.files import locked, of_system, write_atomically

_SUM_MARK = b"CRC-32: "  # after the array, where numpy does not look
_CHUNK = 2**22  # bytes


def array_paths(data_path: Path, name: str, split: str) -> tuple[Path, Path]:
    """Where the images and the labels of a split are kept."""
    return data_path / f"{name}-{split}-images.npy", data_path / f"{name}-{split}-labels.npy"


def cached(data_path: Path, name: str, split: str, build: Callable[[], ArraySet]) -> ArraySet:
    """The split from its arrays under `data_path`, or from `build`, whose result is then kept there.

    A second process waits for the first to finish building and reads what that one wrote. Where nothing can be
    written this warns and returns what was built. Raises ValueError naming the file if an array is damaged.
    """
    paths = array_paths(data_path, name, split)
    found = _read(*paths)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(data_path / f".{name}.lock"))
        except OSError as error:
            _warn_uncached(data_path, error)
            return build()
        found = _read(*paths)  # another process may have built it while this one waited
        if found is not None:
            return found
        built = build()
        try:
            _write(built, *paths)
        except OSError as error:
            _warn_uncached(data_path, error)
        return built


def _read(images_path: Path, labels_path: Path) -> ArraySet | None:
    if not (images_path.exists() and labels_path.exists()):
        return None
    images, labels = _load(images_path), _load(labels_path)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"{images_path} holds {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, C]; "
                         "delete it to have it built again")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{labels_path} holds {labels.dtype} {list(labels.shape)}; expected integers [{len(images)}], "
            f"one for each image of {images_path}; delete both files to have them built again"
        )
    return ArraySet(images, labels.astype(np.int64))


def _load(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
            if isinstance(array, np.ndarray):
                _check_sum(file)
    except Exception as error:  # numpy, zipfile and tokenize have many ways to find that a file is damaged
        if of_system(error):
            raise
        raise ValueError(f"{path} is damaged ({error}); delete it to have it built again") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of several arrays; delete it to have it built again")
    return array


def _check_sum(file: IO[bytes]) -> None:
    """Raises ValueError where bytes differ from the checksum that follows the array. Arrays of the user have none."""
    end = file.tell()
    stored = file.read()
    if not stored:
        return
    file.seek(0)
    found = 0
    while (left := end - file.tell()) > 0:
        found = zlib.crc32(file.read(min(left, _CHUNK)), found)
    if stored != _SUM_MARK + found.to_bytes(4, "big"):
        raise ValueError("it differs from its checksum")


class _Summed:
    """A file that adds up a checksum of what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sum = file, 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sum = zlib.crc32(data, self.sum)


def _save(file: IO[bytes], array: np.ndarray) -> None:
    summed = _Summed(file)
    np.save(summed, array)
    file.write(_SUM_MARK + summed.sum.to_bytes(4, "big"))


def _write(arrays: ArraySet, images_path: Path, labels_path: Path) -> None:
    labels_path.unlink(missing_ok=True)
    _replace(images_path, arrays.images)
    _replace(labels_path, arrays.labels)


def _replace(path: Path, array: np.ndarray) -> None:
    for left_by_killed_writer in path.parent.glob(f".{path.name}.*"):  # the lock shows that this writer is gone
        left_by_killed_writer.unlink()
    write_atomically(path, lambda file: _save(file, array))


def _warn_uncached(data_path: Path, error: OSError) -> None:
    warnings.warn(f"cannot keep decoded arrays under {data_path} ({error}), so every run decodes the set again; "
                  "make the folder writable", stacklevel=3)
