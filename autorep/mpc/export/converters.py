"""What each torch module and function becomes: operations with their attributes and arrays.

A converter takes a `Call` and returns the operations that follow one another in its place, or none where the result
repeats the elements of the operand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autorep.gates.gated_relu import GatedReLU
from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.export.operation import Operation, two


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
        return dict(zip(names, self.args, strict=False)) | self.kwargs


Converter = Callable[[Call], list[Operation]]


def _array(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _convolution(weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                 groups: int) -> list[Operation]:
    kernel, dilation = tuple(weight.shape[2:]), two(dilation)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        sides = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        sides = tuple(side for each in two(padding) for side in (each, each))
    attrs = {"kernel": kernel, "stride": two(stride), "padding": sides, "dilation": dilation, "groups": (groups,),
             "out_channels": (len(weight),)}
    return [Operation("conv", attrs, {"weight": _array(weight), "bias": _bias(weight, bias)})]


def _bias(weight: Tensor, bias: Tensor | None) -> np.ndarray:
    return np.zeros(len(weight)) if bias is None else _array(bias)


def _conv(call: Call) -> list[Operation]:
    m: nn.Conv2d = call.target
    if m.padding_mode != "zeros":
        raise ValueError(f"convolution with padding_mode={m.padding_mode!r} cannot be exported: zeros can")
    return _convolution(m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _function_conv(call: Call) -> list[Operation]:
    given = call.named("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    return _convolution(given["weight"], given.get("bias"), given.get("stride", 1), given.get("padding", 0),
                        given.get("dilation", 1), given.get("groups", 1))


def _linear(weight: Tensor, bias: Tensor | None) -> list[Operation]:
    arrays = {"weight": _array(weight), "bias": _bias(weight, bias)}
    return [Operation("linear", {"out_features": (len(weight),)}, arrays)]


def _function_linear(call: Call) -> list[Operation]:
    given = call.named("input", "weight", "bias")
    return _linear(given["weight"], given.get("bias"))


def _matmul(call: Call) -> list[Operation]:
    weight = call.args[1] if len(call.args) > 1 else None
    if len(call.in_shapes) != 1 or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ValueError("a matrix product cannot be exported: features times a constant matrix can")
    return _linear(weight.T, None)


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
    if call.target.keeps_original and call.target.mask.any():
        raise ValueError(f"kept pixels compute {call.target.kind}, which private inference does not know: convert the "
                         "model with kept='relu'")
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


def _adaptive_pool(kind: str, call: Call) -> list[Operation]:
    (height, width), (out_height, out_width) = call.in_shapes[0][2:], call.out_shape[2:]
    if (height, width) in ((1, 1), (out_height, out_width)):
        return []
    if height % out_height or width % out_width:
        raise ValueError(f"adaptive pooling from {height}x{width} to {out_height}x{out_width} cannot be exported: "
                         "windows of one size can, so use images of another size")
    return [_windows(kind, (height // out_height, width // out_width))]


def _windows(kind: str, size: tuple[int, int]) -> Operation:
    return Operation(kind, {"kernel": size, "stride": size, "padding": (0, 0, 0, 0)})


def _reduce(kind: str, call: Call) -> list[Operation]:
    """The mean or the greatest over all of height, width or both, or over the last of [N, C, L]."""
    (shape,), dims = call.in_shapes, call.named("input", "dim").get("dim")
    over = sorted(d % len(shape) for d in ([dims] if isinstance(dims, int) else dims or ()))
    if not over or over[0] < 2 or len(shape) > 4:
        raise ValueError(f"the reduction of {list(shape)} over dimensions {dims} cannot be exported: over height and "
                         "width it can")
    window = tuple(n if d in over else 1 for d, n in enumerate(shape))[2:]
    if len(shape) == 4:
        return [_windows(kind, window)]
    image = (*shape[1:], 1)
    return [Operation("rearrange", {"shape": image}, {"positions": np.arange(np.prod(image)).reshape(image)}),
            _windows(kind, (*window, 1))]


def _sum(call: Call) -> list[Operation]:
    *before, pool = _reduce("avg_pool", call)
    channels, count = call.in_shapes[0][1], float(np.prod(pool.attrs["kernel"]))
    return [*before, pool, Operation("affine", {}, {"scale": np.full(channels, count), "shift": np.zeros(channels)})]


def _add(kind: str, call: Call) -> list[Operation]:
    shapes = call.in_shapes
    if len(shapes) != 2 or shapes[0] != shapes[1] or call.kwargs:
        raise ValueError(f"a sum of {[list(s) for s in shapes]}{call.kwargs or ''} cannot be exported: two tensors of "
                         "one shape can be added and subtracted")
    return [Operation(kind)]


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
    ((nn.AdaptiveAvgPool2d,), partial(_adaptive_pool, "avg_pool")),
    ((nn.AdaptiveMaxPool2d,), partial(_adaptive_pool, "max_pool")), ((nn.Hardsigmoid,), _hard_sigmoid),
)
_CALLS: dict[Any, Converter] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), partial(_add, "add")),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_"), partial(_add, "sub")),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _mul),
    **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), _relu),
    **dict.fromkeys((torch.mean, "mean"), partial(_reduce, "avg_pool")),
    **dict.fromkeys((torch.amax, "amax"), partial(_reduce, "max_pool")), **dict.fromkeys((torch.sum, "sum"), _sum),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm, "matmul", "mm"), _matmul),
    torch.cat: _concat, torch.concat: _concat, torch.concatenate: _concat, F.batch_norm: _function_batch_norm,
    F.conv2d: _function_conv, F.linear: _function_linear,
    F.avg_pool2d: partial(_pool, "avg_pool"), F.max_pool2d: partial(_pool, "max_pool"),
    F.adaptive_avg_pool2d: partial(_adaptive_pool, "avg_pool"),
    F.adaptive_max_pool2d: partial(_adaptive_pool, "max_pool"), F.hardsigmoid: _hard_sigmoid,
}


def is_relu(target: Any) -> bool:
    """Whether a module, function or method (by name) is ReLU."""
    return isinstance(target, nn.ReLU) if isinstance(target, nn.Module) else _CALLS.get(target) is _relu


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
        instead = ""
        if what.lower() == "sigmoid":
            instead = "; put hard ones in their place and fine-tune: GateConfig(sigmoid='hard')"
        raise ValueError(f"{what} cannot be exported: private inference knows convolution, linear, batch norm, ReLU, "
                         "gates and Hardsigmoid, sums, products, concatenation, pooling, and moving elements"
                         f"{instead}")
    return found(call)
