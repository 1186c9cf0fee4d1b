"""What each torch module and function becomes: operations with their attributes and arrays.

A converter takes a `Call` and returns the operations that follow one another in its place, or none where the result
repeats the elements of the operand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import Normalize, v2

from autorep.gates.gated_relu import GatedReLU
from autorep.gates.polynomial_sigmoid import Fitted, PolynomialSigmoid
from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.export import activations
from autorep.mpc.export.activations import line, relu
from autorep.mpc.export.operation import Call, Operation, affine, array, of_row, one_pixel_high, rearranged, two
from autorep.mpc.export.pooling import adaptive_pool, dimensions, pool, reduce

Converter = Callable[[Call], list[Operation]]


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
    return [Operation("conv", attrs, {"weight": array(weight), "bias": _bias(weight, bias)})]


def _bias(weight: Tensor, bias: Tensor | None) -> np.ndarray:
    return np.zeros(len(weight)) if bias is None else array(bias)


def _conv(call: Call) -> list[Operation]:
    m: nn.Conv2d = call.target
    if m.padding_mode == "zeros":
        return _convolution(m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    image = call.in_shapes[0][1:]
    whole = torch.arange(prod(image), dtype=torch.float64).reshape(1, *image)
    positions = F.pad(whole, m._reversed_padding_repeated_twice, m.padding_mode)[0].long().numpy()
    return [rearranged(positions), *_convolution(m.weight, m.bias, m.stride, 0, m.dilation, m.groups)]


def _function_conv(call: Call) -> list[Operation]:
    given = call.named("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    rest = (given["weight"], given.get("bias"), given.get("stride", 1), given.get("padding", 0),
            given.get("dilation", 1), given.get("groups", 1))
    return _of_rows(call, *rest) if given["weight"].dim() == 3 else _convolution(*rest)


def _module_of_rows(call: Call) -> list[Operation]:
    m: nn.Conv1d = call.target
    if m.padding_mode != "zeros":
        raise ValueError(f"Conv1d with padding_mode={m.padding_mode!r} cannot be exported: with 'zeros' it can")
    return _of_rows(call, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _of_rows(call: Call, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
             groups: int) -> list[Operation]:
    """A convolution of [N, C, L]: that of images one pixel high."""
    padding = padding if isinstance(padding, str) else of_row(padding, 0)
    return [one_pixel_high(call.in_shapes[0]), *_convolution(weight[:, :, None], bias, of_row(stride, 1), padding,
                                                             of_row(dilation, 1), groups)]


def _linear(call: Call, weight: Tensor, bias: Tensor | None) -> list[Operation]:
    """Of [N, F]; of [N, ..., F] a convolution of one pixel, before and after which the features are the channels."""
    *places, features = call.in_shapes[0][1:]
    if not places:
        arrays = {"weight": array(weight), "bias": _bias(weight, bias)}
        return [Operation("linear", {"out_features": (len(weight),)}, arrays)]
    before = np.arange(prod(places) * features).reshape(-1, features).T[..., None]
    after = np.arange(prod(places) * len(weight)).reshape(len(weight), -1).T.reshape(*places, -1)
    return [rearranged(before), *_convolution(weight[:, :, None, None], bias, 1, 0, 1, 1), rearranged(after)]


def _function_linear(call: Call) -> list[Operation]:
    given = call.named("input", "weight", "bias")
    return _linear(call, given["weight"], given.get("bias"))


def _matmul(call: Call) -> list[Operation]:
    """Features times a constant matrix, or such a matrix times [N, ..., F, L], which are features once transposed."""
    dims = [each.dim() for each in call.args if isinstance(each, Tensor)]
    if len(call.in_shapes) == 1 and len(dims) == 2 and dims[1] == 2:
        return _linear(call, call.args[1].T, None)
    if len(call.in_shapes) == 1 and len(dims) == 2 and dims[0] == 2:
        *others, features, length = call.in_shapes[0]
        transposed = replace(call, in_shapes=[(*others, length, features)])
        return [_transposed(*others[1:], features, length), *_linear(transposed, call.args[0], None),
                _transposed(*others[1:], length, len(call.args[0]))]
    raise ValueError("a matrix product cannot be exported unless one of both is a constant matrix")


def _transposed(*shape: int) -> Operation:
    return rearranged(np.arange(prod(shape)).reshape(shape).swapaxes(-1, -2))


def _batch_norm(mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None,
                eps: float) -> list[Operation]:
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be exported")
    scale = 1 / np.sqrt(array(variance) + eps) * (1 if weight is None else array(weight))
    shift = (0 if bias is None else array(bias)) - array(mean) * scale
    return [affine(scale, shift)]


def _module_batch_norm(call: Call) -> list[Operation]:
    m: nn.BatchNorm2d = call.target
    return _batch_norm(m.running_mean, m.running_var, m.weight, m.bias, m.eps)


def _normalise(call: Call) -> list[Operation]:
    mean, std = (torch.as_tensor(value, dtype=torch.float64).expand(call.out_shape[1])
                 for value in (call.target.mean, call.target.std))
    return _batch_norm(mean, std**2, None, None, 0.0)


def _function_batch_norm(first: tuple[str, ...], call: Call) -> list[Operation]:
    given = call.named(*first, "training", "momentum", "eps")
    mean, variance = (None, None) if given.get("training") else (given["running_mean"], given["running_var"])
    return _batch_norm(mean, variance, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


def public_arrays(module: Fitted) -> Arrays:
    """The public arrays as they are now: coefficients, float64 [C, D], and the mask of a gate, bool [C, ...]."""
    mask = {"mask": module.mask.cpu().numpy().copy()} if isinstance(module, GatedReLU) else {}
    return {**mask, "coefficients": array(module.coefficients)}


def _gate(call: Call) -> list[Operation]:
    if call.target.keeps_original and call.target.mask.any():
        raise ValueError(f"kept pixels compute {call.target.kind}, which private inference does not know: convert the "
                         "model with kept='relu'")
    return [Operation("gate", {"degree": (call.target.config.degree,)}, public_arrays(call.target))]


def _polynomial(call: Call) -> list[Operation]:
    return [Operation("polynomial", {"degree": (call.target.degree,)}, public_arrays(call.target))]


def _mean(call: Call) -> list[Operation]:
    return _sum_of_channels(call, 1 / call.in_shapes[0][1]) or reduce("avg_pool", call)


def _sum_of_channels(call: Call, factor: float) -> list[Operation]:
    """Nothing where a call reduces other dimensions than the channels of [N, C, H, W]."""
    (shape,) = call.in_shapes
    if dimensions(call) != [1] or len(shape) != 4:
        return []
    return _convolution(torch.full((1, shape[1], 1, 1), factor, dtype=torch.float64), None, 1, 0, 1, 1)


def _sum(call: Call) -> list[Operation]:
    if summed := _sum_of_channels(call, 1.0):
        return summed
    *before, mean = reduce("avg_pool", call)
    channels = before[0].attrs["shape"][0] if before else call.in_shapes[0][1]
    return [*before, mean, line(channels, prod(mean.attrs["kernel"]), 0)]


def _add(kind: str, call: Call) -> list[Operation]:
    shapes = call.in_shapes
    if call.kwargs.get("alpha", 1) != 1:
        raise ValueError(f"a sum with alpha={call.kwargs['alpha']!r} cannot be exported: x + alpha * y can")
    if len(shapes) != 2 or len(shapes[0]) != len(shapes[1]):
        raise ValueError(f"a sum of {[list(s) for s in shapes]} cannot be exported: two tensors of as many dimensions "
                         "can be added and subtracted")
    return [Operation(kind)]


def needs_one_shape(operation: Operation, shapes: list[tuple[int, ...]]) -> bool:
    """Whether operands have to be expanded to one shape before an operation; a product takes [C, 1, 1] as it is."""
    if operation.kind not in ("add", "sub", "mul") or len(shapes) != 2 or len(shapes[0]) != len(shapes[1]):
        return False
    return shapes[0] != shapes[1] and not (
        operation.kind == "mul" and shapes[0][1] == shapes[1][1]
        and any(prod(shape[2:]) == 1 and prod(other[2:]) > 1 for shape, other in (shapes, shapes[::-1])))


def _mul(call: Call) -> list[Operation]:
    if len(call.in_shapes) != 2 or call.kwargs:
        raise ValueError(f"a product of {[list(s) for s in call.in_shapes]}{call.kwargs or ''} cannot be exported: "
                         "that of two tensors that depend on the image can")
    return [Operation("mul")]


def _maximum(call: Call) -> list[Operation]:
    """relu(x - y) + y."""
    if len(call.in_shapes) != 2:
        raise ValueError("the maximum of a whole tensor cannot be exported: that of two tensors can")
    return [*_add("sub", call), *relu(call), Operation("add")]


_MODULES: tuple[tuple[tuple[type, ...], Converter], ...] = (
    ((GatedReLU,), _gate), ((PolynomialSigmoid,), _polynomial), ((nn.Conv2d,), _conv), ((nn.Conv1d,), _module_of_rows),
    ((nn.Linear,), lambda call: _linear(call, call.target.weight, call.target.bias)),
    ((nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm, nn.InstanceNorm2d), _module_batch_norm),
    ((Normalize, v2.Normalize), _normalise),
    ((nn.AvgPool2d, nn.AvgPool1d), partial(pool, "avg_pool")),
    ((nn.MaxPool2d, nn.MaxPool1d), partial(pool, "max_pool")),
    ((nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool1d), partial(adaptive_pool, "avg_pool")),
    ((nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool1d), partial(adaptive_pool, "max_pool")),
    *activations.MODULES,
)
_CALLS: dict[Any, Converter] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), partial(_add, "add")),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract, torch.rsub, "sub", "sub_", "subtract",
                     "subtract_"), partial(_add, "sub")),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_"),
                    _mul),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.amax, "amax"), partial(reduce, "max_pool")), **dict.fromkeys((torch.sum, "sum"), _sum),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm, "matmul", "mm"), _matmul),
    F.batch_norm: partial(_function_batch_norm, ("input", "running_mean", "running_var", "weight", "bias")),
    torch.batch_norm: partial(_function_batch_norm, ("input", "weight", "bias", "running_mean", "running_var")),
    **dict.fromkeys((F.conv2d, F.conv1d), _function_conv), F.linear: _function_linear,
    **dict.fromkeys((F.avg_pool2d, F.avg_pool1d), partial(pool, "avg_pool")),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, F.max_pool1d, torch.max_pool1d), partial(pool, "max_pool")),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_avg_pool1d), partial(adaptive_pool, "avg_pool")),
    **dict.fromkeys((F.adaptive_max_pool2d, F.adaptive_max_pool1d), partial(adaptive_pool, "max_pool")),
    **dict.fromkeys((torch.maximum, torch.max, "maximum", "max"), _maximum), **activations.CALLS,
}


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
            module = "" if isinstance(call.target, nn.Module) else "write it as nn.Sigmoid, which a conversion finds, "
            instead = (f"; {module}put hard ones or polynomials in their place and fine-tune: "
                       "GateConfig(sigmoid='hard') or 'poly'")
        raise ValueError(f"{what} cannot be exported: private inference knows convolution, linear, batch norm, ReLU, "
                         "gates and Hardsigmoid, sums, products, concatenation, pooling, and moving elements"
                         f"{instead}")
    return found(call)
