"""The pixels of a gate, sorted into classes by the cheapest way to compute them:

kept (a comparison), degree 2 or more (secure products), degree 1 (a truncation), identity and constant (nothing).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from autorep.mpc.ring.fixed_point import FixedPoint


@dataclass(frozen=True)
class GatePlan:
    """The pixels of a gate by class, as flat indices into [C*H*W].

    `coefficients[d]` [pixels, d + 1] and `constant_value` [pixels] belong to the pixels of `polynomial[d]` and
    `constant`. Two channels of 2x2 pixels; K is kept, 2 quadratic, I the identity:

        channel 0    K 2    flat index    0 1    kept 0 3 6, polynomial {2: 1 2}, identity 4 5 7
                     2 K                  2 3
        channel 1    I I                  4 5    order    0 3 6   1 2   4 5 7      x in order: what is computed
                     K I                  6 7    back     0 3 4 1 5 6 2 7          x in order, in back: x
    """

    kept: np.ndarray
    polynomial: dict[int, np.ndarray]
    identity: np.ndarray
    constant: np.ndarray
    coefficients: dict[int, np.ndarray]
    constant_value: np.ndarray

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees that occur, in ascending order, from 1."""
        return tuple(sorted(self.polynomial))

    @cached_property
    def order(self) -> np.ndarray:
        """All pixels, class by class: kept, polynomials by degree, identity, constant."""
        return np.concatenate([self.kept, *(self.polynomial[d] for d in self.degrees), self.identity, self.constant])

    @cached_property
    def back(self) -> np.ndarray:
        """Where in `order` each pixel is."""
        return np.argsort(self.order)

    def largest_inner_term(self, largest: float) -> float:
        """A bound of what Horner's rule truncates on its way, for inputs up to `largest`; 0 up to degree 2."""
        found = 0.0
        for degree, coefficients in self.coefficients.items():
            for power in range(2, degree):
                terms = np.abs(coefficients[:, power:]) * largest ** np.arange(1, degree - power + 2)
                found = max(found, float(terms.sum(1).max()))
        return found


def at_least_quadratic(coefficients: np.ndarray) -> np.ndarray:
    """A copy [C, D] with D at least 3, padded with zeros."""
    return np.pad(coefficients, ((0, 0), (0, max(0, 3 - coefficients.shape[1]))))


def plan_gate(mask: np.ndarray, coefficients: np.ndarray, fixed: FixedPoint) -> GatePlan:
    """Sort the pixels of a gate into classes.

    Args:
        mask: kept ReLUs, bool [C, ...].
        coefficients: [C, D], constant first. One that rounds to zero in the format counts as zero.
    """
    coefficients = at_least_quadratic(coefficients)
    num_channels, size = len(mask), prod(mask.shape[1:])
    powers = np.arange(coefficients.shape[1])
    resolution = np.where(powers == 1, 2.0 ** -fixed.truncation_bits, 2.0 ** -(fixed.coefficient_bits + 1))
    degree_C = np.where(np.abs(coefficients) >= resolution, powers, 0).max(1)
    identity_C = (degree_C == 1) & (coefficients[:, 1] == 1) & (coefficients[:, 0] == 0)
    channel = np.repeat(np.arange(num_channels), size)
    dropped = ~mask.reshape(-1)
    polynomial = {}
    for degree in range(1, coefficients.shape[1]):
        pixels = np.flatnonzero(dropped & (degree_C == degree)[channel] & ~identity_C[channel])
        if len(pixels):
            polynomial[degree] = pixels
    constant = np.flatnonzero(dropped & (degree_C == 0)[channel])
    return GatePlan(np.flatnonzero(~dropped), polynomial, np.flatnonzero(dropped & identity_C[channel]), constant,
                    {d: coefficients[channel[pixels], :d + 1] for d, pixels in polynomial.items()},
                    coefficients[channel[constant], 0])
