"""What each torch module and function becomes: one operation with its attributes and arrays.

A converter takes (module or function, shapes of the operands that depend on the image, shape of the result, arguments,
keyword arguments); shapes are [N, ...]. It returns an operation (kind, attributes, arrays), a list of such that follow
one another, or None where the result repeats the elements of the operand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from autorep.gates.gated_relu import GatedReLU
from autorep.mpc.bundle.graph import Arrays

Operation = tuple[str, dict[str, tuple[int, ...]], Arrays]

def _array(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv(m: nn.Conv2d, shapes, out, args, kwargs):
    if m.padding_mode != "zeros":
        raise ValueError(f"convolution with padding_mode={m.padding_mode!r} cannot be exported: zeros can")
    if isinstance(m.padding, str):
        total = [d * (k - 1) if m.padding == "same" else 0 for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        padding = (m.padding[0], m.padding[0], m.padding[1], m.padding[1])
    attrs = {"kernel": m.kernel_size, "stride": m.stride, "padding": padding, "dilation": m.dilation,
             "groups": (m.groups,), "out_channels": (m.out_channels,)}
    bias = _array(m.bias) if m.bias is not None else np.zeros(m.out_channels)
    return "conv", attrs, {"weight": _array(m.weight), "bias": bias}


def _linear(m: nn.Linear, shapes, out, args, kwargs):
    return _function_linear(m, shapes, out, (None, m.weight, m.bias), {})


def _function_linear(m: Any, shapes, out, args, kwargs):
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    weight, bias = given["weight"], given.get("bias")
    arrays = {"weight": _array(weight), "bias": np.zeros(len(weight)) if bias is None else _array(bias)}
    return "linear", {"out_features": (len(weight),)}, arrays


def _batch_norm(m: nn.BatchNorm2d, shapes, out, args, kwargs):
    return _function_batch_norm(m, shapes, out, (None, m.running_mean, m.running_var, m.weight, m.bias),
                                {"eps": m.eps})


def _function_batch_norm(m: Any, shapes, out, args, kwargs):
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    mean, variance, weight, bias = (given.get(name) for name in names[1:5])
    if variance is None or given.get("training"):
        raise ValueError("a batch norm without running statistics cannot be exported")
    scale = 1 / np.sqrt(_array(variance) + given.get("eps", 1e-5)) * (1 if weight is None else _array(weight))
    shift = (0 if bias is None else _array(bias)) - _array(mean) * scale
    return "affine", {}, {"scale": scale, "shift": shift}


def _gate(m: GatedReLU, shapes, out, args, kwargs):
    return "gate", {"degree": (m.config.degree,)}, gate_arrays(m)


def gate_arrays(gate: GatedReLU) -> Arrays:
    """The public arrays of a gate as it is now: mask, bool [C, ...], and coefficients, float64 [C, D]."""
    return {"mask": gate.mask.cpu().numpy().copy(), "coefficients": _array(gate.coefficients)}


def _relu(m: Any, shapes, out, args, kwargs):
    coefficients = np.tile([0.0, 1.0], (out[1], 1))
    return "gate", {"degree": (1,)}, {"mask": np.ones(out[1:], bool), "coefficients": coefficients}


def _pool(kind: str) -> Callable:
    def convert(m: Any, shapes, out, args, kwargs):
        if isinstance(m, nn.Module):
            options = {k: getattr(m, k, None) for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode",
                                                        "count_include_pad", "divisor_override")}
        else:
            options = dict(zip(("kernel_size", "stride", "padding"), args[1:], strict=False)) | kwargs
        kernel = _two(options["kernel_size"])
        stride, before = _two(options.get("stride") or kernel), _two(options.get("padding") or 0)
        dilation = _two(options.get("dilation") or 1)
        ends = [(o - 1) * s + k - n - p for o, s, k, n, p in
                zip(out[2:], stride, kernel, shapes[0][2:], before, strict=True)]
        after = [max(0, end) for end in ends]
        counts_all = (before == (0, 0) and after == [0, 0]) or (options.get("count_include_pad") is True
                                                               and tuple(after) <= before)
        if dilation != (1, 1) or options.get("divisor_override") or (kind == "avg_pool" and not counts_all):
            raise ValueError(f"{kind} with dilation, a divisor, or padding that is not counted cannot be exported")
        padding = (before[0], after[0], before[1], after[1])
        return kind, {"kernel": kernel, "stride": stride, "padding": padding}, {}
    return convert


def _adaptive_pool(m: Any, shapes, out, args, kwargs):
    (height, width), (out_height, out_width) = shapes[0][2:], out[2:]
    if (height, width) == (1, 1):
        return None
    if height % out_height or width % out_width:
        raise ValueError(f"adaptive pooling from {height}x{width} to {out_height}x{out_width} cannot be exported: "
                         "windows of one size can, so use images of another size")
    window = (height // out_height, width // out_width)
    return "avg_pool", {"kernel": window, "stride": window, "padding": (0, 0, 0, 0)}, {}


def _mean(m: Any, shapes, out, args, kwargs):
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if len(shapes[0]) != 4 or not isinstance(dim, (tuple, list)) or sorted(d % 4 for d in dim) != [2, 3]:
        raise ValueError(f"the mean of {list(shapes[0])} over dimensions {dim} cannot be exported: over height and "
                         "width it can")
    return "avg_pool", {"kernel": shapes[0][2:], "stride": shapes[0][2:], "padding": (0, 0, 0, 0)}, {}


def _add(m: Any, shapes, out, args, kwargs):
    if len(shapes) != 2 or shapes[0] != shapes[1] or kwargs:
        raise ValueError(f"a sum of {[list(s) for s in shapes]}{kwargs or ''} cannot be exported: two tensors of one "
                         "shape can be added")
    return "add", {}, {}


def _mul(m: Any, shapes, out, args, kwargs):
    if len(shapes) != 2 or kwargs:
        raise ValueError(f"a product of {[list(s) for s in shapes]}{kwargs or ''} cannot be exported: that of two "
                         "tensors that depend on the image can")
    return "mul", {}, {}


def _concat(m: Any, shapes, out, args, kwargs):
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if dim not in (1, 1 - len(out)):
        raise ValueError(f"concatenation along dimension {dim} cannot be exported: channels can")
    return "concat", {}, {}


def _hard_sigmoid(m: Any, shapes, out, args, kwargs):
    """1 - relu(1 - relu(x / 6 + 1 / 2)): clamped from both sides."""
    def line(scale: float, shift: float) -> Operation:
        return "affine", {}, {"scale": np.full(out[1], scale), "shift": np.full(out[1], shift)}

    relu = _relu(m, shapes, out, args, kwargs)
    return [line(1 / 6, 0.5), relu, line(-1, 1), relu, line(-1, 1)]


def _sigmoid(m: Any, shapes, out, args, kwargs):
    raise ValueError("Sigmoid cannot be exported: products and comparisons give no exact one; put nn.Hardsigmoid in "
                     "its place and fine-tune")


_MODULES: tuple[tuple[tuple[type, ...], Callable], ...] = (
    ((GatedReLU,), _gate), ((nn.Conv2d,), _conv), ((nn.Linear,), _linear),
    ((nn.BatchNorm2d, nn.BatchNorm1d), _batch_norm),
    ((nn.ReLU,), _relu), ((nn.AvgPool2d,), _pool("avg_pool")), ((nn.MaxPool2d,), _pool("max_pool")),
    ((nn.AdaptiveAvgPool2d,), _adaptive_pool), ((nn.Hardsigmoid,), _hard_sigmoid), ((nn.Sigmoid,), _sigmoid),
)
_CALLS: dict[Any, Callable] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _mul),
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), _relu),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), _sigmoid), F.hardsigmoid: _hard_sigmoid,
    torch.cat: _concat, torch.concat: _concat, F.batch_norm: _function_batch_norm,
    F.linear: _function_linear,
    F.avg_pool2d: _pool("avg_pool"), F.max_pool2d: _pool("max_pool"), F.adaptive_avg_pool2d: _adaptive_pool,
}
# What moves, chooses or repeats elements and computes nothing with them (in evaluation mode).
_MOVING_MODULES = (nn.Flatten, nn.ChannelShuffle, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout1d, StochasticDepth)
_MOVING_CALLS = frozenset((
    operator.getitem, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.chunk, torch.split,
    torch.squeeze, torch.unsqueeze, torch.narrow, F.channel_shuffle, F.dropout,
    "flatten", "view", "reshape", "transpose", "permute", "chunk", "split", "squeeze", "unsqueeze", "narrow",
    "contiguous", "expand_as",
))


def moves(op: str, target: Any) -> bool:
    """Whether a node of a traced graph, fx's `op` and its module, function or method name, only moves elements."""
    return isinstance(target, _MOVING_MODULES) if op == "call_module" else target in _MOVING_CALLS


def converter(op: str, target: Any) -> Callable | None:
    """The converter of a node of a traced graph; None for what no operation stands for."""
    if op == "call_module":
        return next((convert for types, convert in _MODULES if isinstance(target, types)), None)
    return _CALLS.get(target)
