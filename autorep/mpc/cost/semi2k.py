"""What SEMI2K sends, in closed form: exact, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from autorep.mpc.bundle.windows import out_size
from autorep.mpc.ring.fixed_point import WORD, FixedPoint
from autorep.mpc.ring.lowering import Step
from autorep.mpc.ring.parameters import conv_blocks, conv_form
from autorep.mpc.ring.program import Unit

# SEMI2K on a 64-bit ring, bytes each party sends per element, and rounds.
COMPARISON, COMPARISON_ROUNDS = 72, 8
PRODUCT = 2 * WORD
Price = tuple[int, int]  # bytes that each party sends, rounds


def semi2k_unit(unit: Unit, batch: int = 1, fixed: FixedPoint | None = None) -> Price:
    """(bytes that each party sends, rounds) of one unit for `batch` images."""
    num_bytes, rounds = _PRICES.get(unit.part, _nothing)(unit.step, _truncation(fixed or FixedPoint()))
    return batch * num_bytes, rounds


@dataclass(frozen=True)
class _Truncation:
    """Bytes that each party sends per truncated element, and rounds."""

    num_bytes: int
    rounds: int


def _truncation(fixed: FixedPoint) -> _Truncation:
    """The dropped bits are sent, as one 32-bit word if they fit; nothing is if truncation is local."""
    if fixed.truncation == "local":
        return _Truncation(0, 0)
    return _Truncation(WORD // 2 if fixed.truncation_bits <= 32 else WORD, 1)


def _nothing(step: Step, truncation: _Truncation) -> Price:
    return 0, 0


def _conv(step: Step, truncation: _Truncation) -> Price:
    op, (channels, height, width) = step.op, step.in_shapes[0]
    top, bottom, left, right = op.attrs["padding"]
    padded = (height + top + bottom, width + left + right)
    seen = prod(padded)
    if conv_form(step, opens_operands=True) == "columns":
        seen = prod(op.attrs["kernel"]) * prod(out_size(op, *padded))
    rounds = conv_blocks(step, opens_operands=True) + truncation.rounds
    return channels * seen * WORD + prod(step.out_shape) * truncation.num_bytes, rounds


def _linear(step: Step, truncation: _Truncation) -> Price:
    return prod(step.in_shapes[0]) * WORD + prod(step.out_shape) * truncation.num_bytes, 1 + truncation.rounds


def _kept(step: Step, truncation: _Truncation) -> Price:
    return len(step.gate.kept) * COMPARISON, COMPARISON_ROUNDS


def _dropped(step: Step, truncation: _Truncation) -> Price:
    sizes = {degree: len(pixels) for degree, pixels in step.gate.polynomial.items()}
    count = sum(n * ((d - 1) * PRODUCT + max(1, d - 1) * truncation.num_bytes) for d, n in sizes.items())
    truncated = sum(max(0, d - 2) for d in sizes) + bool(sizes)
    return count, sum(d - 1 for d in sizes) + truncated * truncation.rounds


def _product(step: Step, truncation: _Truncation) -> Price:
    return prod(step.out_shape) * (PRODUCT + truncation.num_bytes), 1 + truncation.rounds


def _affine(step: Step, truncation: _Truncation) -> Price:
    # Like other weights, the scale was opened before.
    return prod(step.out_shape) * (WORD + truncation.num_bytes), 1 + truncation.rounds


def _avg_pool(step: Step, truncation: _Truncation) -> Price:
    return (prod(step.out_shape) * truncation.num_bytes, truncation.rounds) if step.divide else (0, 0)


def _max_pool(step: Step, truncation: _Truncation) -> Price:
    taps = prod(step.op.attrs["kernel"])
    return prod(step.out_shape) * (taps - 1) * COMPARISON, (taps - 1).bit_length() * COMPARISON_ROUNDS


_PRICES: dict[str, Callable[[Step, _Truncation], Price]] = {
    "conv": _conv, "linear": _linear, "affine": _affine, "mul": _product, "kept": _kept, "dropped": _dropped,
    "avg_pool": _avg_pool, "max_pool": _max_pool,
}
