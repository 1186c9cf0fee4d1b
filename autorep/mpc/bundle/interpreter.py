"""The reference: what a bundle means, in plain numpy float64."""

from __future__ import annotations

from itertools import product

import numpy as np

from autorep.mpc.bundle.graph import Arrays, Graph
from autorep.mpc.bundle.ops import Op
from autorep.mpc.bundle.windows import rearranged, taps


def run_float(graph: Graph, weights: Arrays, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of the network, float64 [N, ...], for images [N, C, H, W]."""
    arrays = {**weights, **graph.public}
    tensors = {graph.input_name: np.asarray(images, np.float64)}
    for op in graph.ops:
        operands = [tensors[name] for name in op.inputs]
        own = {key.split("/")[1]: value.astype(np.float64) if np.issubdtype(value.dtype, np.floating) else value
               for key, value in arrays.items() if key.split("/")[0] == op.name}
        tensors[op.name] = _FUNCTIONS[op.kind](op, operands, own)
    return tensors


def logits_float(graph: Graph, weights: Arrays, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Logits [N, classes] in float64, a batch at a time."""
    parts = [run_float(graph, weights, images[i:i + batch])[graph.output_name] for i in range(0, len(images), batch)]
    return np.concatenate(parts)


def record_ranges(graph: Graph, weights: Arrays, images: np.ndarray, batch: int = 16) -> dict[str, tuple[float, float]]:
    """Tensor name -> smallest and largest value over all images."""
    ranges: dict[str, tuple[float, float]] = {}
    for start in range(0, len(images), batch):
        for name, value in run_float(graph, weights, images[start:start + batch]).items():
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return ranges


def _conv(op: Op, operands: list[np.ndarray], own: Arrays) -> np.ndarray:
    (x,), groups = operands, op.attrs["groups"][0]
    weight = own["weight"].reshape(groups, -1, *own["weight"].shape[1:])
    pieces = [weight[..., i, j] for i, j in product(*map(range, op.attrs["kernel"]))]
    y = 0
    for piece, seen in zip(pieces, taps(np, x, op, 0), strict=True):
        grouped = seen.reshape(len(x), groups, -1, seen.shape[2] * seen.shape[3])
        y = y + (piece @ grouped).reshape(len(x), -1, *seen.shape[2:])
    return y + own["bias"][:, None, None]


def _polynomial(op: Op, operands: list[np.ndarray], own: Arrays) -> np.ndarray:
    (x,) = operands
    columns = own["coefficients"].T.reshape(-1, x.shape[1], *[1] * (x.ndim - 2))
    y = columns[-1]
    for column in reversed(columns[:-1]):
        y = y * x + column
    return np.broadcast_to(y, x.shape)


def _gate(op: Op, operands: list[np.ndarray], own: Arrays) -> np.ndarray:
    return np.where(own["mask"], np.maximum(operands[0], 0), _polynomial(op, operands, own))


def _affine(op: Op, operands: list[np.ndarray], own: Arrays) -> np.ndarray:
    (x,) = operands
    scale, shift = (own[key].reshape(-1, *[1] * (x.ndim - 2)) for key in ("scale", "shift"))
    return x * scale + shift


_FUNCTIONS = {
    "conv": _conv,
    "linear": lambda op, operands, own: operands[0] @ own["weight"].T + own["bias"],
    "affine": _affine,
    "gate": _gate,
    "polynomial": _polynomial,
    "add": lambda op, operands, own: operands[0] + operands[1],
    "sub": lambda op, operands, own: operands[0] - operands[1],
    "mul": lambda op, operands, own: operands[0] * operands[1],
    "pick": lambda op, operands, own: operands[0][:, list(op.attrs["channels"])],
    "rearrange": lambda op, operands, own: rearranged(operands[0], own["positions"]),
    "concat": lambda op, operands, own: np.concatenate(operands, axis=1),
    "avg_pool": lambda op, operands, own: np.mean(list(taps(np, operands[0], op, 0)), axis=0),
    "max_pool": lambda op, operands, own: np.max(list(taps(np, operands[0], op, -np.inf)), axis=0),
    "unflatten": lambda op, operands, own: operands[0][:, :, None, None],
    "flatten": lambda op, operands, own: operands[0].reshape(len(operands[0]), -1),
}
