"""Pools, and means and maxima over height and width, which are pools of one window."""

from __future__ import annotations

from math import lcm, prod

import numpy as np
from torch import nn

from autorep.mpc.export.operation import Call, Operation, rearranged, two

_MOST_REPEATED = 2**26  # elements of an image before a pool


def pool(kind: str, call: Call) -> list[Operation]:
    """Windows that begin `before` the input; where ceil_mode lets them end behind it, the padding is that much more.

    One dimension, n = 6, kernel 3, stride 2, padding 1, ceil_mode: four windows, the last of which ends 2 behind.

        padded   p 0 1 2 3 4 5 p p
        windows  [---] [---]
                     [---] [---]
    """
    last = ("ceil_mode", "count_include_pad") if kind == "avg_pool" else ("dilation", "ceil_mode")
    options = vars(call.target) if isinstance(call.target, nn.Module) else call.named(
        "input", "kernel_size", "stride", "padding", *last, "divisor_override")
    kernel = two(options["kernel_size"])
    stride, before = two(options.get("stride") or kernel), two(options.get("padding") or 0)
    dilation = two(options.get("dilation") or 1)
    ends = [(o - 1) * s + k - n - p for o, s, k, n, p in
            zip(call.out_shape[2:], stride, kernel, call.in_shapes[0][2:], before, strict=True)]
    after = [max(0, end) for end in ends]
    counted = all(a <= b for a, b in zip(after, before, strict=True))  # torch counts no element behind its own padding
    counts_all = counted and (before == (0, 0) or options.get("count_include_pad", True))
    if dilation != (1, 1) or options.get("divisor_override") or (kind == "avg_pool" and not counts_all):
        raise ValueError(f"{kind} with dilation, a divisor, or padding that is not counted cannot be exported")
    padding = (before[0], after[0], before[1], after[1])
    return [Operation(kind, {"kernel": kernel, "stride": stride, "padding": padding})]


def adaptive_pool(kind: str, call: Call) -> list[Operation]:
    """Windows whose sizes may differ: each repeats its elements until all are as large as their least common multiple.

    One dimension, n = 3 to 4: windows 0, 0 1, 1 2, 2 become 0 0, 0 1, 1 2, 2 2.
    """
    (channels, *sizes), outs = call.in_shapes[0][1:], call.out_shape[2:]
    if tuple(sizes) in ((1, 1), tuple(outs)):
        return []
    rows, columns = (_window_elements(n, out) for n, out in zip(sizes, outs, strict=True))
    window = (len(rows) // outs[0], len(columns) // outs[1])
    if channels * len(rows) * len(columns) > _MOST_REPEATED:
        raise ValueError(f"adaptive pooling from {sizes} to {list(outs)} cannot be exported: its windows have "
                         "two large sizes, so use images of another size")
    positions = np.arange(prod(call.in_shapes[0][1:])).reshape(channels, *sizes)[:, rows][:, :, columns]
    repeated = [rearranged(positions)] if positions.shape[1:] != tuple(sizes) else []
    return [*repeated, *([] if window == (1, 1) else [_windows(kind, window)])]


def _window_elements(n: int, out: int) -> list[int]:
    """The elements of all windows of adaptive pooling from n to `out`, one window after the other."""
    windows = [range(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]
    size = lcm(*map(len, windows))
    return [element for window in windows for element in np.repeat(window, size // len(window)).tolist()]


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
