"""From the public part of a bundle to the steps that are computed securely. Knows no weight.

Three things happen here. A pixel of a gate is put into the cheapest class that computes it: kept (comparison), degree 2
or more (secure multiplications), degree 1 (a truncation), identity (nothing), constant (nothing). A channel without
kept ReLUs whose polynomial is a line goes into the convolution before it. The 1/n of an average pool goes into the
linear layer behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.ops import Op, Shape
from autorep.mpc.ring.fixed_point import FixedPoint

FOLDABLE = ("conv", "linear", "affine")


@dataclass(frozen=True)
class GatePlan:
    """The pixels of a gate by class, as flat indices into [C*H*W].

    `coefficients[d]` [pixels, d + 1] and `constant_value` [pixels] belong to the pixels of `polynomial[d]` and
    `constant`. Two channels of 2x2 pixels; K is kept, 2 quadratic, I the identity:

        channel 0    K 2    flat index    0 1    kept 0 3 6, polynomial {2: 1 2}, identity 4 5 7
                     2 K                  2 3
        channel 1    I I                  4 5    order    0 3 6   1 2   4 5 7      x in order: what is computed
                     K I                  6 7    back     0 3 4 1 5 6 2 7          x in order, in back: x
    """

    kept: np.ndarray
    polynomial: dict[int, np.ndarray]
    identity: np.ndarray
    constant: np.ndarray
    coefficients: dict[int, np.ndarray]
    constant_value: np.ndarray

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees that occur, from 1 up."""
        return tuple(sorted(self.polynomial))

    @cached_property
    def order(self) -> np.ndarray:
        """All pixels, class by class: kept, polynomials by degree, identity, constant."""
        return np.concatenate([self.kept, *(self.polynomial[d] for d in self.degrees), self.identity, self.constant])

    @cached_property
    def back(self) -> np.ndarray:
        """Where in `order` each pixel is."""
        return np.argsort(self.order)


@dataclass(frozen=True)
class Step:
    """One operation of the secure program.

    `fold_scale`, `fold_shift` [C]: public line that the weights of a conv, linear or affine take over. `input_scale`:
    factor that a linear layer's weights take over from an average pool; `divide`: whether an average pool divides.
    """

    op: Op
    in_shapes: tuple[Shape, ...]
    out_shape: Shape
    gate: GatePlan | None = None
    fold_scale: np.ndarray | None = None
    fold_shift: np.ndarray | None = None
    input_scale: float = 1.0
    divide: bool = True


@dataclass(frozen=True)
class Program:
    """The steps in order, and the number format they are planned for."""

    input_name: str
    output_name: str
    steps: tuple[Step, ...]
    fixed: FixedPoint
    layers_with_relu: int = field(default=0)

    @property
    def num_kept(self) -> int:
        """Comparisons per image, those of max pools not counted."""
        return sum(len(step.gate.kept) for step in self.steps if step.gate)


def lower(graph: Graph, fixed: FixedPoint) -> Program:
    """The secure program of a bundle."""
    shapes = graph.shapes
    steps = {op.name: Step(op, tuple(shapes[n] for n in op.inputs), shapes[op.name]) for op in graph.ops}
    users = {name: [op for op in graph.ops if name in op.inputs] for name in shapes}
    producers = {op.name: op for op in graph.ops}
    for op in graph.ops:
        if op.kind == "gate":
            _lower_gate(op, graph, fixed, steps, producers, users)
        if op.kind == "avg_pool":
            _push_division(op, steps, users)
    ordered = tuple(steps[op.name] for op in graph.ops)
    with_relu = sum(1 for step in ordered if step.gate is not None and len(step.gate.kept))
    return Program(graph.input_name, graph.output_name, ordered, fixed, with_relu)


