"""What ABY3 sends, in closed form: exact, to the byte.

A truncation chooses by lot which party does what, so only the sum over all three parties is fixed. In a product, of
matrices too, each party sends one word per result, whatever the size of the operands.
"""

from __future__ import annotations

from math import prod

from autorep.mpc.ring.fixed_point import WORD, FixedPoint
from autorep.mpc.ring.parameters import conv_blocks
from autorep.mpc.ring.program import Unit, num_truncations

# On a 64-bit ring: bytes that all three parties send together per element, and rounds that follow one another.
COMPARISON, COMPARISON_ROUNDS = 172, 10
PRODUCT = 3 * WORD  # one round
TRUNCATION_ROUNDS = 2
Price = tuple[int, int]  # bytes that all three parties send together, rounds


def aby3_unit(unit: Unit, batch: int = 1, fixed: FixedPoint | None = None) -> Price:
    """(bytes that all three parties send together, rounds) of one unit for `batch` images."""
    comparisons, comparison_rounds = _comparisons(unit)
    products, product_rounds = _products(unit)
    num_bytes = (comparisons * COMPARISON + products * PRODUCT
                 + num_truncations(unit) * _truncation(fixed or FixedPoint()))
    return batch * num_bytes, comparison_rounds + product_rounds + TRUNCATION_ROUNDS * _truncations_in_turn(unit)


def _truncation(fixed: FixedPoint) -> int:
    """Bytes per truncated element: two words, and three times the dropped bits, as 32-bit words if they fit."""
    return 2 * WORD + 3 * (WORD // 2 if fixed.truncation_bits <= 32 else WORD)


def _comparisons(unit: Unit) -> tuple[int, int]:
    """Elements that are compared, and rounds."""
    if unit.part == "kept":
        return len(unit.step.gate.kept), COMPARISON_ROUNDS
    if unit.part == "max_pool":
        taps = prod(unit.step.op.attrs["kernel"])
        return prod(unit.out_shape) * (taps - 1), (taps - 1).bit_length() * COMPARISON_ROUNDS
    return 0, 0


def _products(unit: Unit) -> tuple[int, int]:
    """Results of products of secrets, and rounds."""
    if unit.part == "dropped":
        sizes = {degree: len(pixels) for degree, pixels in unit.step.gate.polynomial.items()}
        return sum((d - 1) * n for d, n in sizes.items()), sum(d - 1 for d in sizes)
    if unit.part == "conv":
        return prod(unit.out_shape), conv_blocks(unit.step, opens_operands=False)
    return (prod(unit.out_shape), 1) if unit.part in ("linear", "affine", "mul") else (0, 0)


def _truncations_in_turn(unit: Unit) -> int:
    """Truncations that follow one another: those of a polynomial's inner terms, and the last one of all elements."""
    inner = sum(max(0, degree - 2) for degree in unit.step.gate.polynomial) if unit.part == "dropped" else 0
    return inner + (num_truncations(unit) > 0)
