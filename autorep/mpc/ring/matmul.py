"""Matrix products of ring elements, at the speed of floating point."""

from __future__ import annotations

import numpy as np

_EXACT_BITS = 53  # whole numbers up to 2^53 are exact in float64
_RING_BITS = 64


def ring_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [I, K] times b [K, J], int64 modulo 2^64, as `a @ b` gives.

    Both are cut into limbs, a = a0 + a1 * 2^bits + ..., from -2^(bits-1) to 2^(bits-1), so narrow that a sum of K
    products of limbs is exact in float64, for which there are fast libraries. Small numbers have few limbs.
    """
    bits_a, bits_b = _limb_bits(_num_bits(a), _num_bits(b), a.shape[1])
    result = np.zeros((a.shape[0], b.shape[1]), np.int64)
    limbs_b = list(enumerate(_limbs(b, bits_b)))
    for i, limb_a in enumerate(_limbs(a, bits_a)):
        for j, limb_b in limbs_b:
            if (shift := bits_a * i + bits_b * j) < _RING_BITS:
                result += (limb_a @ limb_b).astype(np.int64) << shift
    return result


def _num_bits(values: np.ndarray) -> int:
    """Bits of a limb that holds them all."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return max(high, -low).bit_length() + 1


def _limb_bits(num_a: int, num_b: int, inner: int) -> tuple[int, int]:
    """Bits of the limbs of two factors whose numbers have so many bits: those with the fewest products of limbs."""
    together = _EXACT_BITS + 2 - inner.bit_length()
    choices = [(-(-num_a // n), together + -num_a // n) for n in range(1, num_a + 1) if -(-num_a // n) < together]
    return min(choices, key=lambda bits: -(-num_a // bits[0]) * -(-num_b // bits[1]))


def _limbs(values: np.ndarray, bits: int) -> list[np.ndarray]:
    """float64 limbs, lowest first; what lies beyond the ring is left out."""
    if _num_bits(values) <= bits:
        return [values.astype(np.float64)]
    half, limbs = 1 << (bits - 1), []
    while values.any() and len(limbs) * bits < _RING_BITS:
        with np.errstate(over="ignore"):
            low = ((values + half) & (2 * half - 1)) - half
            values = (values - low) >> bits
        limbs.append(low.astype(np.float64))
    return limbs
