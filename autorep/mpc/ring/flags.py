"""Flags that several commands share: those of the number format, which is refused where a network does not fit it."""

from __future__ import annotations

import argparse
import sys

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.engines import ENGINES, find_engine
from autorep.mpc.ring.agreement import check_format
from autorep.mpc.ring.fixed_point import TRUNCATIONS, FixedPoint
from autorep.mpc.ring.local_truncation import failure_probability


def positive(text: str) -> int:
    """The type of a flag that is a whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"invalid {text!r}: expected a whole number, 1 or more")
    return int(text)


def add_format_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `chosen_format` reads."""
    exact, local = map(FixedPoint.of, TRUNCATIONS)
    parser.add_argument("--truncation", choices=TRUNCATIONS, default=exact.truncation,
                        help="local: without a round, under spu-semi2k; wrong on few images, how few is computed")
    parser.add_argument("--fraction_bits", type=int, help=f"of activations; default: {exact.fraction_bits}, "
                        f"{local.fraction_bits} with local truncation")
    parser.add_argument("--coefficient_bits", type=int, help="of squared terms, weights have the sum of both; default: "
                        f"{exact.coefficient_bits}, {local.coefficient_bits} with local truncation")


def chosen_format(args: argparse.Namespace) -> FixedPoint:
    """The format that the flags name. Raises ValueError if it does not fit the ring."""
    return FixedPoint.of(args.truncation, args.fraction_bits, args.coefficient_bits)


def refuse_unfit_format(graph: Graph, engine: str, fixed: FixedPoint) -> None:
    """Warn of a format that only just fits. Raises ValueError if the network or the engine cannot run in it."""
    if fixed.truncation == "local" and not find_engine(engine).local_truncation:
        raise ValueError(f"invalid --truncation local under {engine}: expected exact; only "
                         f"{', '.join(name for name, each in ENGINES.items() if each.local_truncation)} can")
    for problem in check_format(graph, fixed):
        if problem.fatal:
            raise ValueError(str(problem))
        print(f"warning: {problem}", file=sys.stderr)
    if (probability := failure_probability(graph, fixed)) > 0:
        print(f"local truncation: wrong on at most one image in {1 / probability:,.0f}")
