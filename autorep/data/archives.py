"""Readers of the official archives: CIFAR's Python pickles and MNIST's idx files."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autorep.data.arrays import ArraySet
from autorep.machine.files import of_system

IDX_PREFIXES = {"train": "train", "test": "t10k"}
_LARGEST_FILE = 2**28  # bytes: far more than any of these sets has


@dataclass(frozen=True)
class CifarLayout:
    """How one CIFAR set is laid out: its folder, its archive, the files of each split, the key of the labels."""

    folder: str
    archive: str
    members: dict[str, tuple[str, ...]]
    label_key: str

    def read(self, root: Path, split: str) -> ArraySet | None:
        """The split from the unpacked folder or the packed archive in `root`; None if neither is there.

        Raises ValueError naming a damaged file, or one that is absent from the folder or archive.
        """
        if (root / self.folder).is_dir():
            blobs = self._from_folder(root / self.folder, split)
        elif any((root / member).is_file() for member in self.members[split]):
            blobs = self._from_folder(root, split)
        elif archive := _first_file(root, (self.archive, self.archive.removesuffix(".gz"))):
            blobs = self._from_archive(archive, split)
        else:
            return None
        images, labels = zip(*(self._parse(blob, origin) for origin, blob in blobs), strict=True)
        return ArraySet(np.concatenate(images), np.concatenate(labels))

    def _from_folder(self, folder: Path, split: str) -> Iterator[tuple[str, bytes]]:
        for member in self.members[split]:
            path = folder / member
            if not path.is_file():
                raise ValueError(f"{path} is missing from the set; unpack {self.archive} again")
            yield str(path), path.read_bytes()

    def _from_archive(self, archive: Path, split: str) -> Iterator[tuple[str, bytes]]:
        try:
            with tarfile.open(archive) as tar:  # whatever its name: browsers unpack .gz without renaming
                found = {os.path.normpath(member.name): member for member in tar}  # some write ./FOLDER/MEMBER
                for name in self.members[split]:
                    member = found.get(f"{self.folder}/{name}")
                    if member is None or not member.isfile() or member.size > _LARGEST_FILE:
                        raise ValueError(f"{archive} holds no file {self.folder}/{name} of CIFAR; get another one")
                    yield f"{archive}:{name}", tar.extractfile(member).read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            if of_system(error):
                raise
            raise ValueError(f"{archive} is damaged ({error}); download it again") from error

    def _parse(self, blob: bytes, origin: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, 32, 32, 3] and labels int64 [N] of one pickle."""
        try:
            content = _CifarUnpickler(io.BytesIO(blob), encoding="bytes").load()
            content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
            pixels, labels = content["data"], np.array(content[self.label_key], dtype=np.int64)
            images = pixels.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
            if pixels.dtype != np.uint8:
                raise ValueError(f"its pixels are {pixels.dtype}")
        except Exception as error:  # damaged pickle bytes can raise nearly anything
            raise ValueError(f"{origin} is damaged or not of CIFAR ({error}); unpack or download it again") from error
        return images, labels


class _CifarUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers only, so that a foreign pickle cannot run code."""

    def find_class(self, module: str, name: str) -> object:
        """What a name in the pickle stands for. Raises pickle.UnpicklingError unless it is one of those allowed."""
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("_codecs", "encode"): _latin1_bytes,  # how Python 3 writes bytes in the old protocol
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a CIFAR file does not need")
        return allowed[module, name]


def _empty_array(array_type: type, shape: tuple[int, ...], type_code: bytes) -> np.ndarray:
    """What numpy's pickles start from; the array's real shape, type and bytes are set on it afterwards."""
    return np.ndarray(shape, dtype=np.uint8)


def _latin1_bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def read_idx(root: Path, split: str) -> ArraySet | None:
    """MNIST's PREFIX-images-idx3-ubyte and -labels-idx1-ubyte, plain or .gz, in `root`; None if they are not there.

    Some tools that unpack them write a dot in place of the last but one hyphen.

    Raises ValueError naming a damaged file, or the one whose other half is absent.
    """
    stems = (f"{IDX_PREFIXES[split]}-images-idx3-ubyte", f"{IDX_PREFIXES[split]}-labels-idx1-ubyte")
    images_path, labels_path = (
        _first_file(root, [name + suffix for name in (stem, stem.replace("-idx", ".idx")) for suffix in ("", ".gz")])
        for stem in stems)
    if images_path is None and labels_path is None:
        return None
    if images_path is None or labels_path is None:
        missing = stems[0] if images_path is None else stems[1]
        raise ValueError(f"{images_path or labels_path} has no counterpart; put {missing}.gz beside it")
    images, labels = _parse_idx(images_path, ndim=3), _parse_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise ValueError(f"{labels_path} holds {len(labels)} labels for the {len(images)} images of {images_path}")
    return ArraySet(images[..., None], labels.astype(np.int64))


def _first_file(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


def _parse_idx(path: Path, ndim: int) -> np.ndarray:
    """An idx file of unsigned bytes: 0, 0, 8, ndim, then `ndim` big-endian uint32 sizes, then the values."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"  # gzip, whatever the name says
            raw.seek(0)
            blob = (gzip.GzipFile(fileobj=raw) if packed else raw).read(_LARGEST_FILE)
    except (OSError, EOFError, zlib.error) as error:
        if of_system(error):
            raise
        raise ValueError(f"{path} is damaged ({error}); download it again") from error
    header = 4 + 4 * ndim
    shape = np.frombuffer(blob[4:header], dtype=">u4").astype(int) if len(blob) >= header else None
    if shape is None or blob[:4] != bytes([0, 0, 8, ndim]) or len(blob) != header + shape.prod():
        raise ValueError(f"{path} is damaged: its {len(blob)} bytes are not an idx file of {ndim}-D bytes; "
                         "download it again")
    return np.frombuffer(blob, dtype=np.uint8, offset=header).reshape(shape).copy()
