"""The seconds that the parties compute, on one machine, from how much there is of each kind of work.

A table of rates is fitted to runs on loopback, where a link takes no time, and to runs on other links for what a round
takes beyond the delay. It belongs to the machine that ran them: the table in this folder is that of two cores which the
parties share.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path

import numpy as np

from autorep.machine.files import write_atomically
from autorep.mpc.engines import ENGINES
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.parameters import conv_blocks, conv_multiplications
from autorep.mpc.ring.program import Unit, num_truncations

RATES_FILE = Path(__file__).with_name("local_rates.json")


@dataclass(frozen=True)
class Work:
    """How much there is to compute; as `LocalRates.seconds_per`, the seconds that each takes.

    Args:
        operations: calls of the engine.
        moves: elements that a party moves by itself: the pixels of a gate that it sorts by kind, and the input and
            output of a convolution, once for every tap.
        comparisons: elements that are compared, and multiplied by the result.
        products: elementwise products of secrets.
        truncations: elements that are truncated.
        multiplications: of a matrix product, in millions.
    """

    operations: float = 0.0
    moves: float = 0.0
    comparisons: float = 0.0
    products: float = 0.0
    truncations: float = 0.0
    multiplications: float = 0.0

    def array(self) -> np.ndarray:
        """The numbers, in order."""
        return np.array([getattr(self, field.name) for field in fields(self)])


@dataclass(frozen=True)
class LocalRates:
    """Seconds per unit of work under one engine, on the machine that is named.

    `per_round`: the seconds that a round takes on a link beyond its delay, until both ends have woken up.
    """

    engine: str
    machine: str
    seconds_per: Work
    per_round: float = 0.0

    def seconds(self, unit: Unit, fixed: FixedPoint) -> float:
        """The local seconds of one unit for one image; local truncation, a shift, is taken to cost none."""
        work = local_work(unit, ENGINES[self.engine].opens_operands)
        if fixed.truncation == "local":
            work = replace(work, truncations=0.0)
        return float(self.seconds_per.array() @ work.array())

    def of_gate(self, num_pixels: int, fixed: FixedPoint) -> tuple[float, tuple[float, ...], tuple[float, float]]:
        """The local seconds of a gate, taken apart.

        Of a kept pixel; of a dropped one that is the identity, linear, quadratic; once if any is kept, if any dropped.
        """
        each = self.seconds_per
        truncation = 0.0 if fixed.truncation == "local" else each.truncations
        dropped = (each.moves, each.moves + truncation, each.moves + truncation + each.products)
        return each.comparisons, dropped, (each.operations, each.operations + 2 * num_pixels * each.moves)


def local_work(unit: Unit, opens_operands: bool) -> Work:
    """What one unit computes for one image."""
    step, out, truncations = unit.step, prod(unit.out_shape), num_truncations(unit)
    if unit.local:
        return Work(moves=out)
    if unit.part == "conv":
        num_blocks, groups = conv_blocks(step, opens_operands), step.op.attrs["groups"][0]
        products = conv_multiplications(step, opens_operands)
        outputs, inputs_of_group = step.out_shape[0], step.in_shapes[0][0] // groups
        return Work(operations=num_blocks, truncations=truncations,
                    multiplications=groups // num_blocks * products / 1e6,
                    moves=products // inputs_of_group + products // outputs * groups)
    if unit.part == "linear":
        return Work(operations=1, truncations=truncations, multiplications=out * prod(step.in_shapes[0]) / 1e6)
    if unit.part in ("affine", "mul"):
        return Work(operations=1, products=out, truncations=truncations)
    if unit.part == "kept":
        return Work(operations=1, comparisons=len(step.gate.kept))
    if unit.part == "max_pool":
        taps = prod(step.op.attrs["kernel"])
        return Work(operations=(taps - 1).bit_length(), comparisons=out * (taps - 1))
    if unit.part == "dropped":
        sizes = {degree: len(pixels) for degree, pixels in step.gate.polynomial.items()}
        return Work(operations=1, moves=out, products=sum((d - 1) * n for d, n in sizes.items()),
                    truncations=truncations)
    return Work(operations=1, moves=prod(step.in_shapes[0]), truncations=truncations)


def fit_rates(engine: str, machine: str, units: Sequence[Unit], seconds: Sequence[float]) -> LocalRates:
    """The rates, none of them negative, that explain the measured seconds of units best (least squares).

    Raises:
        ValueError: fewer units than kinds of work.
    """
    from scipy.optimize import nnls

    if len(units) < len(fields(Work)):
        raise ValueError(f"{len(units)} measured units do not determine {len(fields(Work))} rates: measure a network "
                         "with more layers")
    work = np.stack([local_work(unit, ENGINES[engine].opens_operands).array() for unit in units])
    scale = np.where(work.max(0) > 0, work.max(0), 1.0)  # or products of millions would outweigh operations
    rates, _ = nnls(work / scale, np.asarray(seconds))
    return LocalRates(engine, machine, Work(*(rates / scale).tolist()))


def fit_round(missing: Sequence[float], rounds: Sequence[int]) -> float:
    """The seconds a round, not negative, that explain best what predictions of runs are short of (least squares)."""
    squares = np.dot(rounds, rounds)
    return max(0.0, float(np.dot(rounds, missing) / squares)) if squares else 0.0


def save_rates(path: Path, rates: Sequence[LocalRates]) -> None:
    """Write rates to a table, in which those of other engines stay as they are. Raises ValueError as `load_rates`."""
    table = (load_rates(path) if path.exists() else {}) | {each.engine: each for each in rates}
    write_atomically(path, json.dumps([asdict(each) for each in table.values()], indent=1) + "\n")
    load_rates.cache_clear()


@functools.cache
def load_rates(path: Path = RATES_FILE) -> dict[str, LocalRates]:
    """Engine -> its rates. Read once: a search estimates thousands of prices.

    Raises:
        ValueError: the file is no table that `save_rates` wrote.
    """
    try:
        return {each["engine"]: LocalRates(**each | {"seconds_per": Work(**each["seconds_per"])})
                for each in json.loads(path.read_text())}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no table of rates, or is damaged ({type(error).__name__}: {error}): expected a "
                         "file that rates wrote; remove it, or give another --out") from error
