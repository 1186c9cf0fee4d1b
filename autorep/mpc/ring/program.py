"""What each step computes on ring elements; the same lines run in numpy (prediction) and under the engine (jax.numpy).

Some units need neither the engine nor the peer (LOCAL): on additive shares moving and adding elements is the same as on
the values behind them, so that each party runs them in numpy on its own share. The engine's own gather takes 2
microseconds an element, more than a polynomial.

Letters: N images, C channels, H, W, K columns of a matrix product. All values are int64, one ring element each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from autorep.mpc.bundle.ops import Op
from autorep.mpc.bundle.windows import out_size, pad, tap_slices, taps
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import Program, Step
from autorep.mpc.ring.parameters import conv_form


@dataclass(frozen=True)
class Backend:
    """Where and how steps run.

    `xp` is numpy or jax.numpy, `truncate` drops the format's truncation bits, `opens_operands`: see `conv_form`.
    """

    xp: Any
    truncate: Callable[[Any], Any]
    fixed: FixedPoint
    opens_operands: bool


def _conv(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    xp, op = backend.xp, step.op
    padded = pad(xp, operands[0], op, 0)
    form = _conv_taps if conv_form(step, backend.opens_operands) == "taps" else _conv_columns
    groups = op.attrs["groups"][0]
    width = padded.shape[1] // groups
    parts = [form(xp, padded[:, g * width:(g + 1) * width], op, parameters[f"weight{g}"]) for g in range(groups)]
    y_CNHW = parts[0] if groups == 1 else xp.concatenate(parts, axis=0)
    y_CNHW = backend.truncate(y_CNHW + parameters["bias"].reshape(-1, 1, 1, 1))
    return y_CNHW.transpose(1, 0, 2, 3)


def _conv_taps(xp: Any, padded: Any, op: Op, weight: Any) -> Any:
    """All taps [taps*C', C] times the padded input [C, N*H*W], then shift and add: [C', N, H', W'].

    One channel, one row of 3 pixels x0 x1 x2, a kernel of the 2 taps a and b:

        product, tap a     a*x0           a*x1           a*x2       adds its columns 0 and 1
        product, tap b     b*x0           b*x1           b*x2       adds its columns 1 and 2
        result             a*x0 + b*x1    a*x1 + b*x2
    """
    batch, channels, height, width = padded.shape
    product = weight @ padded.transpose(1, 0, 2, 3).reshape(channels, -1)
    product = product.reshape(prod(op.attrs["kernel"]), -1, batch, height, width)
    slices = tap_slices(op, *out_size(op, height, width))
    return sum(product[t, :, :, rows, columns] for t, (rows, columns) in enumerate(slices))


def _conv_columns(xp: Any, padded: Any, op: Op, weight: Any) -> Any:
    """Weights [C', taps*C] times the unrolled input [taps*C, N*H'*W']: [C', N, H', W']."""
    size = out_size(op, *padded.shape[2:])
    seen = [padded[:, :, rows, columns].transpose(1, 0, 2, 3) for rows, columns in tap_slices(op, *size)]
    unrolled = seen[0] if len(seen) == 1 else xp.concatenate(seen, axis=0)
    return (weight @ unrolled.reshape(unrolled.shape[0], -1)).reshape(-1, len(padded), *size)


def _linear(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    product = parameters["weight"] @ operands[0].T
    return backend.truncate(product + parameters["bias"].reshape(-1, 1)).T


def _affine(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    x = operands[0]
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    return backend.truncate(x * parameters["weight"].reshape(per_channel) + parameters["bias"].reshape(per_channel))


def _pick_kept(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """The pixels that kept their ReLU, [N, kept]."""
    return operands[0].reshape(len(operands[0]), -1)[:, step.gate.kept]


def _pick_dropped(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """The other pixels, class by class, [N, dropped]."""
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
    """Horner's rule up to, but without, the last truncation: one secure product per degree above 1."""
    value = parameters[f"c{degree}_{degree}"] * x
    for power in range(degree - 1, 0, -1):
        value = (value + parameters[f"c{power}_{degree}"]) * x
        if power > 1:
            value = backend.truncate(value) * 2**backend.fixed.coefficient_bits
    return value + parameters[f"c0_{degree}"]


