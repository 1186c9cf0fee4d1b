"""The bundle: a folder with graph.json and three npz files. No pickle; loading validates everything.

graph.json    public: operations, ranges, how it was made          public.npz   public: masks and coefficients
model.npz     the server's secret: weights                         samples.npz  the client's secret: images, labels,
                                                                                and the logits torch gave for them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autorep.mpc.ops import Op, Shape, array_shapes, infer_shapes

FORMAT = "autorep-mpc-bundle"
VERSION = 1
MAX_BYTES = 4 * 2**30
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
Arrays = dict[str, np.ndarray]


class BundleError(ValueError):
    """A bundle that cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class Graph:
    """The public part of a bundle: architecture, masks, coefficients, recorded ranges [low, high] of every tensor."""

    input_name: str
    input_shape: Shape
    ops: tuple[Op, ...]
    public: Arrays
    ranges: dict[str, tuple[float, float]]
    meta: dict[str, Any] = field(default_factory=dict)

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
    """Real images [K, C, H, W] as the network eats them, labels [K] (-1: unknown), torch's logits [K, classes]."""

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def graph_document(graph: Graph) -> dict[str, Any]:
    """What graph.json holds."""
    return {
        "format": FORMAT, "version": VERSION, "meta": graph.meta,
        "input": {"name": graph.input_name, "shape": list(graph.input_shape)},
        "ops": [{"name": op.name, "kind": op.kind, "inputs": list(op.inputs),
                 "attrs": {key: list(value) for key, value in op.attrs.items()}} for op in graph.ops],
        "ranges": {name: list(pair) for name, pair in graph.ranges.items()},
    }


def fingerprint(graph: Graph) -> str:
    """Hash of everything public, which both parties must agree on."""
    digest = hashlib.sha256(json.dumps(graph_document(graph), sort_keys=True).encode())
    for key in sorted(graph.public):
        digest.update(key.encode() + np.ascontiguousarray(graph.public[key]).tobytes())
    return digest.hexdigest()


def make_folder(path: str | Path) -> Path:
    """A folder that is there afterwards, parents included.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={str(path)!r} is not legal: a folder, or where one can be made "
                         f"({error.strerror})") from error
    return Path(path)


def save_bundle(folder: str | Path, graph: Graph, weights: Arrays, samples: Samples) -> None:
    """Write a bundle; graph.json comes last, so that a killed writer leaves nothing that loads.

    Raises:
        BundleError: the parts do not fit together.
        ValueError: the folder cannot be made.
    """
    folder = make_folder(folder)
    (folder / "graph.json").unlink(missing_ok=True)
    _check_graph(graph)
    _check_arrays(weights, array_shapes(graph.ops, graph.shapes, secret=True), "model.npz")
    _check_samples(samples, graph)
    _write_npz(folder / "public.npz", graph.public)
    _write_npz(folder / "model.npz", weights)
    _write_npz(folder / "samples.npz", {"images": samples.images, "labels": samples.labels, "logits": samples.logits})
    temporary = folder / "graph.json.tmp"
    temporary.write_text(json.dumps(graph_document(graph), indent=1))
    os.replace(temporary, folder / "graph.json")


def load_graph(folder: str | Path) -> Graph:
    """The public part of a bundle.

    Raises:
        BundleError: not a bundle, of another version, damaged or inconsistent.
    """
    folder = Path(folder)
    document = _read_json(folder / "graph.json")
    try:
        graph = _parse_graph(document, _read_npz(folder / "public.npz"))
        _check_graph(graph)
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{folder / 'graph.json'} is damaged: {type(error).__name__}: {error}") from error
    return graph


def load_weights(folder: str | Path, graph: Graph) -> Arrays:
    """The server's part: "op/array" -> float array. Raises BundleError as `load_graph`."""
    arrays = _read_npz(Path(folder) / "model.npz")
    _check_arrays(arrays, array_shapes(graph.ops, graph.shapes, secret=True), "model.npz")
    return arrays


def load_samples(folder: str | Path, graph: Graph) -> Samples:
    """The client's part. Raises BundleError as `load_graph`."""
    arrays = _read_npz(Path(folder) / "samples.npz")
    if set(arrays) != {"images", "labels", "logits"}:
        raise BundleError(f"samples.npz holds {sorted(arrays)}, expected images, labels, logits")
    samples = Samples(**arrays)
    _check_samples(samples, graph)
    return samples