def _lower_gate(op: Op, graph: Graph, fixed: FixedPoint, steps: dict[str, Step], producers: dict[str, Op],
                users: dict[str, list[Op]]) -> None:
    mask, coefficients = graph.public[f"{op.name}/mask"], graph.public[f"{op.name}/coefficients"].astype(np.float64)
    before = producers.get(op.inputs[0])
    if before is not None and before.kind in FOLDABLE and len(users[before.name]) == 1:
        scale, shift, coefficients = _fold_lines(mask, coefficients)
        steps[before.name] = replace(steps[before.name], fold_scale=scale, fold_shift=shift)
    steps[op.name] = replace(steps[op.name], gate=plan_gate(mask, coefficients, fixed))


def _fold_lines(mask: np.ndarray, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lines (scale [C], shift [C]) that the layer before takes over, and the coefficients that then remain."""
    full = _at_least_quadratic(coefficients)
    line = ~mask.reshape(len(mask), -1).any(1) & (full[:, 2:] == 0).all(1)
    scale, shift = np.where(line, full[:, 1], 1.0), np.where(line, full[:, 0], 0.0)
    full[line] = 0
    full[line, 1] = 1
    return scale, shift, full


def _at_least_quadratic(coefficients: np.ndarray) -> np.ndarray:
    """A copy [C, D] with D at least 3, zeros added."""
    return np.pad(coefficients, ((0, 0), (0, max(0, 3 - coefficients.shape[1]))))


def plan_gate(mask: np.ndarray, coefficients: np.ndarray, fixed: FixedPoint) -> GatePlan:
    """Sort the pixels of a gate by what they cost.

    Args:
        mask: kept ReLUs, bool [C, ...].
        coefficients: [C, D], constant first. One that rounds to nothing in the format is taken for nothing.
    """
    coefficients = _at_least_quadratic(coefficients)
    num_channels, size = len(mask), prod(mask.shape[1:])
    powers = np.arange(coefficients.shape[1])
    resolution = np.where(powers == 1, 2.0 ** -fixed.truncation_bits, 2.0 ** -(fixed.coefficient_bits + 1))
    degree_C = np.where(np.abs(coefficients) >= resolution, powers, 0).max(1)
    identity_C = (degree_C == 1) & (coefficients[:, 1] == 1) & (coefficients[:, 0] == 0)
    channel = np.repeat(np.arange(num_channels), size)
    dropped = ~mask.reshape(-1)
    polynomial = {}
    for degree in range(1, coefficients.shape[1]):
        pixels = np.flatnonzero(dropped & (degree_C == degree)[channel] & ~identity_C[channel])
        if len(pixels):
            polynomial[degree] = pixels
    constant = np.flatnonzero(dropped & (degree_C == 0)[channel])
    return GatePlan(np.flatnonzero(~dropped), polynomial, np.flatnonzero(dropped & identity_C[channel]), constant,
                    {d: coefficients[channel[pixels], :d + 1] for d, pixels in polynomial.items()},
                    coefficients[channel[constant], 0])


def _push_division(op: Op, steps: dict[str, Step], users: dict[str, list[Op]]) -> None:
    followers = users[op.name]
    while len(followers) == 1 and followers[0].kind == "flatten":
        followers = users[followers[0].name]
    if len(followers) == 1 and followers[0].kind == "linear":
        name = followers[0].name
        steps[name] = replace(steps[name], input_scale=steps[name].input_scale / prod(op.attrs["kernel"]))
        steps[op.name] = replace(steps[op.name], divide=False)


def variant(graph: Graph, name: str) -> Graph:
    """"trained" as it is, "all_relu" with every ReLU kept, "no_relu" with none left.

    Raises:
        ValueError: another name.
    """
    if name not in ("trained", "all_relu", "no_relu"):
        raise ValueError(f"variant {name!r} is not legal: trained, all_relu or no_relu")
    if name == "trained":
        return graph
    masks = {key: np.full_like(value, name == "all_relu") for key, value in graph.public.items()
             if key.endswith("/mask")}
    return replace(graph, public={**graph.public, **masks})
