"""How often the number format leaves the predicted class as it is, and the format that does."""

from __future__ import annotations

from dataclasses import dataclass

from autorep.mpc.bundle.graph import Arrays, Graph, Samples
from autorep.mpc.ring.fixed_point import LARGEST_BITS, FixedPoint
from autorep.mpc.ring.local_truncation import MOST_FAILURES, TruncationProblem, check_truncation, failure_probability
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.prediction import RangeProblem, check_ranges, logits_fixed

LEAST_AGREEMENT = 0.99


@dataclass(frozen=True)
class ResolutionProblem:
    """A format that changes the predicted class of too many samples.

    Args:
        agreeing: samples, out of `samples`, whose class stays the same.
        smallest: the tensor with the smallest values, and the largest of those.
        instead: the fewest bits that would do, with the samples that agree then; None where no format does.
    """

    fixed: FixedPoint
    agreeing: int
    samples: int
    smallest: tuple[str, float]
    instead: tuple[FixedPoint, int] | None
    fatal: bool = False

    def __str__(self) -> str:
        name, largest = self.smallest
        if self.instead is None:
            way_out = (f"no format keeps it; the smallest values are those of {name}, at most {largest:.2g}: scale "
                       "that layer up and the next one down")
        else:
            fixed, agreeing = self.instead
            way_out = (f"with --fraction_bits {fixed.fraction_bits} --coefficient_bits {fixed.coefficient_bits} on "
                       f"{agreeing}")
        return (f"with {self.fixed.fraction_bits} fraction bits the predicted class is torch's on {self.agreeing} of "
                f"{self.samples} images, fewer than {100 * LEAST_AGREEMENT:g} %: {way_out}")


def count_agreeing(graph: Graph, weights: Arrays, samples: Samples, fixed: FixedPoint) -> int:
    """Samples whose predicted class is the same under a format as without, by the ring interpreter."""
    logits = logits_fixed(lower(graph, fixed), weights, samples.images)
    return int((logits.argmax(1) == samples.logits.argmax(1)).sum())


def check_resolution(graph: Graph, weights: Arrays, samples: Samples, fixed: FixedPoint) -> list[ResolutionProblem]:
    """The problem, if fewer than `LEAST_AGREEMENT` of the samples keep their class; or an empty list."""
    needed = LEAST_AGREEMENT * len(samples.images)
    agreeing = count_agreeing(graph, weights, samples, fixed)
    if agreeing >= needed:
        return []
    finer = fitting_formats(graph, fixed.fraction_bits + 1, fixed)
    found = ((each, count_agreeing(graph, weights, samples, each)) for each in finer)
    largest = {name: max(abs(low), abs(high)) for name, (low, high) in graph.ranges.items()}
    smallest = min((item for item in largest.items() if item[1] > 0), key=lambda item: item[1])
    instead = next((each for each in found if each[1] >= needed), None)
    return [ResolutionProblem(fixed, agreeing, len(samples.images), smallest, instead)]


def fitting_formats(graph: Graph, fewest_bits: int, fixed: FixedPoint) -> list[FixedPoint]:
    """Formats like `fixed` with so many fraction bits or more that suit the recorded ranges, the fewest bits first."""
    formats = [fixed.with_fraction_bits(bits) for bits in range(fewest_bits, LARGEST_BITS + 1)]
    return [each for each in formats if not any(problem.fatal for problem in check_ranges(graph, each))
            and failure_probability(graph, each) <= MOST_FAILURES]


def check_format(graph: Graph, fixed: FixedPoint) -> list[RangeProblem | TruncationProblem]:
    """What the recorded ranges say against a format: values that wrap around, truncation that fails too often."""
    return [*sorted(check_ranges(graph, fixed), key=lambda p: -p.largest), *check_truncation(graph, fixed)]
