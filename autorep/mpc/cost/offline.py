"""What SEMI2K needs before a query: correlated randomness by kind, and what a dealer would send for it.

The parties consume it, so every query needs its own. Each party expands a seed into its shares, and the dealer sends
one of them the corrections that make both fit, 8 bytes a ring element. In a run here the server is the dealer and
sends nothing. The engine does not count this traffic: these numbers follow from the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from autorep.mpc.bundle.windows import out_size
from autorep.mpc.ring.fixed_point import WORD, FixedPoint
from autorep.mpc.ring.parameters import conv_form
from autorep.mpc.ring.program import Unit, num_truncations

# Bytes of corrections. A comparison takes products of bits, 64 and then two each of 32, 16, 8, 4, 2 and 1, filled up to
# bytes, and two products of a ring element of one party by a bit of the other. A truncation takes the high part and the
# sign of its random mask.
CORRECTIONS = {"product": WORD, "matrix element": WORD, "comparison": 8 + 2 * (4 + 2 + 1 + 1 + 1 + 1) + 2 * WORD,
               "truncation": 2 * WORD}


def offline_counts(unit: Unit, fixed: FixedPoint) -> dict[str, int]:
    """Kind of correlated randomness, as in `CORRECTIONS`, -> how many one image takes.

    A "matrix element" is one of the result of a matrix product, whose triple is three matrices.
    """
    step, out = unit.step, prod(unit.out_shape)
    counts = {} if fixed.truncation == "local" else {"truncation": num_truncations(unit)}
    if unit.part == "conv":
        counts["matrix element"] = _conv_elements(unit)
    elif unit.part == "linear":
        counts["matrix element"] = out
    elif unit.part in ("affine", "mul"):
        counts["product"] = out
    elif unit.part == "dropped":
        counts["product"] = sum((degree - 1) * len(pixels) for degree, pixels in step.gate.polynomial.items())
    elif unit.part == "kept":
        counts["comparison"] = len(step.gate.kept)
    elif unit.part == "max_pool":
        counts["comparison"] = out * (prod(step.op.attrs["kernel"]) - 1)
    return {kind: count for kind, count in counts.items() if count}


def dealt_bytes(counts: Mapping[str, int]) -> int:
    """What a dealer sends for so many of each kind."""
    return sum(CORRECTIONS[kind] * count for kind, count in counts.items())


def _conv_elements(unit: Unit) -> int:
    op, (_, height, width) = unit.step.op, unit.step.in_shapes[0]
    top, bottom, left, right = op.attrs["padding"]
    padded = (height + top + bottom, width + left + right)
    if conv_form(unit.step, opens_operands=True) == "taps":
        return prod(op.attrs["kernel"]) * unit.out_shape[0] * prod(padded)
    return unit.out_shape[0] * prod(out_size(op, *padded))
