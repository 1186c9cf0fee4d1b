"""Fixed-point numbers in the ring of integers modulo 2^64, and how many bits each kind of value gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FixedPoint:
    """The number format of a run, all on a 64-bit ring.

    Activations have `fraction_bits`; weights and the coefficient c1 have `truncation_bits` = fraction_bits +
    `coefficient_bits`; c2 has `coefficient_bits`. So c2*x + c1 is a sum of like numbers, (c2*x + c1)*x has the
    scale of a convolution's result, and one truncation by `truncation_bits` brings either back to an activation.
    """

    fraction_bits: int = 16
    coefficient_bits: int = 16

    def __post_init__(self) -> None:
        for name in ("fraction_bits", "coefficient_bits"):
            if not 4 <= getattr(self, name) <= 22:
                raise ValueError(f"{name}={getattr(self, name)} is not legal: a whole number from 4 to 22")
        if self.product_bits > 56:
            raise ValueError(f"2 * fraction_bits + coefficient_bits = {self.product_bits} is not legal: at most 56 of "
                             "the ring's 64 bits may be fraction")

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
        """Largest magnitude that a product may reach: truncation protocols need one bit besides the sign."""
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
