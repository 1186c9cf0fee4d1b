"""Truncation without a round: what it computes, how often it fails, and which format makes that rare enough.

Both parties shift their own share (SecureML, Mohassel & Zhang 2017, section 4.1). Whatever is cut off of the shares may
carry, so the result is up to one unit of the last place too small. And where the sum of both shares wraps around the
ring, the result is far off: with random shares that happens to a value X of the ring with probability |X| / 2^64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import num_truncations, units

MOST_FAILURES = 1e-3  # per image
_FEWEST_BITS = 4


def local_shift(bits: int, generator: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Truncation [int64 to int64] as two parties with random shares compute it."""

    def truncate(value: np.ndarray) -> np.ndarray:
        one = generator.integers(-(2**63), 2**63 - 1, value.shape, np.int64, endpoint=True)
        return (one >> bits) + ((value - one) >> bits)

    return truncate


def failure_probability(graph: Graph, fixed: FixedPoint) -> float:
    """An upper bound of the probability that an image meets a truncation that is far off, from the recorded ranges.

    Exact truncation never is.
    """
    if fixed.truncation != "local":
        return 0.0
    expected = 0.0
    for unit in units(lower(graph, fixed)):
        step = unit.step
        largest = step.largest_folded(max(map(abs, graph.ranges[step.op.name])))
        if unit.part == "dropped":
            largest = max(largest, step.gate.largest_inner_term(max(map(abs, graph.ranges[step.op.inputs[0]]))))
        expected += num_truncations(unit) * largest * 2.0 ** (fixed.product_bits - 64)
    return min(1.0, expected)


@dataclass(frozen=True)
class TruncationProblem:
    """A format with which too many images meet a wrong truncation, and one that would do (None: there is none)."""

    fixed: FixedPoint
    probability: float
    instead: FixedPoint | None
    fatal: bool = True

    def __str__(self) -> str:
        way_out = ("use --truncation exact" if self.instead is None else
                   f"--fraction_bits {self.instead.fraction_bits} --coefficient_bits {self.instead.coefficient_bits} "
                   "would do, or --truncation exact")
        return (f"local truncation with {self.fixed.fraction_bits} fraction bits and {self.fixed.coefficient_bits} of "
                f"coefficients is wrong on up to one image in {1 / self.probability:,.0f}, more often than one in "
                f"{1 / MOST_FAILURES:,.0f}: {way_out}")


def check_truncation(graph: Graph, fixed: FixedPoint) -> list[TruncationProblem]:
    """The problem, if local truncation may fail on more than `MOST_FAILURES` of the images; or an empty list."""
    if (probability := failure_probability(graph, fixed)) <= MOST_FAILURES:
        return []
    fewer = (replace(fixed, fraction_bits=f, coefficient_bits=c) for f in range(fixed.fraction_bits, _FEWEST_BITS, -1)
             for c in range(fixed.coefficient_bits, _FEWEST_BITS - 1, -1))
    instead = next((each for each in fewer if failure_probability(graph, each) <= MOST_FAILURES), None)
    return [TruncationProblem(fixed, probability, instead)]
