"""How fast a machine computes, and waits, under each engine: a table of rates from the reports of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autorep.mpc.bundle.files import load_graph
from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.local import LocalRates, fit_rates, fit_round
from autorep.mpc.engines import Network
from autorep.mpc.parties.report import number_format
from autorep.mpc.parties.results import INPUT_OUTPUT
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import Unit, units

_NEEDED = ("bundle", "engine", "batch", "variants")


def fit_reports(machine: str, paths: Sequence[Path]) -> list[LocalRates]:
    """The rates of every engine with a run on loopback; runs on other links add what a round takes beyond its delay.

    Args:
        machine: what the table calls this machine.
        paths: of reports, as `run --out` writes them.

    Raises:
        ValueError: one is no report, or has local truncation or several images a query; or an engine has no run on
            loopback.
    """
    by_engine: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        report = _read(path)
        by_engine.setdefault(report["engine"], []).append(report)
    return [_fit(engine, machine, reports) for engine, reports in by_engine.items()]


def reported_network(report: dict[str, Any]) -> Network:
    """The link of a reported run."""
    net = report["net"]
    return Network(net["name"], net["delay_ms"], net["mbit"] or float("inf"))


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        fixed, *_ = number_format(report), reported_network(report), *(report[key] for key in _NEEDED)
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no report of a run, or is damaged ({type(error).__name__}: {error}): expected a "
                         "pi.json, as run --out writes it") from error
    if fixed.truncation != "exact":
        raise ValueError(f"{path} is a run with local truncation: expected one with --truncation exact, whose rate is "
                         "fitted too")
    if report["batch"] != 1:
        raise ValueError(f"{path} is a run with {report['batch']} images a query: expected one with --batch 1")
    return report


def _fit(engine: str, machine: str, reports: Sequence[dict[str, Any]]) -> LocalRates:
    loopback = [report for report in reports if not reported_network(report).shaped]
    if not loopback:
        raise ValueError(f"no run of {engine} on loopback, where the link takes no time: give its report too")
    plan: list[Unit] = []
    seconds: list[float] = []
    for report in loopback:
        for graph, figures in _maskings(report):
            plan += units(lower(graph, number_format(report)))
            seconds += [row["seconds"] for row in figures["by_layer"] if row["kind"] != INPUT_OUTPUT]
    rates = fit_rates(engine, machine, plan, seconds)
    missing: list[float] = []
    rounds: list[int] = []
    for report in reports:
        if (network := reported_network(report)).shaped:
            for graph, figures in _maskings(report):
                fixed = number_format(report)
                found = estimate(graph, fixed, [network])[engine]
                local = sum(rates.seconds(unit, fixed) for unit in units(lower(graph, fixed)))
                missing.append(figures["seconds"]["median"] - found["link_seconds"][network.name] - local)
                rounds.append(found["rounds"] or 0)
    return LocalRates(engine, machine, rates.seconds_per, fit_round(missing, rounds))


def _maskings(report: dict[str, Any]) -> Iterator[tuple[Graph, dict[str, Any]]]:
    graph = load_graph(report["bundle"])
    for masking, figures in report["variants"].items():
        yield with_masking(graph, masking), figures
