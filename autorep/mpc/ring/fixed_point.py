"""Fixed-point numbers in the ring of integers modulo 2^64, and the number of bits of each kind of value."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

WORD = 8  # bytes of a ring element
LARGEST_BITS, LARGEST_PRODUCT_BITS = 22, 56
TRUNCATIONS = ("exact", "local")
_LOCAL_BITS = (12, 8)  # of activations and of squared terms: 32 product bits


@dataclass(frozen=True)
class FixedPoint:
    """The number format of a run, on a 64-bit ring. Fraction bits of each kind of value:

        activation x             fraction_bits
        c2                       coefficient_bits
        weight, c1, c2*x         truncation_bits = fraction_bits + coefficient_bits
        weight*x, (c2*x + c1)*x  product_bits = truncation_bits + fraction_bits

    So c2*x + c1 adds numbers of one scale, and truncation by `truncation_bits` turns the result of a convolution as
    well as that of a quadratic back into an activation.

    `truncation`: "exact" takes a round; "local" none, but it is wrong at random, and the more often the more
    `product_bits` there are (see `local_truncation`).
    """

    fraction_bits: int = 16
    coefficient_bits: int = 16
    truncation: str = "exact"

    def __post_init__(self) -> None:
        for name in ("fraction_bits", "coefficient_bits"):
            if not 4 <= getattr(self, name) <= LARGEST_BITS:
                raise ValueError(f"invalid {name}={getattr(self, name)}: expected a whole number from 4 to "
                                 f"{LARGEST_BITS}")
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"invalid truncation={self.truncation!r}: expected one of {', '.join(TRUNCATIONS)}")
        if self.product_bits > LARGEST_PRODUCT_BITS:
            raise ValueError(f"invalid 2 * fraction_bits + coefficient_bits = {self.product_bits}: expected at most "
                             f"{LARGEST_PRODUCT_BITS} of the ring's 64 bits; lower one of them")

    @classmethod
    def of(cls, truncation: str, fraction_bits: int | None = None, coefficient_bits: int | None = None) -> FixedPoint:
        """The format for a truncation, with the usual bits of that in the place of None."""
        usual = _LOCAL_BITS if truncation == "local" else (cls.fraction_bits, cls.coefficient_bits)
        given = (fraction_bits, coefficient_bits)
        return cls(*(own if bits is None else bits for bits, own in zip(given, usual, strict=True)), truncation)

    def with_fraction_bits(self, bits: int) -> FixedPoint:
        """With at most the coefficient bits of this format: fewer where both do not fit."""
        return replace(self, fraction_bits=bits,
                       coefficient_bits=min(self.coefficient_bits, LARGEST_PRODUCT_BITS - 2 * bits))

    @property
    def truncation_bits(self) -> int:
        """Bits that every truncation drops."""
        return self.fraction_bits + self.coefficient_bits

    @property
    def product_bits(self) -> int:
        """Fraction bits of a product before its truncation."""
        return self.truncation_bits + self.fraction_bits

    @property
    def limit(self) -> float:
        """Magnitude that a product must stay below: truncation protocols need one bit besides the sign."""
        return 2.0 ** (62 - self.product_bits)


def encode(values: np.ndarray, bits: int, what: str) -> np.ndarray:
    """Real numbers as ring elements with `bits` fraction bits, int64.

    Raises:
        ValueError: a value does not fit.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not largest < 2.0 ** (62 - bits):
        raise ValueError(f"{what}: {largest:.4g} does not fit the ring with {bits} fraction bits (limit "
                         f"{2.0 ** (62 - bits):.4g}): use fewer --fraction_bits")
    return np.rint(np.asarray(values, np.float64) * 2.0**bits).astype(np.int64)


def decode(values: np.ndarray, bits: int) -> np.ndarray:
    """Ring elements back to real numbers, float64."""
    return np.asarray(values).astype(np.int64) / 2.0**bits