def _mul(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    return backend.truncate(operands[0] * operands[1] * 2**backend.fixed.coefficient_bits)


def _avg_pool(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    total = sum(taps(backend.xp, operands[0], step.op, 0))
    return backend.truncate(total * parameters["divisor"].reshape(1, 1, 1, 1)) if step.divide else total


def _max_pool(backend: Backend, step: Step, operands: list, parameters: dict) -> Any:
    """A knock-out tournament: each round compares all pairs at once."""
    xp = backend.xp
    lowest = -(2 ** (62 - backend.fixed.truncation_bits))
    seen = xp.stack(list(taps(xp, operands[0], step.op, lowest)))
    while len(seen) > 1:
        half = len(seen) // 2
        winners = xp.maximum(seen[:half], seen[half:2 * half])
        seen = xp.concatenate([winners, seen[2 * half:]]) if len(seen) % 2 else winners
    return seen[0]


_COMPUTE = {
    "conv": _conv, "linear": _linear, "affine": _affine, "mul": _mul, "avg_pool": _avg_pool, "max_pool": _max_pool,
    "add": lambda backend, step, operands, parameters: operands[0] + operands[1],
    "pick": lambda backend, step, operands, parameters: operands[0][:, list(step.op.attrs["channels"])],
    "concat": lambda backend, step, operands, parameters: backend.xp.concatenate(operands, axis=1),
    "unflatten": lambda backend, step, operands, parameters: operands[0][:, :, None, None],
    "flatten": lambda backend, step, operands, parameters: operands[0].reshape(len(operands[0]), -1),
    "pick_kept": _pick_kept, "kept": lambda backend, step, operands, parameters: backend.xp.maximum(operands[0], 0),
    "pick_dropped": _pick_dropped, "dropped": _gate_dropped, "join": _gate_join,
}
LOCAL = ("add", "concat", "flatten", "unflatten", "pick", "pick_kept", "pick_dropped", "join")
COST_KINDS = {"conv": "convolution", "linear": "linear", "affine": "linear", "mul": "linear", "avg_pool": "pooling",
              "max_pool": "pooling", "kept": "comparison", "dropped": "polynomial"}


@dataclass(frozen=True)
class Unit:
    """The smallest thing that is run and measured: a step, or a part of a gate. It computes the tensor `output`.

    `beside`: it needs nothing from the unit before it, so that an engine with two lanes runs both at once.
    """

    step: Step
    part: str
    inputs: tuple[str, ...]
    output: str
    out_shape: tuple[int, ...]
    beside: bool = False

    @property
    def cost_kind(self) -> str:
        """The kind of operation that its cost is booked under."""
        return COST_KINDS.get(self.part, "other")

    @property
    def local(self) -> bool:
        """Whether each party computes it in numpy from its own shares."""
        return self.part in LOCAL

    def run(self, backend: Backend, operands: list[Any], parameters: dict[str, Any]) -> Any:
        """The result [N, ...] for operands [N, ...]."""
        return _COMPUTE[self.part](backend, self.step, operands, parameters)


def units(program: Program) -> tuple[Unit, ...]:
    """What is to be run, in order."""
    found: list[Unit] = []
    for step in program.steps:
        plain = Unit(step, step.op.kind, step.op.inputs, step.op.name, step.out_shape)
        found += [plain] if step.gate is None else _gate_units(step)
    return tuple(found)


def _gate_units(step: Step) -> list[Unit]:
    """Kept and dropped pixels apart, for they are priced apart and can be computed side by side; then the join."""
    num_kept, num_dropped, name = len(step.gate.kept), prod(step.out_shape) - len(step.gate.kept), step.op.name
    if not num_dropped:
        return [Unit(step, "kept", step.op.inputs, name, step.out_shape)]
    sizes = {part: (num,) for part, num in (("kept", num_kept), ("dropped", num_dropped)) if num}
    picks = [Unit(step, f"pick_{part}", step.op.inputs, f"{name}:pick_{part}", size) for part, size in sizes.items()]
    parts = [Unit(step, part, (f"{name}:pick_{part}",), f"{name}:{part}", size,
                  beside=part == "dropped" and bool(num_kept)) for part, size in sizes.items()]
    return [*picks, *parts, Unit(step, "join", tuple(part.output for part in parts), name, step.out_shape)]


def stages(plan: Sequence[Unit], two_lanes: bool) -> list[tuple[int, ...]]:
    """The order in which units run, by index: one at a time, or two at once.

    With `two_lanes`, a unit that is `beside` shares a stage with the unit before it: the polynomials of a gate are
    computed while its comparisons wait for the peer, so the gate takes the rounds of the longer of the two.

        plan      conv    pick_kept    pick_dropped    kept    dropped    join      ("dropped" is beside "kept")
        stages    (0,)    (1,)         (2,)            (3,     4)         (5,)
    """
    found: list[tuple[int, ...]] = []
    for i, unit in enumerate(plan):
        if two_lanes and unit.beside:
            found[-1] += (i,)
        else:
            found.append((i,))
    return found
