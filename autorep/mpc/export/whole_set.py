"""Accuracy under the arithmetic of the engine over the whole test split, by the ring interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from autorep.data.datasets import dataset_info
from autorep.mpc.bundle.files import load_graph, load_weights
from autorep.mpc.bundle.graph import Arrays, Graph
from autorep.mpc.bundle.interpreter import logits_float
from autorep.mpc.export.images import read_images
from autorep.mpc.ring.agreement import fitting_formats
from autorep.mpc.ring.fixed_point import LARGEST_BITS, FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.prediction import logits_fixed

CHOSEN_AGREEMENT = 0.999  # at the least, of a format that is chosen here: closer than what is only warned of
_SEARCHED, _BATCH, _FEWEST_BITS = 256, 16, 6


@dataclass(frozen=True)
class RingAccuracy:
    """Percent of images; `agreement`: where both arithmetics predict the same class."""

    fixed: FixedPoint
    num_images: int
    top1: float
    top1_float: float
    agreement: float

    def __str__(self) -> str:
        return (f"{self.num_images:,} test images with {self.fixed.fraction_bits} fraction bits, "
                f"{self.fixed.coefficient_bits} of coefficients and {self.fixed.truncation} truncation: top-1 "
                f"{self.top1:.2f} %, {self.top1_float:.2f} % in floating point; the same class on "
                f"{self.agreement:.2f} %")


def evaluate_bundle(folder: str | Path, *, data_path: str | Path | None, num_images: int | None = None,
                    fixed: FixedPoint | None = None, truncation: str = "exact") -> RingAccuracy:
    """Predict the test split of a bundle's data set with its integer arithmetic, truncation and wrap-around included.

    Args:
        num_images: the first so many; default: all.
        fixed: the number format; default: the fewest fraction bits with which `CHOSEN_AGREEMENT` of the images keep
            their class, searched on the first images and confirmed on all.
        truncation: that of the formats searched.

    Raises:
        ValueError: the bundle names no data set, its images have another shape, or no format keeps the class.
    """
    graph = load_graph(folder)
    weights, name = load_weights(folder, graph), graph.meta.get("dataset")
    if not name:
        raise ValueError(f"{folder} does not say which data set it is for: export it from a checkpoint")
    info = dataset_info(name, data_path)
    if (shape := (info.in_channels, info.image_size, info.image_size)) != graph.input_shape:
        raise ValueError(f"{folder} takes images {list(graph.input_shape)}, and those of {name} are {list(shape)}: "
                         "give the data path of the set that it was trained on")
    if info.streaming and num_images is None:
        raise ValueError(f"the images of {name} are read from files: give --images N, as many as fit in memory")
    images, labels = read_images(info, data_path, {"test": lambda n: np.arange(n)[:num_images]})["test"]
    normalised = images.numpy()
    reference = logits_float(graph, weights, normalised)
    classes = reference.argmax(1)
    formats = [fixed] if fixed else _formats(graph, weights, normalised[:_SEARCHED], classes[:_SEARCHED],
                                             truncation)
    for each in formats:
        predicted = _classes(graph, weights, normalised, each, None if fixed else classes)
        if predicted is not None:
            return RingAccuracy(each, len(images), 100 * float((predicted == labels).mean()),
                                100 * float((classes == labels).mean()), 100 * float((predicted == classes).mean()))
    raise ValueError(f"with no number of fraction bits up to {LARGEST_BITS} do {100 * CHOSEN_AGREEMENT:g} % of the "
                     "images keep their class, or they do not fit its ranges: give --fraction_bits to see how many do")


def _formats(graph: Graph, weights: Arrays, images: np.ndarray, classes: np.ndarray,
             truncation: str) -> Iterator[FixedPoint]:
    """Formats that fit the ring, from the fewest bits that keep the class of these images on, by bisection."""
    fitting = fitting_formats(graph, _FEWEST_BITS, FixedPoint.of(truncation))
    low, high = 0, len(fitting)
    while low < high:
        middle = (low + high) // 2
        if _classes(graph, weights, images, fitting[middle], classes) is None:
            low = middle + 1
        else:
            high = middle
    yield from fitting[low:]


def _classes(graph: Graph, weights: Arrays, images: np.ndarray, fixed: FixedPoint,
             wanted: np.ndarray | None) -> np.ndarray | None:
    """Predicted classes; None as soon as it is certain that fewer than `CHOSEN_AGREEMENT` of them are as wanted."""
    program, found = lower(graph, fixed), np.empty(len(images), np.int64)
    num_wrong = 0
    for i in tqdm(range(0, len(images), _BATCH), f"{fixed.fraction_bits} fraction bits", disable=None):
        part = slice(i, i + _BATCH)
        found[part] = logits_fixed(program, weights, images[part], _BATCH).argmax(1)
        if wanted is not None:
            num_wrong += int((found[part] != wanted[part]).sum())
            if len(images) - num_wrong < CHOSEN_AGREEMENT * len(images):
                return None
    return found
