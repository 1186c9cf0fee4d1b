"""What CHEETAH sends once a session: keys of the lattice encryption, and the start of oblivious transfers.

The engine sends each kind when it first needs it, so within the first query. Derived from its parameters; two sizes are
measured, because the engine compresses keys. Exact to 1 %, but for networks of few pixels, which need their first batch
of transfers some queries later.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from autorep.mpc.ring.program import COMPARING, Unit, num_truncations

# Compressed polynomials of 8,192 coefficients, measured: modulo primes of 59 + 55 + 49 + 49 bits for matrix products,
# which are 217,088 bytes, and of 60 + 32 + 52 bits for other products, which are 147,456.
_MATRIX_POLYNOMIAL, _PRODUCT_POLYNOMIAL = 242_860, 160_800
# A key is one polynomial; the other half follows from a seed. To pack ciphertexts takes log2(8,192) rotations, each
# with a key for every prime but the last.
_MATRIX_KEYS = 1 + 13 * 3
# Oblivious transfers are extended in batches of 10 million, which take 1,280 trees of 13 levels with 16 bytes each, and
# 19 bytes. A party starts with 41,030 transfers of 64 bits, 918 trees of 9 levels, and 9,731 bytes of base transfers.
_FIRST_TRANSFERS = 41_030 * 8 + 918 * 9 * 16 + 9_731
_BATCH = 1_280 * 13 * 16 + 19
_WORK = 2048  # elements of an operation for which the engine starts another worker, with transfers of its own
CORES = 2


def cheetah_setup(plan: Sequence[Unit], cores: int = CORES) -> dict[str, int]:
    """Kind -> bytes of a session's set-up, both directions, for queries of one image.

    Args:
        cores: of the party that has fewer. Each works with transfers of its own if an operation has elements enough.
    """
    compared, truncated = [_comparisons(unit) for unit in plan], [num_truncations(unit) for unit in plan]
    comparing, working = (min(cores, ceil(max(elements) / _WORK)) for elements in (compared, compared + truncated))
    found = {"keys of matrix products": any(unit.part in ("conv", "linear") for unit in plan)
             * 2 * _MATRIX_KEYS * _MATRIX_POLYNOMIAL,
             "keys of products": any(map(_multiplies, plan)) * 2 * _PRODUCT_POLYNOMIAL,
             # Truncations take transfers from the server to the client, comparisons in both directions.
             "oblivious transfers": working * (2 * _FIRST_TRANSFERS + _BATCH) + comparing * _BATCH}
    return {kind: num_bytes for kind, num_bytes in found.items() if num_bytes}


def _comparisons(unit: Unit) -> int:
    """The most elements that are compared at once."""
    if unit.part not in COMPARING:
        return 0
    if unit.part == "kept":
        return len(unit.step.gate.kept)
    return prod(unit.out_shape) * (prod(unit.step.op.attrs["kernel"]) // 2)  # pairs of the first round


def _multiplies(unit: Unit) -> bool:
    """Whether it multiplies elements of secrets, other than by the result of a comparison."""
    return unit.part in ("affine", "mul") or unit.part == "dropped" and max(unit.step.gate.degrees, default=0) > 1
