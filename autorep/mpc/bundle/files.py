"""The bundle: a folder with graph.json and three npz files. No pickle; loading validates everything.

graph.json    public: operations, ranges, how it was made          public.npz   public: masks and coefficients
model.npz     the server's secret: weights                         samples.npz  the client's secret: images, labels,
                                                                                and the logits torch gave for them

All files hold the random `export` of the one that wrote them, so files of two exports are told apart. No hash of them
stands in graph.json: who sees only that could confirm a guess of the weights.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import zipfile
from pathlib import Path

import numpy as np

from autorep.machine.files import write_atomically
from autorep.mpc.bundle.graph import (
    FORMAT,
    VERSION,
    Arrays,
    BundleError,
    Graph,
    Samples,
    check_arrays,
    check_graph,
    check_images,
    check_samples,
    graph_document,
    parse_graph,
)
from autorep.mpc.bundle.ops import array_shapes

MAX_BYTES = 4 * 2**30


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents, if they do not exist.

    Raises:
        ValueError: the folder cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"invalid out={str(path)!r}: expected a folder, or a path where one can be made "
                         f"({error.strerror})") from error
    return Path(path)


def save_bundle(folder: str | Path, graph: Graph, weights: Arrays, samples: Samples) -> None:
    """Write a bundle. graph.json comes last, so a writer that is killed leaves nothing that loads.

    Raises:
        BundleError: the parts do not fit together; a bundle that is there stays.
        ValueError: the folder cannot be made.
    """
    check_graph(graph)
    check_arrays(weights, array_shapes(graph.ops, graph.shapes, secret=True), "model.npz")
    check_samples(samples, graph)
    folder = make_folder(folder)
    (folder / "graph.json").unlink(missing_ok=True)
    document = graph_document(graph) | {"export": secrets.token_hex(16)}
    for name, arrays in (("public", graph.public), ("model", weights), ("samples", vars(samples))):
        _write_npz(folder / f"{name}.npz", arrays | {"export": np.array(document["export"])})
    write_atomically(folder / "graph.json", json.dumps(document | {"sha256": _digest(document)}, indent=1))


def load_graph(folder: str | Path) -> Graph:
    """The public part of a bundle.

    Raises:
        BundleError: not a bundle, of another version, damaged or inconsistent.
    """
    folder = Path(folder)
    document = _read_json(folder / "graph.json")
    try:
        graph = parse_graph(document, _read_part(folder / "public.npz", document.get("export")))
        check_graph(graph)
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{folder / 'graph.json'} is damaged: {type(error).__name__}: {error}") from error
    return graph


def load_weights(folder: str | Path, graph: Graph) -> Arrays:
    """The server's part: "op/array" -> float array. Raises BundleError as `load_graph`."""
    arrays = _read_part(Path(folder) / "model.npz", graph.export)
    check_arrays(arrays, array_shapes(graph.ops, graph.shapes, secret=True), "model.npz")
    return arrays


def load_samples(folder: str | Path, graph: Graph) -> Samples:
    """The client's part. Raises BundleError as `load_graph`."""
    arrays = _read_part(samples_file(folder), graph.export)
    if set(arrays) != {"images", "labels", "logits"}:
        raise BundleError(f"samples.npz holds {sorted(arrays)}, expected images, labels, logits")
    samples = Samples(**arrays)
    check_samples(samples, graph)
    return samples


def samples_file(folder: str | Path) -> Path:
    """The file of a bundle that holds the client's part."""
    return Path(folder) / "samples.npz"


def load_images(path: str | Path, graph: Graph) -> tuple[np.ndarray, np.ndarray | None]:
    """Images [N, C, H, W] as the network takes them, and the logits [N, classes] that are expected, if there are some.

    Args:
        path: an .npy file of images, or an .npz file with `images` and perhaps `logits`, such as `samples_file`.

    Raises:
        BundleError: the file is missing or damaged, or its arrays have another shape or type.
    """
    if not Path(path).is_file():
        raise BundleError(f"no images at {path}: give the path of an .npy or .npz file as --images")
    arrays = {"images": _read_npy(Path(path))} if Path(path).suffix == ".npy" else _read_npz(Path(path))
    if "images" not in arrays:
        raise BundleError(f"{path} holds {sorted(arrays)}, expected images, and logits where they are known")
    if str(arrays.get("export", graph.export)) != str(graph.export):
        raise BundleError(f"{path} holds the logits of another export than graph.json: copy all files of a bundle "
                          "together, or give the images alone, as an .npy file")
    images, logits = arrays["images"], arrays.get("logits")
    check_images(images, logits, graph, str(path))
    return images, logits


def _write_npz(path: Path, arrays: Arrays) -> None:
    write_atomically(path, lambda file: np.savez(file, **arrays))


def _read_part(path: Path, export: str | None) -> Arrays:
    """The arrays of a bundle's file. Raises BundleError also if it is of another export than graph.json."""
    arrays = _read_npz(path)
    if str(arrays.pop("export", None)) != str(export):
        raise BundleError(f"{path} and graph.json are of two exports: copy all files of a bundle together, or export "
                          "the checkpoint again")
    return arrays


def _digest(document: dict) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_text())
        if isinstance(document, dict) and "sha256" in document and document.pop("sha256") != _digest(document):
            raise BundleError(f"{path} is damaged: it differs from its checksum; export the checkpoint again")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path} is missing: this is no bundle, or its export was cut short; make one with "
                          "python -m autorep.mpc export") from error
    except BundleError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{path} is not a bundle of this toolkit (no \"format\": \"{FORMAT}\")")
    if document.get("version") != VERSION:
        raise BundleError(f"{path} is of version {document.get('version')!r}: expected version {VERSION}; export the "
                          "checkpoint again")
    return document


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # as in _read_npz
        raise BundleError(f"{path} is damaged or no plain array: {error}") from error


def _read_npz(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > MAX_BYTES:
                raise BundleError(f"{path} would unpack to {size} bytes: expected at most {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
        if foreign := [key for key, value in found.items() if not isinstance(value, np.ndarray)]:
            raise BundleError(f"{path}: {foreign[0]} is no array")
        return found
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: the bundle is not whole; export the checkpoint again") from error
    except BundleError:
        raise
    except Exception as error:  # zipfile, zlib and numpy have many ways to find that a file is damaged
        raise BundleError(f"{path} is damaged or not plain arrays: {error}") from error
