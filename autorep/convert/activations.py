"""What counts as an activation: ReLU and its relatives, but not the sigmoid, softmax or tanh of an attention."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

RELU = "ReLU"
_KINDS = {
    "relu": RELU, "relu6": "ReLU6", "leaky_relu": "LeakyReLU", "rrelu": "RReLU", "prelu": "PReLU", "elu": "ELU",
    "selu": "SELU", "celu": "CELU", "gelu": "GELU", "silu": "SiLU", "mish": "Mish", "hardswish": "Hardswish",
    "hardtanh": "Hardtanh", "threshold": "Threshold", "softplus": "Softplus",
}
_CLASSES = tuple(getattr(nn, kind) for kind in _KINDS.values())
# Some libraries, such as timm, have their own classes for some activations.
_LIBRARY_CLASS = re.compile(r"(Quick|Hard)?(Swish|SiLU|GELU|Mish)(Me|Jit|JitMe|Tanh)?")
_FUNCTIONS = {
    function: kind
    for name, kind in _KINDS.items() for namespace in (F, torch, torch.Tensor) for suffix in ("", "_")
    if (function := getattr(namespace, name + suffix, None)) is not None
}

_CLAMPS, _MAXIMA = ({
    function for name in names for namespace in (torch, torch.Tensor) for suffix in ("", "_")
    if (function := getattr(namespace, name + suffix, None)) is not None
} for names in (("clamp", "clip", "clamp_min"), ("maximum", "max", "fmax")))


_COMPARING = frozenset(("gt", "greater", "ge", "greater_equal", "lt", "less", "le", "less_equal", "abs", "absolute",
                        "clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "max", "min", "fmax", "fmin",
                        "sign", "sgn", "signbit", "heaviside", "hardshrink", "softshrink"))


def function_name(function: Callable) -> str:
    """Without what says that it is inplace, or the form of its arguments: "relu" of torch.ops.aten.relu_.default."""
    return getattr(function, "__name__", "").partition(".")[0].strip("_")


def compares(function: Callable, arguments: Sequence[Any], output: Any) -> bool:
    """Whether a call compares each element of features [N, C, ...], as an activation of another name might."""
    name = function_name(function)
    if name.startswith("rnn_relu"):  # on a GPU one operation, which does not tell what it computes
        return True
    return (name in _COMPARING and isinstance(output, Tensor)
            and output.dim() > 1 and any(isinstance(each, Tensor) and each.is_floating_point()
                                         and each.shape == output.shape for each in arguments))


def is_activation(operation: OpOverload) -> bool:
    """Whether an operation, which calls come down to, is an activation."""
    return function_name(operation).removesuffix("_kernel") in _KINDS


def is_zero(value: Any) -> bool:
    """Whether a number or every number of a tensor is zero; a parameter may change, so it is not."""
    if isinstance(value, Tensor):
        return not value.requires_grad and value.numel() > 0 and not bool(value.any())
    return isinstance(value, (int, float)) and value == 0


def module_kind(module: nn.Module) -> str | None:
    """The kind of an activation module, None for any other module. A subclass with its own forward is not a ReLU."""
    cls = type(module)
    if cls is nn.Threshold and module.threshold == 0 == module.value:
        return RELU
    if isinstance(module, nn.ReLU):
        return RELU if cls.forward is nn.ReLU.forward else f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(module, _CLASSES) or _LIBRARY_CLASS.fullmatch(cls.__name__):
        return cls.__name__
    return None


def function_kind(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any],
                  is_zero: Callable[[Any], bool] = is_zero) -> str | None:
    """The kind of an activation function of torch, of `torch.nn.functional` or of a tensor; None for any other call.

    The greater of a tensor and zero is a ReLU, however it is written: clamp(min=0), clamp_min(0), maximum(x, zeros).
    """
    if isinstance(function, (OpOverload, OpOverloadPacket)):  # torch.ops.aten.relu, with the arguments of torch.relu
        function = getattr(torch, function_name(function), function)
    if function in _CLAMPS:
        given = dict(zip(("input", "min", "max"), args, strict=False)) | kwargs
        unbounded = given.get("max") is None or (isinstance(given["max"], float) and given["max"] == math.inf)
        return RELU if unbounded and is_zero(given.get("min")) else None
    if function in _MAXIMA:
        given = dict(zip(("input", "other"), args, strict=False)) | kwargs
        # A number is a dimension: max(x, 0) is no ReLU.
        tensors = (given.get(name) for name in ("input", "other") if not isinstance(given.get(name), (int, float)))
        return RELU if len(given) == 2 and any(map(is_zero, tensors)) else None
    kind = _FUNCTIONS.get(function)
    if kind == "Threshold":
        given = dict(zip(("input", "threshold", "value"), args, strict=False)) | kwargs
        return RELU if is_zero(given.get("threshold")) and is_zero(given.get("value")) else kind
    return kind


def operand(function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any],
            is_zero: Callable[[Any], bool] = is_zero) -> Any:
    """What the activation is computed of, for a call whose kind is not None."""
    first = args[0] if args else kwargs["input"]
    if function in _MAXIMA and is_zero(first):
        return args[1] if len(args) > 1 else kwargs["other"]
    return first
