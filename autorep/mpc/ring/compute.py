"""What each step computes on ring elements; the same lines run in numpy (prediction) and under the engine (jax.numpy).

Letters: N images, C channels, H, W, K columns of a matrix product. All values are int64, one ring element each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from autorep.mpc.bundle.ops import Op
from autorep.mpc.bundle.windows import out_size, pad, rearranged, tap_slices, taps
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import Step
from autorep.mpc.ring.parameters import conv_blocks, conv_form


@dataclass(frozen=True)
class Backend:
    """Where and how steps run.

    Args:
        xp: numpy or jax.numpy.
        truncate: drops the truncation bits of the format.
        opens_operands: see `conv_form`.
        matmul: the product of two matrices of ring elements.
        zero: what padding consists of. Under an engine it is a share, because a public zero beside shared values would
            have to be shared first, which takes a round of its own under ABY3.
    """

    xp: Any
    truncate: Callable[[Any], Any]
    fixed: FixedPoint
    opens_operands: bool
    matmul: Callable[[Any, Any], Any] = operator.matmul
    zero: Any = 0


def _conv(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    xp, op = backend.xp, step.op
    padded = pad(xp, operands[0], op, backend.zero)
    form = _conv_taps if conv_form(step, backend.opens_operands) == "taps" else _conv_columns
    num_blocks = conv_blocks(step, backend.opens_operands)
    width = padded.shape[1] // num_blocks
    parts = [form(backend, padded[:, b * width:(b + 1) * width], op, parameters[f"weight{b}"])
             for b in range(num_blocks)]
    y_CNHW = parts[0] if num_blocks == 1 else xp.concatenate(parts, axis=0)
    y_CNHW = backend.truncate(y_CNHW + parameters["bias"].reshape(-1, 1, 1, 1))
    return y_CNHW.transpose(1, 0, 2, 3)


def _conv_taps(backend: Backend, padded: Any, op: Op, weight: Any) -> Any:
    """All taps [taps*C', C] times the padded input [C, N*H*W], then shift and add: [C', N, H', W'].

    One channel, one row of 3 pixels x0 x1 x2, a kernel of the 2 taps a and b:

        product, tap a     a*x0           a*x1           a*x2       adds its columns 0 and 1
        product, tap b     b*x0           b*x1           b*x2       adds its columns 1 and 2
        result             a*x0 + b*x1    a*x1 + b*x2
    """
    batch, channels, height, width = padded.shape
    product = backend.matmul(weight, padded.transpose(1, 0, 2, 3).reshape(channels, -1))
    product = product.reshape(prod(op.attrs["kernel"]), -1, batch, height, width)
    slices = tap_slices(op, *out_size(op, height, width))
    return sum(product[t, :, :, rows, columns] for t, (rows, columns) in enumerate(slices))


def _conv_columns(backend: Backend, padded: Any, op: Op, weight: Any) -> Any:
    """Weights [C', taps*C] times the unrolled input [taps*C, N*H'*W']: [C', N, H', W']."""
    size = out_size(op, *padded.shape[2:])
    seen = [padded[:, :, rows, columns].transpose(1, 0, 2, 3) for rows, columns in tap_slices(op, *size)]
    unrolled = seen[0] if len(seen) == 1 else backend.xp.concatenate(seen, axis=0)
    product = backend.matmul(weight, unrolled.reshape(unrolled.shape[0], -1))
    return product.reshape(-1, len(padded), *size)


def _linear(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    product = backend.matmul(parameters["weight"], operands[0].T)
    return backend.truncate(product + parameters["bias"].reshape(-1, 1)).T


def _affine(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    x = operands[0]
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    return backend.truncate(x * parameters["weight"].reshape(per_channel) + parameters["bias"].reshape(per_channel))


def _pick_kept(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """The pixels that kept their ReLU, [N, kept]."""
    return operands[0].reshape(len(operands[0]), -1)[:, step.gate.kept]


def _pick_dropped(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """The dropped pixels, class by class, [N, dropped]."""
    return operands[0].reshape(len(operands[0]), -1)[:, step.gate.order[len(step.gate.kept):]]


def _gate_dropped(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """Polynomials of the dropped pixels, [N, dropped]: all of them share one truncation.

        operand    degree 1        degree 2                  ...    identity    constant
        result     truncate(c1 x + c0, (c2 x + c1) x + c0,   ...)   x           0 x + constant
    """
    plan, (rest,) = step.gate, operands
    sizes = [*(len(plan.polynomial[d]) for d in plan.degrees), len(plan.identity), len(plan.constant)]
    bounds = np.cumsum([0, *sizes])
    parts = [rest[:, a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    done = [_polynomial(backend, d, part, parameters) for d, part in zip(plan.degrees, parts, strict=False)]
    if done:
        done = [backend.truncate(_join(backend, done))]
    if sizes[-2]:
        done.append(parts[-2])
    if sizes[-1]:
        done.append(parts[-1] * parameters["zero"] + parameters["constant"])
    return _join(backend, done)


def _gate_join(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """The classes of pixels back in their places, [N, C, H, W]."""
    return _join(backend, operands)[:, step.gate.back].reshape(-1, *step.out_shape)


def _join(backend: Backend, parts: list) -> Any:
    return parts[0] if len(parts) == 1 else backend.xp.concatenate(parts, axis=1)


def _polynomial(backend: Backend, degree: int, x: Any, parameters: dict) -> Any:
    """Horner's rule without the last truncation: one secure product per degree above 1."""
    value = parameters[f"c{degree}_{degree}"] * x
    for power in range(degree - 1, 0, -1):
        value = (value + parameters[f"c{power}_{degree}"]) * x
        if power > 1:
            value = backend.truncate(value) * 2**backend.fixed.coefficient_bits
    return value + parameters[f"c0_{degree}"]


