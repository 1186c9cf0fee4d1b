"""ReLU, and what a few comparisons make of it: numbers between two bounds, and two slopes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from types import NoneType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from autorep.mpc.export.operation import Call, Operation, affine, array


def line(channels: int, scale: float, shift: float) -> Operation:
    """scale * x + shift."""
    return affine(np.full(channels, float(scale)), np.full(channels, float(shift)))


def relu(call: Call) -> list[Operation]:
    """A gate that keeps every pixel."""
    shape = call.out_shape[1:]
    coefficients = np.tile([0.0, 1.0], (shape[0], 1))
    return [Operation("gate", {"degree": (1,)}, {"mask": np.ones(shape, bool), "coefficients": coefficients})]


def _hard_sigmoid(call: Call) -> list[Operation]:
    """x / 6 + 1 / 2, clamped."""
    return [line(call.out_shape[1], 1 / 6, 0.5), *_clamped(call, 0, 1)]


def _clamped(call: Call, low: float | None, high: float | None) -> list[Operation]:
    """high - relu(high - low - relu(x - low)); None, or infinite: no bound."""
    if not all(isinstance(bound, (int, float, NoneType)) for bound in (low, high)):
        raise ValueError("a clamp between tensors cannot be exported: between two numbers it can")
    low, high = None if low == -inf else low, None if high == inf else high
    of_channels, found = partial(line, call.out_shape[1]), []
    if low is not None:
        found = [*([of_channels(1, -low)] if low else []), *relu(call)]
    if high is not None:
        return [*found, of_channels(-1, high - (low or 0)), *relu(call), of_channels(-1, high)]
    return [*found, of_channels(1, low)]


def _clamp(bounds: tuple[str, ...], call: Call) -> list[Operation]:
    given = call.named("input", *bounds)
    return _clamped(call, given.get("min"), given.get("max"))


def _hard_tanh(call: Call) -> list[Operation]:
    given = vars(call.target) if isinstance(call.target, nn.Module) else call.named("input", "min_val", "max_val")
    return _clamped(call, given.get("min_val", -1.0), given.get("max_val", 1.0))


def _hard_swish(call: Call) -> list[Operation]:
    return [*_hard_sigmoid(call), Operation("mul")]  # with x


def _leaky_relu(call: Call) -> list[Operation]:
    """x + (1 - slope) * (relu(x) - x); the slope is a number, or one per channel."""
    given = vars(call.target) if isinstance(call.target, nn.LeakyReLU) else call.named("input", "negative_slope")
    return _with_slope(call, given.get("negative_slope", 0.01))


def _prelu(call: Call) -> list[Operation]:
    weight = call.target.weight if isinstance(call.target, nn.PReLU) else call.named("input", "weight")["weight"]
    return _with_slope(call, array(weight))


def _with_slope(call: Call, slope: Any) -> list[Operation]:
    scale = np.broadcast_to(1 - np.asarray(slope), call.out_shape[1])
    return [*relu(call), Operation("sub"), affine(scale, np.zeros_like(scale)), Operation("add")]


_CLAMPS: dict[Any, Callable[[Call], list[Operation]]] = {
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip", "clamp_", "clip_"), partial(_clamp, ("min", "max"))),
    **dict.fromkeys((torch.clamp_min, "clamp_min", "clamp_min_"), partial(_clamp, ("min",))),
    **dict.fromkeys((torch.clamp_max, "clamp_max", "clamp_max_"), partial(_clamp, ("max",))),
}
MODULES = (((nn.ReLU,), relu), ((nn.Hardsigmoid,), _hard_sigmoid), ((nn.Hardtanh,), _hard_tanh),
           ((nn.Hardswish,), _hard_swish), ((nn.LeakyReLU,), _leaky_relu), ((nn.PReLU,), _prelu))
CALLS = {
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, "relu", "relu_"), relu), **_CLAMPS,
    F.hardsigmoid: _hard_sigmoid, F.hardswish: _hard_swish, F.relu6: lambda call: _clamped(call, 0, 6),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), _hard_tanh),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), _leaky_relu),
    **dict.fromkeys((F.prelu, torch.prelu, "prelu"), _prelu),
}


def is_relu(target: Any) -> bool:
    """Whether a module, function or method (by name) is ReLU."""
    return isinstance(target, nn.ReLU) if isinstance(target, nn.Module) else CALLS.get(target) is relu


def is_clamp(target: Any) -> bool:
    """Whether a module, function or method (by name) limits numbers from one side or both."""
    return target in _CLAMPS
