"""A call in a traced network, and an operation of a bundle before it has a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from autorep.mpc.bundle.graph import Arrays


class Operation(NamedTuple):
    """An operation without name and operands."""

    kind: str
    attrs: dict[str, tuple[int, ...]] = {}
    arrays: Arrays = {}


def array(value: Tensor) -> np.ndarray:
    """A parameter as it is now, float64."""
    return value.detach().double().cpu().numpy()


def affine(scale: np.ndarray, shift: np.ndarray) -> Operation:
    """scale * x + shift, both [C]."""
    return Operation("affine", {}, {"scale": scale, "shift": shift})


def rearranged(positions: np.ndarray) -> Operation:
    """Moves elements: what is in each place of the result, counted from 0 in the operand; int64 [C, ...]."""
    return Operation("rearrange", {"shape": positions.shape}, {"positions": positions})


def one_pixel_high(rows: Sequence[int]) -> Operation:
    """Rows of the shape [N, C, L] as images [N, C, 1, L]."""
    _, channels, length = rows
    return rearranged(np.arange(channels * length).reshape(channels, 1, length))


@dataclass(frozen=True)
class Call:
    """A call in a traced network that computes something from the image.

    Args:
        target: the module or function, or the name of the method.
        in_shapes: of the operands that depend on the image, [N, ...].
        out_shape: of the result, [N, ...].
        args, kwargs: as called; no values of what depends on the image.
    """

    target: Any
    in_shapes: list[tuple[int, ...]]
    out_shape: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def named(self, *names: str) -> dict[str, Any]:
        """The arguments by name, whose positions are those of `names`; one that is not given is missing."""
        return named(self.args, self.kwargs, *names)


_OF_NUMPY = {"axis": "dim", "keepdims": "keepdim"}  # torch takes either name


def named(args: Sequence[Any], kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """As `Call.named`, of any call."""
    return dict(zip(names, args, strict=False)) | {_OF_NUMPY.get(name, name): value for name, value in kwargs.items()}


def two(value: Any) -> tuple[int, int]:
    """Height and width, where one number stands for both."""
    return (value, value) if isinstance(value, int) else tuple(value)


def of_row(value: Any, high: int) -> tuple[int, int]:
    """An option of a layer of rows for height and width; `high`: that of images one pixel high."""
    return high, two(value)[-1]