def _mul(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    return backend.truncate(operands[0] * operands[1] * 2**backend.fixed.coefficient_bits)


def _avg_pool(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    total = sum(taps(backend.xp, operands[0], step.op, backend.zero))
    return backend.truncate(total * parameters["divisor"].reshape(1, 1, 1, 1)) if step.divide else total


def _max_pool(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """A knock-out tournament: each round compares all pairs at once."""
    xp = backend.xp
    lowest = -(2 ** (62 - backend.fixed.truncation_bits))
    seen = xp.stack(list(taps(xp, operands[0], step.op, backend.zero + lowest)))
    while len(seen) > 1:
        half = len(seen) // 2
        winners = xp.maximum(seen[:half], seen[half:2 * half])
        seen = xp.concatenate([winners, seen[2 * half:]]) if len(seen) % 2 else winners
    return seen[0]


COMPUTE: dict[str, Callable[[Backend, Step, list, dict], Any]] = {
    "conv": _conv, "linear": _linear, "affine": _affine, "mul": _mul, "avg_pool": _avg_pool, "max_pool": _max_pool,
    "add": lambda backend, step, operands, parameters: operands[0] + operands[1],
    "sub": lambda backend, step, operands, parameters: operands[0] - operands[1],
    "rearrange": lambda backend, step, operands, parameters: rearranged(operands[0], step.positions),
    "pick": lambda backend, step, operands, parameters: operands[0][:, list(step.op.attrs["channels"])],
    "concat": lambda backend, step, operands, parameters: backend.xp.concatenate(operands, axis=1),
    "unflatten": lambda backend, step, operands, parameters: operands[0][:, :, None, None],
    "flatten": lambda backend, step, operands, parameters: operands[0].reshape(len(operands[0]), -1),
    "pick_kept": _pick_kept, "kept": lambda backend, step, operands, parameters: backend.xp.maximum(operands[0], 0),
    "pick_dropped": _pick_dropped, "dropped": _gate_dropped, "join": _gate_join,
}
