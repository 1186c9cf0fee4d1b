"""The report of a run: the document pi.json, and what is printed of it."""

from __future__ import annotations

import json
import os
from typing import Any

from autorep.mpc.bundle.files import load_graph
from autorep.mpc.bundle.graph import Graph, fingerprint
from autorep.mpc.engines import PLAIN_LINK, Network, find_engine
from autorep.mpc.parties.task import Task
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.tables import TITLES, kind_table, layer_table, megabytes, run_table

REPORT_VERSION = 2


def report_document(bundle: str, graph: Graph, network: Network, task: Task, load: float,
                    figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What pi.json holds.

    Args:
        bundle: its path as the user gave it.
        task: of any of the maskings that ran.
        load: of the computer before the run.
        figures: masking -> its figures, as `collect` gives them.
    """
    engine = find_engine(task.engine)
    link = {"name": network.name, "delay_ms": network.delay_ms, "mbit": network.mbit if network.shaped else None}
    return {
        "report_version": REPORT_VERSION, "bundle": bundle, "fingerprint": fingerprint(graph),
        "meta": graph.meta, "engine": engine.name, "protocol": engine.protocol, "ring_bits": 64,
        "fraction_bits": task.fixed.fraction_bits,
        "truncation_bits": task.fixed.truncation_bits, "truncation": task.fixed.truncation, "net": link,
        "batch": task.batch, "counts": engine.count_name, "trust": f"{engine.trust} {PLAIN_LINK}",
        "launcher_pid": os.getpid(),
        "host": {"cpus": num_cpus(), "load_before": load},
        "variants": figures,
    }


def number_format(document: dict[str, Any]) -> FixedPoint:
    """The fixed-point format of a reported run."""
    return FixedPoint(document["fraction_bits"], document["truncation_bits"] - document["fraction_bits"],
                      document.get("truncation", "exact"))  # before there was another


def reported_graph(document: dict[str, Any]) -> Graph:
    """The network of a reported run.

    Raises:
        ValueError: its bundle cannot be read, or is another one now. Reports without a fingerprint do not say.
    """
    graph = load_graph(document["bundle"])
    if document.get("fingerprint", fingerprint(graph)) != fingerprint(graph):
        raise ValueError(f"invalid bundle {document['bundle']}: expected the one that ran, but it was exported again "
                         "since; run it again")
    return graph


def num_cpus() -> int | None:
    """CPUs that this process may use; outside Linux those of the computer, None if even that is unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def print_report(document: dict[str, Any]) -> None:
    """Print the tables of a report, and a summary as the last line, in JSON."""
    figures, count_name = document["variants"], document["counts"]
    trained = figures["trained"]
    print(f"\nOne query of {document['batch']} image(s), online part; MB are what all parties send together.")
    print(run_table(figures, count_name))
    setup = trained["setup"]
    setup_mb = megabytes(sum(setup["sent"].values()))
    print(f"\nAs trained, by kind of operation (set-up apart: {setup['seconds']:.1f} s and {setup_mb} MB, with the "
          "warm-up query)")
    print(kind_table(trained, count_name))
    if trained["offline_bytes"]:
        print(f"\nBefore each query a dealer who is no party would send {megabytes(trained['offline_bytes'])} MB; here "
              "the server deals, and sends nothing")
    print(f"\nAs trained, by layer\n{layer_table(trained, count_name)}")
    print("\n" + "; ".join(f"{role} pid {pid} at {':'.join(map(str, trained['addresses'][role]))}"
                           for role, pid in trained["pids"].items()))
    print("The launching process compares with plaintext: it is no party, and reads the secrets of all.")
    print(f"TRUST: {document['trust']}")
    print(json.dumps(_summary(document)))


def _summary(document: dict[str, Any]) -> dict[str, Any]:
    short = {name: {"seconds": found["seconds"]["median"], "bytes": found["bytes"]["total"], "rounds": found["rounds"]}
             for name, found in document["variants"].items()}
    trained = document["variants"]["trained"]
    return {"engine": document["engine"], "net": document["net"]["name"], "agreement": trained["agreement"],
            "max_error": trained["max_error"], **{name: short.get(name) for name in TITLES}}
