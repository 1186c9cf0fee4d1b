"""From the public part of a bundle to the steps that are computed securely, without any weight.

Three things happen here. The pixels of a gate are sorted into classes by the cheapest way to compute them (gate_plan).
A channel without kept ReLUs whose polynomial is linear is folded into the convolution before it. The division of an
average pool is folded into the linear layer after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.ops import Op, Shape
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.gate_plan import GatePlan, at_least_quadratic, plan_gate

FOLDABLE = ("conv", "linear", "affine")


@dataclass(frozen=True)
class Step:
    """One operation of the secure program.

    Args:
        fold_scale, fold_shift: [C], the public linear polynomials of the gate after a conv, linear or affine, folded
            into its weights.
        positions: what a rearrangement puts in each place.
        input_scale: factor of an average pool before a linear layer, folded into its weights.
        divide: whether an average pool divides by itself.
    """

    op: Op
    in_shapes: tuple[Shape, ...]
    out_shape: Shape
    gate: GatePlan | None = None
    fold_scale: np.ndarray | None = None
    fold_shift: np.ndarray | None = None
    positions: np.ndarray | None = None
    input_scale: float = 1.0
    divide: bool = True

    def largest_folded(self, largest: float) -> float:
        """A bound of what the step computes with the gate folded into it, from the largest value of its operation."""
        if self.fold_scale is None:
            return largest
        return largest * float(np.abs(self.fold_scale).max()) + float(np.abs(self.fold_shift).max())


@dataclass(frozen=True)
class Program:
    """The steps in order, and the number format that they are planned for."""

    input_name: str
    output_name: str
    steps: tuple[Step, ...]
    fixed: FixedPoint

    @property
    def num_kept(self) -> int:
        """Comparisons per image, without those of max pools."""
        return sum(len(step.gate.kept) for step in self.steps if step.gate)

    @property
    def layers_with_relu(self) -> int:
        """Gates that kept a ReLU."""
        return sum(len(step.gate.kept) > 0 for step in self.steps if step.gate)


def lower(graph: Graph, fixed: FixedPoint) -> Program:
    """The secure program of a bundle."""
    shapes = graph.shapes
    steps = {op.name: Step(op, tuple(shapes[n] for n in op.inputs), shapes[op.name],
                           positions=graph.public.get(f"{op.name}/positions")) for op in graph.ops}
    users = {name: [op for op in graph.ops if name in op.inputs] for name in shapes}
    producers = {op.name: op for op in graph.ops}
    for op in graph.ops:
        if op.kind in ("gate", "polynomial"):
            _lower_gate(op, graph, fixed, steps, producers, users)
        if op.kind == "avg_pool":
            _fold_division(op, steps, users)
    return Program(graph.input_name, graph.output_name, tuple(steps[op.name] for op in graph.ops), fixed)


def _lower_gate(op: Op, graph: Graph, fixed: FixedPoint, steps: dict[str, Step], producers: dict[str, Op],
                users: dict[str, list[Op]]) -> None:
    mask = graph.public[f"{op.name}/mask"] if op.kind == "gate" else np.zeros(graph.shapes[op.name], bool)
    coefficients = graph.public[f"{op.name}/coefficients"].astype(np.float64)
    before = producers.get(op.inputs[0])
    if before is not None and before.kind in FOLDABLE and len(users[before.name]) == 1:
        scale, shift, coefficients = _fold_linear(mask, coefficients)
        steps[before.name] = replace(steps[before.name], fold_scale=scale, fold_shift=shift)
    steps[op.name] = replace(steps[op.name], gate=plan_gate(mask, coefficients, fixed))


def _fold_linear(mask: np.ndarray, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale [C] and shift [C] to fold into the layer before, and the coefficients that remain: the identity there."""
    full = at_least_quadratic(coefficients)
    linear = ~mask.reshape(len(mask), -1).any(1) & (full[:, 2:] == 0).all(1)
    scale, shift = np.where(linear, full[:, 1], 1.0), np.where(linear, full[:, 0], 0.0)
    full[linear] = 0
    full[linear, 1] = 1
    return scale, shift, full


def _fold_division(op: Op, steps: dict[str, Step], users: dict[str, list[Op]]) -> None:
    followers = users[op.name]
    while len(followers) == 1 and followers[0].kind == "flatten":
        followers = users[followers[0].name]
    if len(followers) == 1 and followers[0].kind == "linear":
        name = followers[0].name
        steps[name] = replace(steps[name], input_scale=steps[name].input_scale / prod(op.attrs["kernel"]))
        steps[op.name] = replace(steps[op.name], divide=False)
