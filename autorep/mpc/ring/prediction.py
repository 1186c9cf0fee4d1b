"""Prediction without an engine: the secure program in numpy on the ring, with truncation and wrap-around."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autorep.mpc.bundle.graph import Arrays, Graph
from autorep.mpc.ring.compute import Backend
from autorep.mpc.ring.fixed_point import FixedPoint, decode, encode
from autorep.mpc.ring.local_truncation import local_shift
from autorep.mpc.ring.lowering import Program, lower
from autorep.mpc.ring.matmul import ring_matmul
from autorep.mpc.ring.parameters import public_parameters, secret_parameters
from autorep.mpc.ring.program import units

MARGIN = 4.0  # unseen images may exceed the recorded range by this factor before anything wraps around


def run_fixed(program: Program, weights: Arrays, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor as real numbers, float64 [N, ...], equal to what the engine would compute up to the last bit.

    Local truncation is that of shares drawn at random. Values that leave the ring wrap around silently, as under the
    engine.
    """
    fixed = program.fixed
    # Convolutions in the form of an engine that does not open operands, which is the faster one here.
    backend = Backend(np, _truncation(fixed, images), fixed, opens_operands=False, matmul=ring_matmul)
    ring = {program.input_name: encode(images, fixed.fraction_bits, "images")}
    for unit in units(program):
        step = unit.step
        secret = secret_parameters(step, weights, fixed, backend.opens_operands)
        parameters = {**secret, **public_parameters(step, fixed)}
        with np.errstate(over="ignore"):
            ring[unit.output] = unit.run(backend, [ring[name] for name in unit.inputs], parameters)
    return {name: decode(value, fixed.fraction_bits) for name, value in ring.items()}


def _truncation(fixed: FixedPoint, images: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if fixed.truncation == "local":  # other shares for other images, and the same ones every time
        seed = zlib.crc32(np.ascontiguousarray(images).tobytes())
        return local_shift(fixed.truncation_bits, np.random.default_rng(seed))
    return lambda value: value >> fixed.truncation_bits


def logits_fixed(program: Program, weights: Arrays, images: np.ndarray, batch: int = 16) -> np.ndarray:
    """Logits [N, classes] as the engine would compute them, a batch at a time."""
    parts = [run_fixed(program, weights, images[i:i + batch])[program.output_name]
             for i in range(0, len(images), batch)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class RangeProblem:
    """A tensor that does not fit the ring (`fatal`), or may not, or would not if it were MARGIN times larger."""

    tensor: str
    largest: float
    limit: float
    fatal: bool

    def __str__(self) -> str:
        verdict = f"is within {MARGIN:g} times of wrapping around"
        if self.largest >= self.limit:
            verdict = "wraps around" if self.fatal else "is what it may reach, which wraps around"
        way_out = ": lower --fraction_bits" if self.largest >= self.limit else ""
        return f"{self.tensor}: |{self.largest:.4g}| {verdict} (limit {self.limit:.4g}){way_out}"


def check_ranges(graph: Graph, fixed: FixedPoint) -> list[RangeProblem]:
    """The recorded ranges that do not fit the format, or only just; an empty list if all is well.

    Of the inner terms of polynomials of degree 3 or more there is only a bound, so these are never fatal.
    """
    steps = lower(graph, fixed).steps
    recorded = {name: max(abs(low), abs(high)) for name, (low, high) in graph.ranges.items()}
    for step in steps:  # a folded gate that makes values larger has them in its own range
        recorded[step.op.name] = min(recorded[step.op.name], step.largest_folded(recorded[step.op.name]))
    inner = {f"inside {step.op.name}": step.gate.largest_inner_term(recorded[step.op.inputs[0]])
             for step in steps if step.gate}
    return [RangeProblem(name, largest, fixed.limit, fatal=name in recorded and largest >= fixed.limit)
            for name, largest in (recorded | inner).items() if largest * MARGIN > fixed.limit]