def _parse_graph(document: dict, public: Arrays) -> Graph:
    ops = tuple(Op(str(o["name"]), str(o["kind"]), tuple(map(str, o["inputs"])),
                   {str(k): tuple(v) for k, v in o["attrs"].items()}) for o in document["ops"])
    ranges = {str(k): (float(low), float(high)) for k, (low, high) in document["ranges"].items()}
    return Graph(str(document["input"]["name"]), tuple(document["input"]["shape"]), ops, public, ranges,
                 dict(document["meta"]))


def _check_graph(graph: Graph) -> None:
    if not graph.ops:
        raise BundleError("graph.json holds no operation")
    for name in [graph.input_name, *(op.name for op in graph.ops)]:
        if not _NAME.fullmatch(name):
            raise BundleError(f"tensor name {name!r} is not legal: letters, digits, '_', '.' and '-'")
    if len(graph.input_shape) not in (1, 3) or not all(type(n) is int and 0 < n < 2**14 for n in graph.input_shape):
        raise BundleError(f"input shape {list(graph.input_shape)} is not [C, H, W] or [F]")
    try:
        shapes = graph.shapes
    except ValueError as error:
        raise BundleError(f"graph.json: {error}") from error
    if len(shapes[graph.output_name]) != 1:
        raise BundleError(f"the result {graph.output_name!r} is {list(shapes[graph.output_name])}, not [classes]")
    if set(graph.ranges) != set(shapes):
        raise BundleError(f"ranges are recorded for other tensors: {sorted(set(graph.ranges) ^ set(shapes))[:4]} ...")
    if not all(np.isfinite(pair).all() and pair[0] <= pair[1] for pair in graph.ranges.values()):
        raise BundleError("a recorded range is not finite and ordered")
    _check_arrays(graph.public, array_shapes(graph.ops, shapes, secret=False), "public.npz")


def _check_arrays(arrays: Arrays, expected: dict[str, Shape], file: str) -> None:
    if set(arrays) != set(expected):
        raise BundleError(f"{file}: missing {sorted(set(expected) - set(arrays))[:4]}, "
                          f"unexpected {sorted(set(arrays) - set(expected))[:4]}")
    for key, shape in expected.items():
        array, wanted = arrays[key], bool if key.endswith("/mask") else np.floating
        if array.shape != shape or not np.issubdtype(array.dtype, wanted):
            raise BundleError(f"{file}: {key} is {array.dtype}{list(array.shape)}, expected {wanted.__name__}"
                              f"{list(shape)}")
        if not np.isfinite(array).all():
            raise BundleError(f"{file}: {key} holds NaN or infinity")


def _check_samples(samples: Samples, graph: Graph) -> None:
    k = samples.images.shape[0] if samples.images.ndim else 0
    classes = graph.shapes[graph.output_name][0]
    expected = {"images": (k, *graph.input_shape), "labels": (k,), "logits": (k, classes)}
    for key, shape in expected.items():
        array, wanted = getattr(samples, key), np.integer if key == "labels" else np.floating
        if array.shape != shape or not np.issubdtype(array.dtype, wanted) or not np.isfinite(array).all():
            raise BundleError(f"samples.npz: {key} is {array.dtype}{list(array.shape)} or not finite, expected "
                              f"{wanted.__name__}{list(shape)}")
    if k == 0:
        raise BundleError("samples.npz holds no image")


def _write_npz(path: Path, arrays: Arrays) -> None:
    temporary = path.with_suffix(".npz.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def _read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: not a bundle, or an export that was cut short; make one with "
                          "python -m autorep.mpc export") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{path} is not a bundle of this toolkit (no \"format\": \"{FORMAT}\")")
    if document.get("version") != VERSION:
        raise BundleError(f"{path} is of version {document.get('version')!r}, this code reads version {VERSION}: "
                          "export the checkpoint again")
    return document


def _read_npz(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > MAX_BYTES:
                raise BundleError(f"{path} would unpack to {size} bytes, more than {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: not a whole bundle") from error
    except BundleError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have many ways to find that a file is damaged
        raise BundleError(f"{path} is damaged or not plain arrays: {error}") from error
