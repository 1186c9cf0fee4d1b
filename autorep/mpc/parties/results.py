"""The figures of one network under one engine, from what its parties left."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from autorep.mpc.bundle.files import load_weights
from autorep.mpc.bundle.graph import Graph, Samples
from autorep.mpc.bundle.interpreter import logits_float
from autorep.mpc.cost.offline import dealt_bytes, offline_counts
from autorep.mpc.engines import Engine, find_engine
from autorep.mpc.parties.meter import Traffic, parse_profile
from autorep.mpc.parties.task import Task
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import COMPARING, Unit, units
from autorep.mpc.tables import critical_rounds

INPUT_OUTPUT = "input and output"


def collect(task: Task, graph: Graph, samples: Samples) -> dict[str, Any]:
    """The figures of a finished run; `graph` has the masking that ran.

    Seconds are those of one query as the client sees it. Bytes are those of one query (the median one), as each party
    sends them, without the framing of TCP/IP. The comparison with plaintext is made here, in the launching process.

    Raises:
        ValueError: an engine's profile does not hold the executions that its party recorded.
    """
    program, engine = lower(graph, task.fixed), find_engine(task.engine)
    plan = units(program)
    records = {role: json.loads((Path(task.out) / role / "record.json").read_text()) for role in engine.roles}
    profiles = {role: recorded_profile(task, role, record) for role, record in records.items()}
    queries = {role: per_query(profile, len(plan)) for role, profile in profiles.items()}
    middle = sorted(range(1, task.queries + 1), key=lambda i: sum(t.sent for query in queries.values()
                                                                  for t in query[i]))[task.queries // 2]
    client, seconds = records["client"], np.median(records["server"]["unit_seconds"][1:], axis=0)
    rows = unit_rows(plan, {role: query[middle] for role, query in queries.items()}, seconds, engine)
    rows.append({"layer": INPUT_OUTPUT, "kind": INPUT_OUTPUT, "seconds": 0.0, "messages": 2, "beside": False,
                 "sent": {role: record["channel_sent"][-1] for role, record in records.items()}})
    return {
        "relu_kept": program.num_kept, "layers_with_relu": program.layers_with_relu,
        "seconds": {"median": statistics.median(client["seconds"]), "min": min(client["seconds"]),
                    "max": max(client["seconds"]), "all": client["seconds"]},
        "bytes": _sent(rows), "rounds": critical_rounds(rows),
        "setup": {"seconds": client["setup_seconds"],
                  "sent": {role: _setup_bytes(records[role], profiles[role], queries[role][0]) for role in records}},
        "offline_bytes": _offline_bytes(task, plan), "by_kind": _by_kind(rows), "by_layer": rows,
        **_correctness(task, graph, samples),
        "pids": {role: record["pid"] for role, record in records.items()},
        "addresses": {role: record["address"] for role, record in records.items()}, "versions": client["versions"],
    }


def recorded_profile(task: Task, role: str, record: dict) -> list[tuple[str, Traffic]]:
    """What a party's engine logged. Raises ValueError if that is not what the party recorded."""
    profile = parse_profile(Path(task.out) / role / "engine.log")
    if [name for name, _ in profile] != record["executions"]:
        raise ValueError(f"invalid profile of {len(profile)} executions: expected the {len(record['executions'])} that "
                         f"the {role} recorded; use the pinned version of spu")
    return profile


def _offline_bytes(task: Task, plan: tuple[Unit, ...]) -> int:
    """What a dealer who is no party would send before each query, in closed form; 0 under an engine without one."""
    if not find_engine(task.engine).opens_operands:
        return 0
    return task.batch * sum(dealt_bytes(offline_counts(unit, task.fixed)) for unit in plan)


def _setup_bytes(record: dict, profile: list[tuple[str, Traffic]], warm_up: list[Traffic]) -> int:
    of_engine = [traffic for name, traffic in profile if name == "cache"] + warm_up
    return record["setup_sent"] + record["channel_sent"][0] + sum(traffic.sent for traffic in of_engine)


