"""What ABY3 sends, in closed form: exact, to the byte.

A truncation chooses by lot which party does what, so only the sum over all three parties is fixed. In a product, of
matrices too, each party sends one word per result, whatever the size of the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import Step
from autorep.mpc.ring.parameters import conv_blocks
from autorep.mpc.ring.program import Unit

WORD = 8  # bytes of a ring element
# On a 64-bit ring: bytes that all three parties send together per element, and rounds that follow one another.
COMPARISON, COMPARISON_ROUNDS = 172, 10
PRODUCT = 3 * WORD  # one round
TRUNCATION_ROUNDS = 2
Price = tuple[int, int]  # bytes that all three parties send together, rounds


def aby3_unit(unit: Unit, batch: int = 1, fixed: FixedPoint | None = None) -> Price:
    """(bytes that all three parties send together, rounds) of one unit for `batch` images."""
    num_bytes, rounds = _PRICES.get(unit.part, _nothing)(unit.step, _truncation(fixed or FixedPoint()))
    return batch * num_bytes, rounds


def _truncation(fixed: FixedPoint) -> int:
    """Bytes per truncated element: two words, and three times the dropped bits, as 32-bit words if they fit."""
    return 2 * WORD + 3 * (WORD // 2 if fixed.truncation_bits <= 32 else WORD)


def _nothing(step: Step, truncation: int) -> Price:
    return 0, 0


def _product(step: Step, truncation: int) -> Price:
    return prod(step.out_shape) * (PRODUCT + truncation), 1 + TRUNCATION_ROUNDS


def _conv(step: Step, truncation: int) -> Price:
    num_bytes, rounds = _product(step, truncation)
    return num_bytes, rounds + conv_blocks(step, opens_operands=False) - 1


def _kept(step: Step, truncation: int) -> Price:
    return len(step.gate.kept) * COMPARISON, COMPARISON_ROUNDS


def _dropped(step: Step, truncation: int) -> Price:
    sizes = {degree: len(pixels) for degree, pixels in step.gate.polynomial.items()}
    count = sum(n * ((d - 1) * PRODUCT + max(1, d - 1) * truncation) for d, n in sizes.items())
    rounds = sum((d - 1) + TRUNCATION_ROUNDS * max(0, d - 2) for d in sizes)
    return count, rounds + TRUNCATION_ROUNDS * bool(sizes)


def _avg_pool(step: Step, truncation: int) -> Price:
    return (prod(step.out_shape) * truncation, TRUNCATION_ROUNDS) if step.divide else (0, 0)


def _max_pool(step: Step, truncation: int) -> Price:
    taps = prod(step.op.attrs["kernel"])
    return prod(step.out_shape) * (taps - 1) * COMPARISON, (taps - 1).bit_length() * COMPARISON_ROUNDS


_PRICES: dict[str, Callable[[Step, int], Price]] = {
    "conv": _conv, "linear": _product, "affine": _product, "mul": _product, "kept": _kept, "dropped": _dropped,
    "avg_pool": _avg_pool, "max_pool": _max_pool,
}
