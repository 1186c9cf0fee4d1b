"""The number format where the user names none: local truncation where it is safe, because it saves rounds."""

from __future__ import annotations

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.engines import find_engine
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.local_truncation import MOST_FAILURES, failure_probability
from autorep.mpc.tables import TITLES

LEAST_STEPS = 2**6  # of the last place, that the largest value of every tensor has to take


def automatic_format(graph: Graph, engine: str) -> tuple[FixedPoint, str]:
    """Local truncation with its usual bits where it is safe under all maskings, else exact truncation; and why.

    All maskings, so that every command takes the same format for a bundle.
    """
    exact, local = FixedPoint.of("exact"), FixedPoint.of("local")
    if not find_engine(engine).local_truncation:
        return exact, f"{engine} has no other"
    for name, (low, high) in graph.ranges.items():
        largest = max(abs(low), abs(high))
        if 0 < largest * 2**local.fraction_bits < LEAST_STEPS:
            return exact, f"{name} reaches only {largest:.2g}, too little for the {local.fraction_bits} bits of local"
    # A value that wraps around fails more often than this, too.
    often = max(failure_probability(with_masking(graph, masking), local) for masking in TITLES)
    if often > MOST_FAILURES:
        return exact, (f"local would be wrong on up to one image in {1 / often:,.0f}, more often than one in "
                       f"{1 / MOST_FAILURES:,.0f}")
    return local, "it saves rounds"


def format_line(graph: Graph, fixed: FixedPoint, why: str | None = None) -> str:
    """One line that says which format it is, why, and how often it fails."""
    line = (f"{fixed.truncation} truncation, with {fixed.fraction_bits} fraction bits and {fixed.coefficient_bits} of "
            "coefficients")
    if why:
        line += f", because {why}"
    if (probability := failure_probability(graph, fixed)) > 0:
        line += f"; wrong on at most one image in {1 / probability:,.0f}, --truncation exact on none"
    return line
