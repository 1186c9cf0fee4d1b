"""What counts as an activation: ReLU and its relatives, but not the sigmoid, softmax or tanh of an attention."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

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


def module_kind(module: nn.Module) -> str | None:
    """The kind of an activation module, None for any other module. A subclass with its own forward is not a ReLU."""
    cls = type(module)
    if isinstance(module, nn.ReLU):
        return RELU if cls.forward is nn.ReLU.forward else f"{cls.__module__}.{cls.__qualname__}"
    if isinstance(module, _CLASSES) or _LIBRARY_CLASS.fullmatch(cls.__name__):
        return cls.__name__
    return None


def function_kind(function: Callable) -> str | None:
    """The kind of an activation function of torch, of `torch.nn.functional` or of a tensor; None for any other."""
    return _FUNCTIONS.get(function)


def method_kind(name: str) -> str | None:
    """The kind of the activation that is a tensor's method of this name, None for any other."""
    return _FUNCTIONS.get(getattr(torch.Tensor, name, None))