def per_query(profile: list[tuple[str, Traffic]], num_units: int) -> list[list[Traffic]]:
    """[query][unit]: a query begins where the index of the unit does not grow.

        profile    cache    unit0 unit1 unit2    unit0 unit2       unit0 unit2
        query               0, the warm-up       1 (1 as in 0)     2 (1 as in 0)

    Units that ran side by side left no profile, so they take that of the warm-up, in which all ran alone. Local units
    never leave one: they send nothing.
    """
    queries: list[dict[int, Traffic]] = []
    last = num_units
    for name, traffic in profile:
        if name.startswith("unit"):
            index = int(name.removeprefix("unit"))
            if index <= last:
                queries.append({})
            queries[-1][index] = traffic
            last = index
    return [[query.get(i, queries[0].get(i, Traffic())) for i in range(num_units)] for query in queries]


def unit_rows(plan: tuple[Unit, ...], traffic: dict[str, list[Traffic]], seconds: np.ndarray,
              engine: Engine) -> list[dict[str, Any]]:
    """The figures of each unit, for the traffic of every role, by unit."""
    return [{"layer": unit.step.op.name, "kind": unit.price_kind, "seconds": float(seconds[i]),
             "messages": _rounds(unit, {role: each[i] for role, each in traffic.items()}),
             "sent": {role: each[i].sent for role, each in traffic.items()},
             "beside": engine.lanes > 1 and unit.beside}
            for i, unit in enumerate(plan)]


def _rounds(unit: Unit, traffic: dict[str, Traffic]) -> int:
    """Messages that follow one another: as many as the party that sends most of them sends.

    Except in a comparison of three parties. It ends with oblivious transfers, whose senders have two messages each that
    they send at once. The client is no sender there. Polynomials of degree 3 or more may have a round or two more: who
    sends most in a truncation of three parties is drawn by lot.
    """
    if len(traffic) == 3 and unit.part in COMPARING:
        return traffic["client"].sent_actions
    return max(each.sent_actions for each in traffic.values())


def _sent(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Role -> bytes that it sent; "total": of all of them."""
    found = {role: sum(row["sent"][role] for row in rows) for role in rows[0]["sent"]}
    return {**found, "total": sum(found.values())}


def _by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["kind"]].append(row)
    return {kind: {"bytes": _sent(found)["total"], "messages": sum(r["messages"] for r in found),
                   "seconds": sum(r["seconds"] for r in found)} for kind, found in groups.items()}


def _correctness(task: Task, graph: Graph, samples: Samples) -> dict[str, Any]:
    logits = np.load(Path(task.out) / "client" / "logits.npy").reshape(-1, graph.shapes[graph.output_name][0])
    asked = [i for query in range(task.queries) for i in task.image_indices(query)]
    # Queries go around in a circle: 3 images in queries of 2 ask about 0 1, 2 0. The first answer for an image counts.
    indices = sorted(set(asked))
    logits = logits[[asked.index(i) for i in indices]]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = logits_float(graph, load_weights(task.bundle, graph), samples.images[indices])
    labels, error = samples.labels[indices], np.abs(logits - expected)
    top, expected_top = logits.argmax(1), expected.argmax(1)
    missed = np.flatnonzero(top != expected_top)
    margin = expected[missed, expected_top[missed]] - expected[missed, top[missed]]
    known = labels >= 0
    return {"images": len(indices), "agreement": float(np.mean(top == expected_top)),
            # None: the plaintext logits are not finite, as can happen to a network that lost its ReLUs untrained.
            "max_error": float(error.max()) if np.isfinite(error).all() else None,
            "missed_by": margin.tolist(),  # for every disagreement: how far apart the two logits are in plaintext
            "accuracy": float(np.mean(top == labels)) if known.all() else None,
            "plaintext_accuracy": float(np.mean(expected_top == labels)) if known.all() else None}
