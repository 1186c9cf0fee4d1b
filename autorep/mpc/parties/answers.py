"""What a client alone knows of a session: the answers, and what its own party measured."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.engines import find_engine
from autorep.mpc.parties.meter import Traffic
from autorep.mpc.parties.results import per_query, recorded_profile, unit_rows
from autorep.mpc.parties.task import Task
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import units
from autorep.mpc.tables import critical_rounds


@dataclass(frozen=True)
class Answers:
    """What a session gave.

    Args:
        logits: [N, classes].
        seconds: of the median query; num_bytes: of one query, in both directions, without the framing of TCP and TLS.
        setup_seconds, setup_bytes: until the end of the warm-up query.
    """

    engine: str
    logits: np.ndarray
    seconds: float
    num_bytes: int
    rounds: int
    setup_seconds: float
    setup_bytes: int


def collect_answers(task: Task, graph: Graph) -> Answers:
    """The answers that the client's party left in `task.out`. Raises ValueError if its profile is incomplete."""
    folder, plan = Path(task.out) / "client", units(lower(graph, task.fixed))
    record = json.loads((folder / "record.json").read_text())
    profile = recorded_profile(task, "client", record)
    warm_up, *queries = per_query(profile, len(plan))
    query = sorted(queries, key=_total)[len(queries) // 2]
    setup = [traffic for name, traffic in profile if name == "cache"] + warm_up
    of_server = [Traffic(t.received, t.sent, t.received_actions, t.sent_actions) for t in query]
    rows = unit_rows(plan, {"server": of_server, "client": query}, np.zeros(len(plan)), find_engine(task.engine))
    logits = np.load(folder / "logits.npy").reshape(-1, *graph.shapes[graph.output_name])
    sent, received = record["channel_sent"], record["channel_received"]
    return Answers(
        engine=task.engine, logits=logits[:task.images], seconds=statistics.median(record["seconds"]),
        num_bytes=_total(query) + sent[-1] + received[-1],
        rounds=critical_rounds(rows) + 2,  # the shares of the images and of the logits
        setup_seconds=record["setup_seconds"],
        setup_bytes=_total(setup) + record["setup_sent"] + sent[0] + record["setup_received"] + received[0])


def _total(traffic: list[Traffic]) -> int:
    return sum(t.sent + t.received for t in traffic)
