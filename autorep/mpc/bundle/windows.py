"""What each tap of a sliding window reads, for numpy and jax.numpy; elements of an image in other places."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from autorep.mpc.bundle.ops import Op


def pad(xp: Any, x: Any, op: Op, fill: Any) -> Any:
    """[N, C, H, W] with the padding (top, bottom, left, right) of `op`; `xp` is numpy or jax.numpy."""
    top, bottom, left, right = op.attrs["padding"]
    if not any(op.attrs["padding"]):
        return x
    return xp.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def tap_slices(op: Op, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """For every tap, row by row, the rows and columns of the padded input that a result [height, width] reads there.

    The columns of a kernel 3 wide with stride 2, for a result 3 wide:

        padded input    0 1 2 3 4 5 6
        tap 0           ^   ^   ^           slice(0, 5, 2)
        tap 1             ^   ^   ^         slice(1, 6, 2)
        tap 2               ^   ^   ^       slice(2, 7, 2)
    """
    stride, dilation = op.attrs["stride"], op.attrs.get("dilation", (1, 1))
    for taps_ij in product(*map(range, op.attrs["kernel"])):
        starts = [t * d for t, d in zip(taps_ij, dilation, strict=True)]
        ends = [start + (n - 1) * s + 1 for start, n, s in zip(starts, (height, width), stride, strict=True)]
        yield tuple(slice(*bounds) for bounds in zip(starts, ends, stride, strict=True))


def out_size(op: Op, height: int, width: int) -> tuple[int, int]:
    """[H', W'] from a padded [H, W]."""
    dilation = op.attrs.get("dilation", (1, 1))
    return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in
                 zip((height, width), op.attrs["kernel"], op.attrs["stride"], dilation, strict=True))


def taps(xp: Any, x: Any, op: Op, fill: Any) -> Iterator[Any]:
    """For every tap, row by row, what it reads of x [N, C, H, W]: [N, C, H', W']."""
    padded = pad(xp, x, op, fill)
    for rows, columns in tap_slices(op, *out_size(op, *padded.shape[2:])):
        yield padded[:, :, rows, columns]


def rearranged(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[N, ...] -> [N, *positions.shape]: the elements of each image of x at `positions`, zero where those are -1."""
    flat = x.reshape(len(x), -1)
    return np.where(positions < 0, 0, flat[:, positions])
