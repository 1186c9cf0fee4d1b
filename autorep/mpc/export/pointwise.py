"""What computes each element from one element and constants: an affine map, or a gate that is written out.

Networks of other methods hold gates in their own form, relu(x) * keep + (1 - keep) * x with zeros and ones per pixel
(Cho et al. 2022, Selective Network Linearization). Such an expression is read from its values at a few numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.export.operation import Operation, affine, rearranged

_ARITHMETIC = ("add", "sub", "mul", "div", "neg")
_OTHERS = ("pow", "square", "relu", "where", "clamp", "clamp_min", "clamp_max", "clip", "maximum", "max", "fmax",
           "minimum", "min", "fmin", "abs", "subtract", "multiply", "divide", "true_divide", "negative", "addcmul",
           "lerp", "float", "double", "masked_fill")
_COMPARISONS = ("gt", "ge", "lt", "le")
_FUNCTIONS = frozenset((
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, operator.neg, operator.pow, operator.ipow, torch.rsub, F.relu, F.threshold,
    *(getattr(operator, name) for name in _COMPARISONS),
    *(name + end for name in (*_ARITHMETIC, *_OTHERS, *_COMPARISONS) for end in ("", "_")),
    *(getattr(torch, name) for name in (*_ARITHMETIC, *_OTHERS, *_COMPARISONS) if hasattr(torch, name)),
))
# A polynomial of degree 2 has three values on either side of zero; further ones, from the smallest to the largest that
# the default number format holds, tell whether it is one.
_FITTED, _CHECKED = (1.0, 2.0, 3.0), (2.0**-14, 0.25, 7.0, 1000.0, 2.0**14)
PROBES = tuple(sign * size for size in _FITTED + _CHECKED for sign in (1, -1))


def is_pointwise(target: Any) -> bool:
    """Whether a module, function or method (by name) computes elements from the same elements of its operands."""
    return isinstance(target, (nn.ReLU, nn.Threshold)) if isinstance(target, nn.Module) else target in _FUNCTIONS


def pointwise_operations(values: Mapping[float, np.ndarray], bent: bool = False) -> list[Operation] | None:
    """The operations of a function of one number per element, from its values [C, ...], float64, at `PROBES`.

    None where it is neither an affine map nor, at each pixel, a ReLU or a polynomial; or, if `bent`, where it is not
    affine on both sides of zero. Where pixels of a channel differ in more than that, every pixel is a channel.
    """
    find = _bent_operations if bent else _channel_operations
    found = find(values)
    if found is None and (shape := values[1.0].shape)[1:]:
        found = find({x: each.reshape(-1) for x, each in values.items()})
        found = found and [rearranged(np.arange(prod(shape))), *found]
    return found


def _channel_operations(values: Mapping[float, np.ndarray]) -> list[Operation] | None:
    above, below = (_quadratic(values, sign) for sign in (1, -1))
    if above is None or below is None:
        return None
    kept = _is(above, (0, 1, 0)) & _is(below, (0, 0, 0))
    if not (kept | _same(above, below, 0)).all():
        return None
    coefficients_CD = _of_channels(above, kept)
    if coefficients_CD is None:
        return None
    if kept.any() or coefficients_CD[:, 2].any():
        return [_gate(kept, coefficients_CD)]
    shift_C, scale_C = coefficients_CD[:, 0], coefficients_CD[:, 1]
    if (scale_C == 1).all() and (shift_C == 0).all():
        return []
    return [affine(scale_C, shift_C)]


def _bent_operations(values: Mapping[float, np.ndarray]) -> list[Operation] | None:
    """With slopes a above zero and b below: a relu(x) if b is 0, -b (relu(x) - x) if a is, or else x and a bend on one
    side, a (x + (1 - b / a) (relu(x) - x)) or b (x + (a / b - 1) relu(x)).
    """
    above, below = (_quadratic(values, sign) for sign in (1, -1))
    if above is None or below is None or above[2].any() or below[2].any():
        return None
    jumps, bends = ~_equal(above, below, 0)[:2]
    if jumps.any():
        return None
    coefficients_CD = _of_channels(np.stack([above[0], above[1], below[1]]), np.zeros(bends.shape, bool))
    if coefficients_CD is None:
        return None
    shift_C, above_C, below_C = coefficients_CD.T
    relu, minus_x, plus_x = _gate(bends, np.tile([0.0, 1.0], (len(bends), 1))), Operation("sub"), Operation("add")
    if not below_C.any():
        return [relu, affine(above_C, shift_C)]
    if not above_C.any():
        return [relu, minus_x, affine(-below_C, shift_C)]
    if above_C.all():
        slope_C, bent = above_C, [relu, minus_x, affine(1 - below_C / above_C, 0 * shift_C), plus_x]
    elif below_C.all():
        slope_C, bent = below_C, [relu, affine(above_C / below_C - 1, 0 * shift_C), plus_x]
    else:
        return None
    return bent if (slope_C == 1).all() and not shift_C.any() else [*bent, affine(slope_C, shift_C)]


def _quadratic(values: Mapping[float, np.ndarray], sign: int) -> np.ndarray | None:
    """Coefficients [3, C, ...], constant first, of the quadratic that has these values; None where it is none."""
    one, two, three = (values[sign * size] for size in _FITTED)
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.stack([3 * one - 3 * two + three, sign * (4 * two - 2.5 * one - 1.5 * three),
                          0.5 * one - two + 0.5 * three])
        largest = np.abs(found).max(0)
        found[np.abs(found) < 1e-12 * largest] = 0
        for x in (sign * size for size in _CHECKED):
            error = np.abs(found[0] + x * (found[1] + x * found[2]) - values[x])
            if not (error <= 1e-9 * largest * max(1, abs(x), x * x)).all():  # nor where it is NaN
                return None
    return found


def _is(coefficients: np.ndarray, expected: tuple[float, float, float]) -> np.ndarray:
    return np.isclose(np.moveaxis(coefficients, 0, -1), expected, rtol=0, atol=1e-9).all(-1)


def _same(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    """Whether all coefficients along `axis` are equal, up to the rounding of the largest of them."""
    return _equal(first, second, axis).all(axis)


def _equal(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    """Which coefficients are equal, up to the rounding of the largest of them along `axis`."""
    largest = np.maximum(np.abs(first), np.abs(second)).max(axis, keepdims=True)
    return np.abs(first - second) <= 1e-9 * largest


def _of_channels(coefficients: np.ndarray, kept: np.ndarray) -> np.ndarray | None:
    """[C, 3] that the pixels of a channel share, apart from the kept ones; the identity where all are kept."""
    found_CD = np.tile([0.0, 1.0, 0.0], (len(kept), 1))
    for c, (mask, own) in enumerate(zip(kept, np.moveaxis(coefficients, 0, -1), strict=True)):
        others = own[~mask]
        if not _same(others, others[:1], 1).all():
            return None
        if len(others):
            found_CD[c] = others[0]
    return found_CD


def _gate(kept: np.ndarray, coefficients_CD: np.ndarray) -> Operation:
    degree = 2 if coefficients_CD[:, 2:].any() else 1
    arrays: Arrays = {"mask": kept, "coefficients": coefficients_CD[:, :degree + 1]}
    return Operation("gate", {"degree": (degree,)}, arrays)
