"""The number format where the user names none: local truncation where it is safe, because it saves rounds."""

from __future__ import annotations

from dataclasses import replace

from autorep.mpc.bundle.graph import Arrays, Graph, Samples
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.engines import find_engine
from autorep.mpc.ring.agreement import LEAST_AGREEMENT, count_agreeing
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.local_truncation import MOST_FAILURES, failure_probability
from autorep.mpc.tables import TITLES

_EXACT, _LOCAL = FixedPoint.of("exact"), FixedPoint.of("local")
_AGREEMENT = "local_agreement"
_FEWEST_SAMPLES = 100  # fewer may all keep their class where one image in 20 does not


def with_local_agreement(graph: Graph, weights: Arrays, samples: Samples) -> Graph:
    """The graph, with the share of the samples whose class local truncation keeps noted in its `meta`.

    Ranges do not tell: what the last place loses may add up over many layers. A server has no samples, so it is noted
    when the bundle is made. Too few samples do not tell either: then nothing is noted.
    """
    if len(samples.images) < _FEWEST_SAMPLES or _often_wrong(graph) > MOST_FAILURES:
        return graph
    share = count_agreeing(graph, weights, samples, _LOCAL) / len(samples.images)
    return replace(graph, meta={**graph.meta, _AGREEMENT: share})


def automatic_format(graph: Graph, engine: str) -> tuple[FixedPoint, str]:
    """Local truncation with its usual bits where it is safe, else exact truncation; and why.

    Safe under all maskings, by the ranges of the network as trained, so that every command takes the same format for a
    bundle.
    """
    if not find_engine(engine).local_truncation:
        return _EXACT, f"{engine} has no other"
    if (often := _often_wrong(graph)) > MOST_FAILURES:
        return _EXACT, (f"local would be wrong on up to one image in {1 / often:,.0f}, more often than one in "
                        f"{1 / MOST_FAILURES:,.0f}")
    if not isinstance(agreement := graph.meta.get(_AGREEMENT), float):
        return _EXACT, ("the bundle does not say how many classes local would keep: export it again, with "
                        f"{_FEWEST_SAMPLES} images or more")
    if agreement < LEAST_AGREEMENT:
        return _EXACT, (f"local would keep the class of {100 * agreement:.1f} % of the samples, fewer than "
                        f"{100 * LEAST_AGREEMENT:g} %")
    return _LOCAL, f"it saves rounds and keeps the class of {100 * agreement:.1f} % of the samples"


def _often_wrong(graph: Graph) -> float:
    return max(failure_probability(with_masking(graph, masking), _LOCAL) for masking in TITLES)


def format_line(graph: Graph, fixed: FixedPoint, why: str | None = None) -> str:
    """One line that says which format it is, why, and how often it fails."""
    line = (f"{fixed.truncation} truncation, with {fixed.fraction_bits} fraction bits and {fixed.coefficient_bits} of "
            "coefficients")
    if why:
        line += f", because {why}"
    if (probability := failure_probability(graph, fixed)) > 0:
        line += f"; wrong on at most one image in {1 / probability:,.0f}, --truncation exact on none"
    return line
