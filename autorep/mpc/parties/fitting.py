"""How fast a machine computes, and waits, under each engine: a table of rates from the reports of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.local import LocalRates, fit_rates, fit_round
from autorep.mpc.engines import Network, find_engine
from autorep.mpc.parties.report import number_format, reported_graph
from autorep.mpc.parties.results import INPUT_OUTPUT
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import Unit, units


class _Masking(NamedTuple):
    """A network that ran: its units with the seconds that each took, and the seconds of a query."""

    graph: Graph
    units: tuple[Unit, ...]
    unit_seconds: list[float]
    seconds: float


class _Run(NamedTuple):
    """What a report says of a run."""

    engine: str
    network: Network
    fixed: FixedPoint
    maskings: list[_Masking]


def fit_reports(machine: str, paths: Sequence[Path], known: Mapping[str, LocalRates]) -> list[LocalRates]:
    """The rates of every engine with a run on loopback; runs on other links add what a round takes beyond its delay.

    Args:
        machine: what the table calls this machine.
        paths: of reports, as `run --out` writes them.
        known: engine -> its rates so far. Without a run on another link a round takes what it took on this machine.

    Raises:
        ValueError: one is no report, or not of the bundle that is there now, or has local truncation or several images
            a query; or an engine has no run on loopback.
    """
    by_engine: dict[str, list[_Run]] = {}
    for path in paths:
        run = _read(path)
        by_engine.setdefault(run.engine, []).append(run)
    return [_fit(engine, machine, runs, known.get(engine)) for engine, runs in by_engine.items()]


def reported_network(report: dict[str, Any]) -> Network:
    """The link of a reported run."""
    net = report["net"]
    return Network(net["name"], float(net["delay_ms"]), float(net["mbit"] or "inf"))


def _read(path: Path) -> _Run:
    try:
        return _parse(json.loads(path.read_text()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): expected a pi.json, as run --out writes "
                         "it") from error
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no report of a run, or is damaged ({type(error).__name__}: {error}): expected a "
                         "pi.json, as run --out writes it") from error
    except ValueError as error:
        raise ValueError(f"invalid report {path}: {error}") from error


def _parse(report: dict[str, Any]) -> _Run:
    fixed, engine, network = number_format(report), find_engine(report["engine"]).name, reported_network(report)
    if fixed.truncation != "exact":
        raise ValueError("a run with local truncation, expected one with --truncation exact, whose rate is fitted too")
    if report["batch"] != 1:
        raise ValueError(f"a run with {report['batch']} images a query, expected one with --batch 1")
    graph = reported_graph(report)
    maskings = [_masking(with_masking(graph, name), fixed, figures) for name, figures in report["variants"].items()]
    return _Run(engine, network, fixed, maskings)


def _masking(graph: Graph, fixed: FixedPoint, figures: dict[str, Any]) -> _Masking:
    plan = units(lower(graph, fixed))
    seconds = [float(row["seconds"]) for row in figures["by_layer"] if row["kind"] != INPUT_OUTPUT]
    if len(seconds) != len(plan):
        raise ValueError(f"it measured {len(seconds)} units, expected the {len(plan)} of its bundle; run the bundle "
                         "again")
    return _Masking(graph, plan, seconds, float(figures["seconds"]["median"]))


def _fit(engine: str, machine: str, runs: Sequence[_Run], known: LocalRates | None) -> LocalRates:
    loopback = [masking for run in runs if not run.network.shaped for masking in run.maskings]
    if not loopback:
        raise ValueError(f"no run of {engine} on loopback, where the link takes no time: give its report too")
    rates = fit_rates(engine, machine, [unit for masking in loopback for unit in masking.units],
                      [seconds for masking in loopback for seconds in masking.unit_seconds])
    missing: list[float] = []
    rounds: list[int] = []
    for run in runs:
        for masking in run.maskings if run.network.shaped else ():
            found = estimate(masking.graph, run.fixed, [run.network])[engine]
            local = sum(rates.seconds(unit, run.fixed) for unit in masking.units)
            missing.append(masking.seconds - found["link_seconds"][run.network.name] - local)
            rounds.append(found["rounds"] or 0)
    if not missing and known is not None and known.machine == machine:
        return replace(rates, per_round=known.per_round)
    return replace(rates, per_round=fit_round(missing, rounds))
