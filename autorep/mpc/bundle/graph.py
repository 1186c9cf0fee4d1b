"""What a bundle holds: the public graph and the samples, and the checks of both."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from autorep.mpc.bundle.ops import Op, Shape, array_shapes, infer_shapes

FORMAT = "autorep-mpc-bundle"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_TYPES = {"mask": bool, "positions": np.integer}
Arrays = dict[str, np.ndarray]


class BundleError(ValueError):
    """A bundle that cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class Graph:
    """The public part of a bundle: architecture, masks, coefficients, recorded ranges [low, high] of every tensor.

    `export`: what all files of its bundle hold; None of a graph that was not read, or is of an older version.
    """

    input_name: str
    input_shape: Shape
    ops: tuple[Op, ...]
    public: Arrays
    ranges: dict[str, tuple[float, float]]
    meta: dict[str, Any] = field(default_factory=dict)
    export: str | None = None

    @property
    def output_name(self) -> str:
        """The tensor that holds the logits: the last operation."""
        return self.ops[-1].name

    @property
    def shapes(self) -> dict[str, Shape]:
        """Tensor name -> shape of one image."""
        return infer_shapes(self.ops, self.input_name, self.input_shape)


@dataclass(frozen=True)
class Samples:
    """Real images [K, C, H, W] as the network takes them, labels [K] (-1: unknown), torch's logits [K, classes]."""

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def graph_document(graph: Graph) -> dict[str, Any]:
    """What graph.json holds, apart from which export it is of."""
    return {
        "format": FORMAT, "version": VERSION, "meta": graph.meta,
        "input": {"name": graph.input_name, "shape": list(graph.input_shape)},
        "ops": [{"name": op.name, "kind": op.kind, "inputs": list(op.inputs),
                 "attrs": {key: list(value) for key, value in op.attrs.items()}} for op in graph.ops],
        "ranges": {name: list(pair) for name, pair in graph.ranges.items()},
    }


def fingerprint(graph: Graph) -> str:
    """Hash of everything public, which the parties must agree on."""
    digest = hashlib.sha256(json.dumps(graph_document(graph), sort_keys=True).encode())
    for key in sorted(graph.public):
        digest.update(key.encode() + np.ascontiguousarray(graph.public[key]).tobytes())
    return digest.hexdigest()


def parse_graph(document: dict, public: Arrays) -> Graph:
    """The inverse of `graph_document`, without checks: whatever is missing raises what Python raises for it."""
    ops = tuple(Op(str(o["name"]), str(o["kind"]), tuple(map(str, o["inputs"])),
                   {str(k): tuple(v) for k, v in o["attrs"].items()}) for o in document["ops"])
    ranges = {str(k): (float(low), float(high)) for k, (low, high) in document["ranges"].items()}
    return Graph(str(document["input"]["name"]), tuple(document["input"]["shape"]), ops, public, ranges,
                 dict(document["meta"]), document.get("export"))


def check_graph(graph: Graph) -> None:
    """Raises BundleError if operations, names, ranges and public arrays do not fit together."""
    if not graph.ops:
        raise BundleError("graph.json holds no operation")
    for name in [graph.input_name, *(op.name for op in graph.ops)]:
        if not _NAME.fullmatch(name):
            raise BundleError(f"invalid tensor name {name!r}: expected letters, digits, '_', '.' and '-'")
    if len(graph.input_shape) not in (1, 3) or not all(type(n) is int and 0 < n < 2**14 for n in graph.input_shape):
        raise BundleError(f"invalid input shape {list(graph.input_shape)}: expected [C, H, W] or [F]")
    try:
        shapes = graph.shapes
    except ValueError as error:
        raise BundleError(f"graph.json: {error}") from error
    if len(shapes[graph.output_name]) != 1:
        raise BundleError(f"invalid shape {list(shapes[graph.output_name])} of the result {graph.output_name!r}: "
                          "expected [classes]")
    if set(graph.ranges) != set(shapes):
        raise BundleError(f"ranges are recorded for other tensors: {sorted(set(graph.ranges) ^ set(shapes))[:4]} ...")
    if not all(np.isfinite(pair).all() and pair[0] <= pair[1] for pair in graph.ranges.values()):
        raise BundleError("a recorded range is not finite and ordered")
    check_arrays(graph.public, array_shapes(graph.ops, shapes, secret=False), "public.npz")
    for op in graph.ops:
        if op.kind == "rearrange":
            _check_positions(graph.public[f"{op.name}/positions"], prod(shapes[op.inputs[0]]), op.name)


def _check_positions(positions: np.ndarray, size: int, name: str) -> None:
    low, high = int(positions.min()), int(positions.max())
    if low < -1 or high >= size:
        raise BundleError(f"public.npz: {name}/positions are from {low} to {high}, expected -1 to {size - 1}")


def check_arrays(arrays: Arrays, expected: dict[str, Shape], file: str) -> None:
    """Raises BundleError unless there are exactly these finite arrays ("op/array") of these shapes.

    Masks are bool, positions whole numbers, all others real.
    """
    if set(arrays) != set(expected):
        raise BundleError(f"{file}: missing {sorted(set(expected) - set(arrays))[:4]}, "
                          f"unexpected {sorted(set(arrays) - set(expected))[:4]}")
    for key, shape in expected.items():
        array, wanted = arrays[key], _TYPES.get(key.rpartition("/")[2], np.floating)
        if array.shape != shape or not np.issubdtype(array.dtype, wanted):
            raise BundleError(f"{file}: {key} is {array.dtype}{list(array.shape)}, expected {wanted.__name__}"
                              f"{list(shape)}")
        if not np.isfinite(array).all():
            raise BundleError(f"{file}: {key} holds NaN or infinity")


def check_images(images: np.ndarray, logits: np.ndarray | None, graph: Graph, file: str) -> None:
    """Raises BundleError if there are no images, or their shapes or those of the logits do not fit the graph."""
    k = images.shape[0] if images.ndim else 0
    expected = {"images": (images, (k, *graph.input_shape))}
    if logits is not None:
        expected["logits"] = (logits, (k, *graph.shapes[graph.output_name]))
    for key, (array, shape) in expected.items():
        if array.shape != shape or not np.issubdtype(array.dtype, np.floating):
            num = "N" if key == "images" else k
            raise BundleError(f"{file}: {key} is {array.dtype}{list(array.shape)}, expected floating"
                              f"[{', '.join(map(str, (num, *shape[1:])))}], as the network takes them")
        if not np.isfinite(array).all():
            raise BundleError(f"{file}: {key} holds NaN or infinity")
    if k == 0:
        raise BundleError(f"{file} holds no image")


def check_samples(samples: Samples, graph: Graph) -> None:
    """Raises BundleError if there are no samples, or their shapes do not fit the graph."""
    check_images(samples.images, samples.logits, graph, "samples.npz")
    labels, k = samples.labels, len(samples.images)
    if labels.shape != (k,) or not np.issubdtype(labels.dtype, np.integer):
        raise BundleError(f"samples.npz: labels is {labels.dtype}{list(labels.shape)}, expected integer[{k}]")
