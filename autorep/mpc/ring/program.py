"""The units of a secure program: what is run and measured, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from autorep.mpc.ring.compute import COMPUTE, Backend
from autorep.mpc.ring.lowering import Program, Step

# Some units need neither the engine nor the peer: on additive shares, moving and adding elements is the same as on the
# values behind them, so each party runs them in numpy on its own share. The engine's own gather takes 2 microseconds
# an element, more than a polynomial.
LOCAL = ("add", "sub", "concat", "flatten", "unflatten", "pick", "rearrange", "pick_kept", "pick_dropped", "join")
COMPARING = ("kept", "max_pool")
PRICE_KINDS = {"conv": "convolution", "linear": "linear", "affine": "linear", "mul": "linear", "avg_pool": "pooling",
              "max_pool": "pooling", "kept": "comparison", "dropped": "polynomial"}


@dataclass(frozen=True)
class Unit:
    """The smallest thing that is run and measured: a step, or a part of a gate. It computes the tensor `output`.

    Args:
        beside: it reads nothing of the unit before it, so an engine with two lanes can run both at once.
    """

    step: Step
    part: str
    inputs: tuple[str, ...]
    output: str
    out_shape: tuple[int, ...]
    beside: bool = False

    @property
    def price_kind(self) -> str:
        """The kind of operation that its price counts under."""
        return PRICE_KINDS.get(self.part, "other")

    @property
    def local(self) -> bool:
        """Whether each party computes it in numpy from its own shares."""
        return self.part in LOCAL

    def run(self, backend: Backend, operands: list[Any], parameters: dict[str, Any]) -> Any:
        """The result [N, ...] for operands [N, ...]."""
        return COMPUTE[self.part](backend, self.step, operands, parameters)


def num_truncations(unit: Unit) -> int:
    """How many truncations one image takes."""
    if unit.part == "dropped":
        return sum(max(1, degree - 1) * len(pixels) for degree, pixels in unit.step.gate.polynomial.items())
    truncates = unit.part in ("conv", "linear", "affine", "mul") or unit.part == "avg_pool" and unit.step.divide
    return prod(unit.out_shape) if truncates else 0


def units(program: Program) -> tuple[Unit, ...]:
    """The units of a program, in order."""
    found: list[Unit] = []
    for step in program.steps:
        plain = Unit(step, step.op.kind, step.op.inputs, step.op.name, step.out_shape)
        found += [plain] if step.gate is None else _gate_units(step)
    return tuple(found)


def _gate_units(step: Step) -> list[Unit]:
    """Kept and dropped pixels apart, because they have different prices and can be computed at once; then the join."""
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
