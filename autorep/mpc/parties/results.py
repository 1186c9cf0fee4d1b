"""The figures of one network under one engine, from what both parties left."""

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
from autorep.mpc.engines import find_engine
from autorep.mpc.parties.meter import Traffic, parse_profile
from autorep.mpc.parties.task import Task
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import Unit, units
from autorep.mpc.tables import critical_rounds

INPUT_OUTPUT = "input and output"


def collect(task: Task, graph: Graph, samples: Samples) -> dict[str, Any]:
    """The figures of a finished run; `graph` has the masking that ran.

    Seconds are those of one query as the client sees it. Bytes are those of one query (the median one), in each
    direction, without the framing of TCP/IP. The comparison with plaintext is made here, in the launching process.

    Raises:
        ValueError: the engine's profile does not hold the executions that the server recorded.
    """
    out, program = Path(task.out), lower(graph, task.fixed)
    server, client = (json.loads((out / role / "record.json").read_text()) for role in ("server", "client"))
    plan = units(program)
    profile = parse_profile(out / "server" / "engine.log")
    if [name for name, _ in profile] != server["executions"]:
        raise ValueError(f"invalid profile of {len(profile)} executions: expected the {len(server['executions'])} that "
                         "the server recorded; use the pinned version of spu")
    queries = _per_query(profile, len(plan))
    middle = sorted(queries[1:], key=lambda q: sum(t.sent + t.received for t in q))[task.queries // 2]
    seconds = np.median(server["unit_seconds"][1:], axis=0)
    rows = _rows(plan, middle, seconds, find_engine(task.engine).lanes)
    setup_engine = [t for name, t in profile if name == "cache"] + queries[0]
    rows.append({"layer": INPUT_OUTPUT, "kind": INPUT_OUTPUT, "seconds": 0.0, "messages": 2, "beside": False,
                 "server_to_client": server["channel_sent"][-1], "client_to_server": client["channel_sent"][-1]})
    return {
        "relu_kept": program.num_kept, "layers_with_relu": program.layers_with_relu,
        "seconds": {"median": statistics.median(client["seconds"]), "min": min(client["seconds"]),
                    "max": max(client["seconds"]), "all": client["seconds"]},
        "bytes": _directions(rows), "rounds": critical_rounds(rows),
        "setup": {"seconds": client["setup_seconds"],
                  "server_to_client": _setup_bytes(server) + sum(t.sent for t in setup_engine),
                  "client_to_server": _setup_bytes(client) + sum(t.received for t in setup_engine)},
        "offline_bytes": _offline_bytes(task, plan), "by_kind": _by_kind(rows), "by_layer": rows,
        **_correctness(task, graph, samples),
        "pids": {"server": server["pid"], "client": client["pid"]},
        "addresses": {"server": server["address"], "client": client["address"]}, "versions": client["versions"],
    }


def _offline_bytes(task: Task, plan: tuple[Unit, ...]) -> int:
    """What a dealer who is no party would send before each query, in closed form; 0 under an engine without one."""
    if not find_engine(task.engine).opens_operands:
        return 0
    return task.batch * sum(dealt_bytes(offline_counts(unit, task.fixed)) for unit in plan)


def _setup_bytes(record: dict) -> int:
    return record["setup_sent"] + record["channel_sent"][0]


def _per_query(profile: list[tuple[str, Traffic]], num_units: int) -> list[list[Traffic]]:
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


def _rows(plan: tuple[Unit, ...], traffic: list[Traffic], seconds: np.ndarray, lanes: int) -> list[dict[str, Any]]:
    return [{"layer": unit.step.op.name, "kind": unit.price_kind, "seconds": float(s),
             "messages": max(t.sent_actions, t.received_actions), "server_to_client": t.sent,
             "client_to_server": t.received, "beside": lanes > 1 and unit.beside}
            for unit, t, s in zip(plan, traffic, seconds, strict=True)]


def _directions(rows: list[dict[str, Any]]) -> dict[str, int]:
    found = {way: sum(row[way] for row in rows) for way in ("server_to_client", "client_to_server")}
    return {**found, "total": sum(found.values())}


def _by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["kind"]].append(row)
    return {kind: {"bytes": _directions(found)["total"], "messages": sum(r["messages"] for r in found),
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
