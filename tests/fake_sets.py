"""Small made-up data sets, written to disk in the layouts that the real ones come in."""

from __future__ import annotations

import dataclasses
import gzip
import pickle

import numpy as np
from PIL import Image

from autorep.data.arrays import ArraySet
from autorep.data.catalog import SOURCES
from autorep.data.datasets import dataset_info, read_arrays

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_arrays(name: str, data_path) -> dict[str, ArraySet]:
    return read_arrays(dataset_info(name, data_path), data_path)


def random_set(num_images: int, size: int, channels: int, num_classes: int, seed: int = 0) -> ArraySet:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_images, size, size, channels), dtype=np.uint8)
    return ArraySet(images, np.arange(num_images, dtype=np.int64) % num_classes)


def shrink(monkeypatch, name: str, train: int, test: int, num_classes: int | None = None) -> None:
    """Let a named set count as whole with a few images."""
    source = SOURCES[name]
    info = dataclasses.replace(source.info, num_classes=num_classes or source.info.num_classes)
    small = dataclasses.replace(source, info=info, num_images={"train": train, "test": test})
    monkeypatch.setitem(SOURCES, name, small)


def save_image(pixels: np.ndarray, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def write_tree(folder, arrays: ArraySet, classes) -> None:
    for i, (image, label) in enumerate(zip(arrays.images, arrays.labels, strict=True)):
        save_image(image, folder / classes[label] / f"{i:03}.png")


def cifar_pickle(arrays: ArraySet, label_key: bytes) -> bytes:
    flat = arrays.images.transpose(0, 3, 1, 2).reshape(len(arrays), -1)
    return pickle.dumps({b"data": flat, label_key: arrays.labels.tolist()}, protocol=2)


def write_cifar10(folder, train: ArraySet, test: ArraySet) -> None:
    folder.mkdir(parents=True)
    for i in range(5):
        part = train.subset(np.arange(i * len(train) // 5, (i + 1) * len(train) // 5))
        (folder / f"data_batch_{i + 1}").write_bytes(cifar_pickle(part, b"labels"))
    (folder / "test_batch").write_bytes(cifar_pickle(test, b"labels"))


def write_idx(path, values: np.ndarray) -> None:
    blob = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(blob) if path.suffix == ".gz" else blob)


def write_mnist(folder, train: ArraySet, test: ArraySet, suffix: str) -> None:
    for prefix, arrays in (("train", train), ("t10k", test)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", arrays.images[..., 0])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", arrays.labels.astype(np.uint8))


def by_class(arrays: ArraySet) -> ArraySet:
    """The order in which a tree lists its images."""
    return arrays.subset(np.argsort(arrays.labels, kind="stable"))


def write_tiny_imagenet(root, train: ArraySet, val: ArraySet, classes) -> None:
    for i, (image, label) in enumerate(zip(train.images, train.labels, strict=True)):
        save_image(image, root / "train" / classes[label] / "images" / f"{i}.png")
        (root / "train" / classes[label] / "boxes.txt").write_text("not an image")
    lines = []
    for i, (image, label) in enumerate(zip(val.images, val.labels, strict=True)):
        save_image(image, root / "val" / "images" / f"val_{i}.png")
        lines.append(f"val_{i}.png\t{classes[label]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    save_image(val.images[0], root / "test" / "images" / "test_0.png")  # the real one has no labels either


def small_cifar10(monkeypatch) -> tuple[ArraySet, ArraySet]:
    """A CIFAR-10 of 20 training and 10 test images."""
    shrink(monkeypatch, "cifar10", 20, 10)
    return random_set(20, 32, 3, 10), random_set(10, 32, 3, 10, seed=1)


def small_tiny_imagenet(monkeypatch) -> tuple[ArraySet, ArraySet, tuple[str, ...]]:
    """A Tiny-ImageNet of three classes, 9 training and 6 validation images."""
    shrink(monkeypatch, "tiny_imagenet", 9, 6, num_classes=3)
    return random_set(9, 64, 3, 3), random_set(6, 64, 3, 3, seed=1), ("n01", "n02", "n03")


def assert_same(found: ArraySet, expected: ArraySet) -> None:
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
