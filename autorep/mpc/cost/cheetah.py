"""Bytes of CHEETAH per unit, both directions: estimated from how it packs and what the engine was seen to send.

A matrix product encrypts the side with fewer entries in ciphertexts of 8,192 coefficients and gets packed ciphertexts
back. Comparisons and products use oblivious transfers and triples that are made in batches. Here their price is spread
evenly over their use. A small network, which needs a new batch every few queries, sends less than that in most queries
and more in a few.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

from autorep.mpc.bundle.windows import out_size
from autorep.mpc.ring.lowering import Step
from autorep.mpc.ring.parameters import conv_blocks, conv_form
from autorep.mpc.ring.program import Unit

CHEETAH_ERROR = 0.2  # largest relative error of a network's bytes over many queries; the tests check it
COMPARISON, PRODUCT, TRUNCATION = 98, 280, 2  # bytes per element, both directions, preprocessing spread evenly
_SLOTS = 8192
_FRESH, _PACKED, _UNPACKED = 185_000, 255_000, 128_000  # bytes of a ciphertext: sent, back packed, back unpacked


def cheetah_unit_bytes(unit: Unit) -> int:
    """Estimated bytes of one unit for one image, both directions."""
    return _PRICES.get(unit.part, lambda step: 0)(unit.step)


def matrix_product(rows: int, inner: int, columns: int) -> int:
    """Estimated bytes of [rows, inner] times [inner, columns], one of them private to a party.

    The encrypted factor, [small, inner] with small = min(rows, columns), is cut into tiles of one ciphertext each:

                      inner_tile    inner_tile    ...       small_tile * inner_tile <= slots
        small_tile    ciphertext    ciphertext
        ...
    """
    small, large = sorted((rows, columns))
    small_tile = min(small, _SLOTS)
    inner_tile = min(inner, _SLOTS // small_tile)
    fits = small * inner * large <= _SLOTS
    if not fits:
        inner_tile = 1 << (inner_tile.bit_length() - 1)
    encrypted = ceil(small / small_tile) * ceil(inner / inner_tile)
    back = _UNPACKED if fits else _PACKED * ceil(small * large / _SLOTS)
    return encrypted * _FRESH + back


def _conv(step: Step) -> int:
    op, (channels, height, width) = step.op, step.in_shapes[0]
    assert conv_form(step, opens_operands=False) == "columns"
    top, bottom, left, right = op.attrs["padding"]
    size = prod(out_size(op, height + top + bottom, width + left + right))
    num_blocks = conv_blocks(step, opens_operands=False)
    inner = prod(op.attrs["kernel"]) * channels // num_blocks
    return num_blocks * matrix_product(step.out_shape[0] // num_blocks, inner, size) + TRUNCATION * prod(step.out_shape)


def _linear(step: Step) -> int:
    return matrix_product(step.out_shape[0], step.in_shapes[0][0], 1) + TRUNCATION * prod(step.out_shape)


def _dropped(step: Step) -> int:
    sizes = {degree: len(pixels) for degree, pixels in step.gate.polynomial.items()}
    return sum(n * ((d - 1) * PRODUCT + max(1, d - 1) * TRUNCATION) for d, n in sizes.items())


_PRICES: dict[str, Callable[[Step], int]] = {
    "conv": _conv, "linear": _linear, "dropped": _dropped,
    "kept": lambda step: len(step.gate.kept) * COMPARISON,
    "affine": lambda step: prod(step.out_shape) * (PRODUCT + TRUNCATION),
    "mul": lambda step: prod(step.out_shape) * (PRODUCT + TRUNCATION),
    "avg_pool": lambda step: prod(step.out_shape) * TRUNCATION * step.divide,
    "max_pool": lambda step: prod(step.out_shape) * (prod(step.op.attrs["kernel"]) - 1) * COMPARISON,
}
