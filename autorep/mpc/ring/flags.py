"""Flags that several commands share: those of the number format, which is refused where a network does not fit it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.engines import ENGINES, find_engine
from autorep.mpc.ring.agreement import check_format
from autorep.mpc.ring.automatic import automatic_format, format_line
from autorep.mpc.ring.fixed_point import TRUNCATIONS, FixedPoint

_MOST = 10**6


def positive(text: str) -> int:
    """The type of a flag that is a whole number, 1 or more, of images or queries or days."""
    if not text.isdecimal() or len(text) > len(str(_MOST)) or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"invalid {text[:40]!r}: expected a whole number from 1 to {_MOST:,}")
    return int(text)


def add_format_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `named_format` and `chosen_format` read."""
    exact, local = map(FixedPoint.of, TRUNCATIONS)
    parser.add_argument("--truncation", choices=TRUNCATIONS,
                        help="local: without a round, under spu-semi2k; wrong on few images, how few is computed; "
                             "default: exact if bits are given, else local where it is safe for the bundle")
    parser.add_argument("--fraction_bits", type=int, help=f"of activations; default: {exact.fraction_bits}, "
                        f"{local.fraction_bits} with local truncation")
    parser.add_argument("--coefficient_bits", type=int, help="of squared terms, weights have the sum of both; default: "
                        f"{exact.coefficient_bits}, {local.coefficient_bits} with local truncation")


def named_format(args: argparse.Namespace) -> FixedPoint:
    """The format that the flags name, with exact truncation unless they say otherwise.

    Raises:
        ValueError: it does not fit the ring.
    """
    return FixedPoint.of(args.truncation or "exact", args.fraction_bits, args.coefficient_bits)


def chosen_format(args: argparse.Namespace, graph: Graph, engine: str) -> tuple[FixedPoint, str]:
    """The format that the flags name, or the one of `automatic_format` if they name none; and a line that says which.

    Raises:
        ValueError: it does not fit the ring.
    """
    if (args.truncation, args.fraction_bits, args.coefficient_bits) == (None, None, None):
        fixed, why = automatic_format(graph, engine)
        return fixed, format_line(graph, fixed, why)
    fixed = named_format(args)
    return fixed, format_line(graph, fixed)


def refuse_unfit_format(graphs: Iterable[Graph], engine: str, fixed: FixedPoint) -> None:
    """Warn of a format that only just fits. Raises ValueError if the engine or a network cannot run in it."""
    if fixed.truncation == "local" and not find_engine(engine).local_truncation:
        raise ValueError(f"invalid --truncation local under {engine}: expected exact; only "
                         f"{', '.join(name for name, each in ENGINES.items() if each.local_truncation)} can")
    for problem in dict.fromkeys(problem for graph in graphs for problem in check_format(graph, fixed)):
        if problem.fatal:
            raise ValueError(str(problem))
        print(f"warning: {problem}", file=sys.stderr)
