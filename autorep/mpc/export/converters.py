"""What each torch module and function becomes: operations with their attributes and arrays.

A converter takes a `Call` and returns the operations that follow one another in its place, or none where the result
repeats the elements of the operand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from autorep.gates.gated_relu import GatedReLU
from autorep.mpc.bundle.graph import Arrays


class Operation(NamedTuple):
    """An operation without name and operands."""

    kind: str
    attrs: dict[str, tuple[int, ...]] = {}
    arrays: Arrays = {}


@dataclass(frozen=True)
class Call:
    """A call in a traced network that computes something from the image.

    Args:
        name: of its node, for errors.
        target: the module or function, or the name of the method.
        in_shapes: of the operands that depend on the image, [N, ...].
        out_shape: of the result, [N, ...].
        args, kwargs: as called; no values of what depends on the image.
    """

    name: str
    target: Any
    in_shapes: list[tuple[int, ...]]
    out_shape: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def named(self, *names: str) -> dict[str, Any]:
        """The arguments by name, whose positions are those of `names`; one that is not given is missing."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs


Converter = Callable[[Call], list[Operation]]


def _array(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv(call: Call) -> list[Operation]:
    m: nn.Conv2d = call.target
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
    return [Operation("conv", attrs, {"weight": _array(m.weight), "bias": bias})]


def _linear(weight: Tensor, bias: Tensor | None) -> list[Operation]:
    arrays = {"weight": _array(weight), "bias": np.zeros(len(weight)) if bias is None else _array(bias)}
    return [Operation("linear", {"out_features": (len(weight),)}, arrays)]


def _function_linear(call: Call) -> list[Operation]:
    given = call.named("input", "weight", "bias")
    return _linear(given["weight"], given.get("bias"))


def _batch_norm(mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None,
                eps: float) -> list[Operation]:
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be exported")
    scale = 1 / np.sqrt(_array(variance) + eps) * (1 if weight is None else _array(weight))
    shift = (0 if bias is None else _array(bias)) - _array(mean) * scale
    return [Operation("affine", {}, {"scale": scale, "shift": shift})]


def _module_batch_norm(call: Call) -> list[Operation]:
    m: nn.BatchNorm2d = call.target
    return _batch_norm(m.running_mean, m.running_var, m.weight, m.bias, m.eps)


def _function_batch_norm(call: Call) -> list[Operation]:
    given = call.named("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    mean, variance = (None, None) if given.get("training") else (given["running_mean"], given["running_var"])
    return _batch_norm(mean, variance, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


def gate_arrays(gate: GatedReLU) -> Arrays:
    """The public arrays of a gate as it is now: mask, bool [C, ...], and coefficients, float64 [C, D]."""
    return {"mask": gate.mask.cpu().numpy().copy(), "coefficients": _array(gate.coefficients)}


def _gate(call: Call) -> list[Operation]:
    return [Operation("gate", {"degree": (call.target.config.degree,)}, gate_arrays(call.target))]


def _relu(call: Call) -> list[Operation]:
    shape = call.out_shape[1:]
    coefficients = np.tile([0.0, 1.0], (shape[0], 1))
    return [Operation("gate", {"degree": (1,)}, {"mask": np.ones(shape, bool), "coefficients": coefficients})]


def _pool(kind: str, call: Call) -> list[Operation]:
    """Windows that begin `before` the input; where ceil_mode lets them end behind it, the padding is that much more.

    One dimension, n = 6, kernel 3, stride 2, padding 1, ceil_mode: four windows, the last of which ends 2 behind.

        padded   p 0 1 2 3 4 5 p p
        windows  [---] [---]
                     [---] [---]
    """
    last = ("ceil_mode", "count_include_pad") if kind == "avg_pool" else ("dilation", "ceil_mode")
    options = vars(call.target) if isinstance(call.target, nn.Module) else call.named(
        "input", "kernel_size", "stride", "padding", *last, "divisor_override")
    kernel = _two(options["kernel_size"])
    stride, before = _two(options.get("stride") or kernel), _two(options.get("padding") or 0)
    dilation = _two(options.get("dilation") or 1)
    ends = [(o - 1) * s + k - n - p for o, s, k, n, p in
            zip(call.out_shape[2:], stride, kernel, call.in_shapes[0][2:], before, strict=True)]
    after = [max(0, end) for end in ends]
    counts_all = (before == (0, 0) and after == [0, 0]) or (options.get("count_include_pad", True)
                                                           and tuple(after) <= before)
    if dilation != (1, 1) or options.get("divisor_override") or (kind == "avg_pool" and not counts_all):
        raise ValueError(f"{kind} with dilation, a divisor, or padding that is not counted cannot be exported")
    padding = (before[0], after[0], before[1], after[1])
    return [Operation(kind, {"kernel": kernel, "stride": stride, "padding": padding})]


def _mean_of_windows(window: tuple[int, ...]) -> list[Operation]:
    return [Operation("avg_pool", {"kernel": window, "stride": window, "padding": (0, 0, 0, 0)})]


def _adaptive_pool(call: Call) -> list[Operation]:
    (height, width), (out_height, out_width) = call.in_shapes[0][2:], call.out_shape[2:]
    if (height, width) == (1, 1):
        return []
    if height % out_height or width % out_width:
        raise ValueError(f"adaptive pooling from {height}x{width} to {out_height}x{out_width} cannot be exported: "
                         "windows of one size can, so use images of another size")
    return _mean_of_windows((height // out_height, width // out_width))


def _mean(call: Call) -> list[Operation]:
    (shape,), dim = call.in_shapes, call.named("input", "dim").get("dim")
    if len(shape) != 4 or not isinstance(dim, (tuple, list)) or sorted(d % 4 for d in dim) != [2, 3]:
        raise ValueError(f"the mean of {list(shape)} over dimensions {dim} cannot be exported: over height and "
                         "width it can")
    return _mean_of_windows(shape[2:])


def _add(call: Call) -> list[Operation]:
    shapes = call.in_shapes
    if len(shapes) != 2 or shapes[0] != shapes[1] or call.kwargs:
        raise ValueError(f"a sum of {[list(s) for s in shapes]}{call.kwargs or ''} cannot be exported: two tensors of "
                         "one shape can be added")
    return [Operation("add")]


def _mul(call: Call) -> list[Operation]:
    if len(call.in_shapes) != 2 or call.kwargs:
        raise ValueError(f"a product of {[list(s) for s in call.in_shapes]}{call.kwargs or ''} cannot be exported: "
                         "that of two tensors that depend on the image can")
    return [Operation("mul")]


def _concat(call: Call) -> list[Operation]:
    dim = call.named("tensors", "dim").get("dim", 0)
    if dim not in (1, 1 - len(call.out_shape)):
        raise ValueError(f"concatenation along dimension {dim} cannot be exported: channels can")
    return [Operation("concat")]


def _hard_sigmoid(call: Call) -> list[Operation]:
    """1 - relu(1 - relu(x / 6 + 1 / 2)): clamped from both sides."""
    def line(scale: float, shift: float) -> Operation:
        channels = call.out_shape[1]
        return Operation("affine", {}, {"scale": np.full(channels, scale), "shift": np.full(channels, shift)})

    return [line(1 / 6, 0.5), *_relu(call), line(-1, 1), *_relu(call), line(-1, 1)]


_MODULES: tuple[tuple[tuple[type, ...], Converter], ...] = (
    ((GatedReLU,), _gate), ((nn.Conv2d,), _conv),
    ((nn.Linear,), lambda call: _linear(call.target.weight, call.target.bias)),
    ((nn.BatchNorm2d, nn.BatchNorm1d), _module_batch_norm),
    ((nn.ReLU,), _relu), ((nn.AvgPool2d,), partial(_pool, "avg_pool")), ((nn.MaxPool2d,), partial(_pool, "max_pool")),
    ((nn.AdaptiveAvgPool2d,), _adaptive_pool), ((nn.Hardsigmoid,), _hard_sigmoid),
)
_CALLS: dict[Any, Converter] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _mul),
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), _relu),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    torch.cat: _concat, torch.concat: _concat, F.batch_norm: _function_batch_norm, F.linear: _function_linear,
    F.avg_pool2d: partial(_pool, "avg_pool"), F.max_pool2d: partial(_pool, "max_pool"),
    F.adaptive_avg_pool2d: _adaptive_pool, F.hardsigmoid: _hard_sigmoid,
}
# With constants for all operands but one, what these compute may be affine.
_ARITHMETIC = frozenset((
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, operator.neg, torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.rsub,
    *(f"{name}{end}" for name in ("add", "sub", "mul", "div", "neg") for end in ("", "_")),
))
# What moves, chooses or repeats elements and computes nothing with them (in evaluation mode).
_MOVING_MODULES = (nn.Flatten, nn.ChannelShuffle, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout1d, StochasticDepth)
_MOVING_CALLS = frozenset((
    operator.getitem, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.chunk, torch.split,
    torch.squeeze, torch.unsqueeze, torch.narrow, F.channel_shuffle, F.dropout,
    "flatten", "view", "reshape", "transpose", "permute", "chunk", "split", "squeeze", "unsqueeze", "narrow",
    "contiguous", "expand_as",
))


def is_arithmetic(target: Any) -> bool:
    """Whether a function or method (by name) adds, subtracts, multiplies or divides."""
    return not isinstance(target, nn.Module) and target in _ARITHMETIC


def affine_of(name: str, values: Sequence[Tensor]) -> list[Operation]:
    """The affine map of a function of one number a pixel, from its values [1, C, ...] at 0, 1, 2 and 3.

    Raises:
        ValueError: it is not affine, or not the same for all pixels of a channel.
    """
    found = [_array(value[0]) for value in values]
    shift_C, scale_C = (each.reshape(len(each), -1)[:, 0] for each in (found[0], found[1] - found[0]))
    for k, value in enumerate(found):
        with np.errstate(invalid="ignore"):  # a division by the image, at 0
            expected = (scale_C * k + shift_C).reshape(-1, *[1] * (value.ndim - 1))
        if not np.allclose(value, np.broadcast_to(expected, value.shape), rtol=1e-9, atol=1e-12):
            raise ValueError(f"{name}: arithmetic with constants cannot be exported unless it multiplies each channel "
                             "by one number and adds another")
    if (scale_C == 1).all() and (shift_C == 0).all():
        return []
    return [Operation("affine", {}, {"scale": scale_C, "shift": shift_C})]


def drops_at_random(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is a dropout that stays active in evaluation, as `F.dropout(x)` without `training` does."""
    return target is F.dropout and (args[2] if len(args) > 2 else kwargs.get("training", True)) is not False


def moves(target: Any) -> bool:
    """Whether a module, function or method (by name) only moves elements."""
    return isinstance(target, _MOVING_MODULES) if isinstance(target, nn.Module) else target in _MOVING_CALLS


def convert(call: Call) -> list[Operation]:
    """The operations of a call.

    Raises:
        ValueError: it computes what no operations stand for.
    """
    if isinstance(call.target, nn.Module):
        what = type(call.target).__name__
        found = next((converter for types, converter in _MODULES if isinstance(call.target, types)), None)
    else:
        what = getattr(call.target, "__name__", call.target)
        found = _CALLS.get(call.target)
    if found is None:
        instead = "; put nn.Hardsigmoid in its place and fine-tune" if what.lower() == "sigmoid" else ""
        raise ValueError(f"{call.name}: {what} cannot be exported: private inference knows convolution, linear, batch "
                         "norm, ReLU, gates and Hardsigmoid, sums, products, concatenation, pooling, and moving "
                         f"elements{instead}")
    return found(call)
