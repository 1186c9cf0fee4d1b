"""Pools, and means and maxima over height and width, which are pools of one window."""

from __future__ import annotations

import numpy as np
from torch import nn

from autorep.mpc.export.operation import Call, Operation, two


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
    counts_all = (before == (0, 0) and after == [0, 0]) or (options.get("count_include_pad", True)
                                                           and tuple(after) <= before)
    if dilation != (1, 1) or options.get("divisor_override") or (kind == "avg_pool" and not counts_all):
        raise ValueError(f"{kind} with dilation, a divisor, or padding that is not counted cannot be exported")
    padding = (before[0], after[0], before[1], after[1])
    return [Operation(kind, {"kernel": kernel, "stride": stride, "padding": padding})]


def adaptive_pool(kind: str, call: Call) -> list[Operation]:
    """Windows of one size, or nothing where each is one element."""
    (height, width), (out_height, out_width) = call.in_shapes[0][2:], call.out_shape[2:]
    if (height, width) in ((1, 1), (out_height, out_width)):
        return []
    if height % out_height or width % out_width:
        raise ValueError(f"adaptive pooling from {height}x{width} to {out_height}x{out_width} cannot be exported: "
                         "windows of one size can, so use images of another size")
    return [_windows(kind, (height // out_height, width // out_width))]


def _windows(kind: str, size: tuple[int, int]) -> Operation:
    return Operation(kind, {"kernel": size, "stride": size, "padding": (0, 0, 0, 0)})


def dimensions(call: Call) -> list[int]:
    """Over which dimensions of its operand a call reduces, ascending."""
    dims = call.named("input", "dim").get("dim")
    return sorted(d % len(call.in_shapes[0]) for d in ([dims] if isinstance(dims, int) else dims or ()))


def reduce(kind: str, call: Call) -> list[Operation]:
    """The mean or the greatest over all of height, width or both, or over the last of [N, C, L]."""
    (shape,), dims, over = call.in_shapes, call.named("input", "dim").get("dim"), dimensions(call)
    if not over or over[0] < 2 or len(shape) > 4:
        raise ValueError(f"the reduction of {list(shape)} over dimensions {dims} cannot be exported: over height and "
                         "width it can")
    window = tuple(n if d in over else 1 for d, n in enumerate(shape))[2:]
    if len(shape) == 4:
        return [_windows(kind, window)]
    image = (*shape[1:], 1)
    return [Operation("rearrange", {"shape": image}, {"positions": np.arange(np.prod(image)).reshape(image)}),
            _windows(kind, (*window, 1))]
