"""Pools, and means and maxima over height and width, which are pools of one window."""

from __future__ import annotations

from functools import partial
from itertools import chain
from math import lcm, prod
from typing import Any

import numpy as np
from torch import nn

from autorep.mpc.export.operation import Call, Operation, affine, of_row, one_pixel_high, rearranged, two

_MOST_REPEATED = 2**26  # elements of an image before a pool


def pool(kind: str, call: Call) -> list[Operation]:
    """Windows that begin `before` the input; where ceil_mode lets them end behind it, the padding is that much more.

    One dimension, n = 6, kernel 3, stride 2, padding 1, ceil_mode: four windows, the last of which ends 2 behind.

        padded   p 0 1 2 3 4 5 p p
        windows  [---] [---]
                     [---] [---]

    A window of dilated elements, or one that does not count all of its padding, is made of its elements.
    """
    last = ("ceil_mode", "count_include_pad") if kind == "avg_pool" else ("dilation", "ceil_mode")
    options = vars(call.target) if isinstance(call.target, nn.Module) else call.named(
        "input", "kernel_size", "stride", "padding", *last, "divisor_override")
    (sizes, outs), side = _sizes(call), partial(_sides, call)
    kernel, dilation = side(options["kernel_size"], 1), side(options.get("dilation") or 1, 1)
    stride, before = side(options.get("stride") or kernel, 1), side(options.get("padding") or 0, 0)
    ends = [(o - 1) * s + k - n - p for o, s, k, n, p in zip(outs, stride, kernel, sizes, before, strict=True)]
    after = [max(0, end) for end in ends]
    counts_padding = kind == "avg_pool" and options.get("count_include_pad", True)
    counted = all(a <= b for a, b in zip(after, before, strict=True))  # torch counts none behind its own padding
    counted = counted and (before == (0, 0) or counts_padding)
    divisor = options.get("divisor_override")
    if dilation != (1, 1) or not (counted or divisor or kind == "max_pool"):
        return _gathered(kind, call, [
            [[at for at in range(i * s - p, min(i * s - p + d * k, n + p), d) if counts_padding or 0 <= at < n]
             for i in range(out)]
            for n, out, k, s, p, d in zip(sizes, outs, kernel, stride, before, dilation, strict=True)])
    padding = (before[0], after[0], before[1], after[1])
    found = [Operation(kind, {"kernel": kernel, "stride": stride, "padding": padding})]
    channels = call.in_shapes[0][1]
    if len(call.in_shapes[0]) == 3:
        found.insert(0, one_pixel_high(call.in_shapes[0]))
    if divisor:
        found.append(affine(np.full(channels, prod(kernel) / divisor), np.zeros(channels)))
    return found


def _sizes(call: Call) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width before and after a pool; [N, C, L] is one pixel high. Raises ValueError for other shapes."""
    before, after = call.in_shapes[0], call.out_shape
    if len(before) < 3 or before[:2] != after[:2]:  # torch takes the images for channels
        raise ValueError(f"a pool of {list(before)} to {list(after)} cannot be exported: that of images [N, C, H, W] "
                         "or rows [N, C, L] can")
    return tuple((1, *shape[2:])[-2:] for shape in (before, after))


def _sides(call: Call, value: Any, high: int) -> tuple[int, int]:
    """An option of a pool for height and width; `high`: for images one pixel high."""
    return two(value) if len(call.in_shapes[0]) == 4 else of_row(value, high)


def adaptive_pool(kind: str, call: Call) -> list[Operation]:
    """Windows whose sizes may differ."""
    sizes, outs = _sizes(call)
    if sizes in ((1, 1), outs):
        return []
    return _gathered(kind, call, [[list(range(i * n // out, -(-(i + 1) * n // out))) for i in range(out)]
                                  for n, out in zip(sizes, outs, strict=True)])


def _gathered(kind: str, call: Call, windows: list[list[list[int]]]) -> list[Operation]:
    """A pool over windows of these rows and these columns; what is none of the image is zero.

    Each repeats its elements until all are of one size: that of the largest one for a maximum, their least common
    multiple for a mean. One dimension: windows 0, 0 1, 1 2, 2 become 0 0, 0 1, 1 2, 2 2.
    """
    channels, (sizes, outs) = call.in_shapes[0][1], _sizes(call)
    if not all(map(len, chain(*windows))):
        raise ValueError("a pool of which a window has no element in the image cannot be exported")
    common = lcm if kind == "avg_pool" else max
    shape = tuple(common(*map(len, each), 1) for each in windows)
    rows, columns = (np.concatenate([np.resize(window, size) for window in each])
                     for each, size in zip(windows, shape, strict=True))
    if channels * len(rows) * len(columns) > _MOST_REPEATED:
        raise ValueError(f"pooling from {list(sizes)} to {list(outs)} cannot be exported: its windows have "
                         "two large sizes, so use images of another size")
    inside = ((rows >= 0) & (rows < sizes[0]))[:, None] & (columns >= 0) & (columns < sizes[1])
    within = np.where(inside, rows[:, None] * sizes[1] + columns, 0)
    positions = np.where(inside, np.arange(channels)[:, None, None] * prod(sizes) + within, -1)
    return [rearranged(positions), *([] if shape == (1, 1) else [_windows(kind, shape)])]


def _windows(kind: str, size: tuple[int, int]) -> Operation:
    return Operation(kind, {"kernel": size, "stride": size, "padding": (0, 0, 0, 0)})


def dimensions(call: Call) -> list[int]:
    """Over which dimensions of its operand a call reduces, ascending."""
    dims = call.named("input", "dim").get("dim")
    return sorted(d % len(call.in_shapes[0]) for d in ([dims] if isinstance(dims, int) else dims or ()))


def reduce(kind: str, call: Call) -> list[Operation]:
    """The mean or the greatest over height, width or both, or over other dimensions, which become the height then.

    Over the first one too, where tensors were stacked along it, and the second one counts images.
    """
    (shape,), over = call.in_shapes, dimensions(call)
    stacked = shape[0] > 1 == shape[1] and 1 not in over
    if not over or (over[0] == 0 and not stacked) or len(call.out_shape) == 1:
        dims = call.named("input", "dim").get("dim")
        raise ValueError(f"the reduction of {list(shape)} over dimensions {dims} cannot be exported: over others than "
                         "that of the images it can, with keepdim=True where none is left")
    if len(shape) == 4 and over[0] > 1:
        return [_windows(kind, tuple(n if d in over else 1 for d, n in enumerate(shape))[2:])]
    height = prod(shape[d] for d in over)
    positions = np.moveaxis(np.arange(prod(shape)).reshape(shape), over, range(-len(over), 0)).reshape(-1, height, 1)
    return [rearranged(positions), _windows(kind, (height, 1))]
