"""The price of a bundle under each engine and network, in closed form: no engine needed, in less than a second.

SEMI2K counts are exact, to the byte (online part, weights cached, without the headers of input and output: about 140
bytes). CHEETAH counts are an estimate: its preprocessing comes in batches, which are spread evenly here; see
CHEETAH_ERROR. Seconds of the link are exact for these counts. Seconds of computing follow from the table of rates in
`local.py`, which belongs to one machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.cost.cheetah import cheetah_unit_bytes
from autorep.mpc.cost.local import load_rates
from autorep.mpc.cost.offline import dealt_bytes, offline_counts
from autorep.mpc.cost.semi2k import WORD, semi2k_unit
from autorep.mpc.engines import ENGINES, Network
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import Program, lower
from autorep.mpc.ring.program import units
from autorep.mpc.tables import TITLES, critical_rounds, megabytes, table


def input_output_bytes(program: Program) -> int:
    """The shares of one image and of its logits on the link [bytes, both directions]."""
    return WORD * (prod(program.steps[0].in_shapes[0]) + prod(program.steps[-1].out_shape))


def estimate(graph: Graph, fixed: FixedPoint, networks: Sequence[Network]) -> dict[str, dict[str, Any]]:
    """Engine -> bytes (both directions, one image), rounds, link seconds per network; bytes by kind, both by layer.

    `offline`, `offline_bytes`: what an image takes of a dealer's randomness before the query (see `offline.py`).
    Rounds are None for an engine without a closed form for them, local seconds for one without a table of rates.
    """
    program, rates = lower(graph, fixed), load_rates()
    found = {}
    for name, engine in ENGINES.items():
        rows = []
        for unit in units(program):
            sent, rounds = semi2k_unit(unit, fixed=fixed) if engine.opens_operands else (0, None)
            rows.append({"layer": unit.step.op.name, "kind": unit.price_kind, "messages": rounds,
                         "offline": offline_counts(unit, fixed) if engine.opens_operands else {},
                         "bytes": 2 * sent if engine.opens_operands else cheetah_unit_bytes(unit),
                         "local_seconds": rates[name].seconds(unit) if name in rates else None,
                         "beside": engine.lanes > 1 and unit.beside})
        found[name] = _totals(program, rows, networks)
    return found


def _totals(program: Program, rows: list[dict[str, Any]], networks: Sequence[Network]) -> dict[str, Any]:
    by_kind: dict[str, int] = defaultdict(int)
    offline: dict[str, int] = defaultdict(int)
    for row in rows:
        by_kind[row["kind"]] += row["bytes"]
        for kind, count in row["offline"].items():
            offline[kind] += count
    total = sum(by_kind.values()) + input_output_bytes(program)
    counted = all(row["messages"] is not None for row in rows)
    rounds = critical_rounds(rows) + 2 if counted else None
    seconds = {n.name: (rounds or 0) * n.delay_ms / 1e3 + ceil(total / 2) * 8 / (n.mbit * 1e6) for n in networks}
    local = [row["local_seconds"] for row in rows]
    return {"bytes": total, "rounds": rounds, "link_seconds": seconds,
            "local_seconds": None if None in local else sum(local), "relu_kept": program.num_kept,
            "layers_with_relu": program.layers_with_relu, "by_kind": dict(by_kind), "by_layer": rows,
            "offline": dict(offline), "offline_bytes": dealt_bytes(offline)}


def estimate_table(document: dict[str, dict[str, dict[str, Any]]], layers: bool) -> str:
    """One row per engine and masking; with `layers` also one per layer of the network as trained."""
    networks = list(next(iter(next(iter(document.values())).values()))["link_seconds"])
    rows = [("engine", "net", "ReLUs", "layers with ReLU", "MB", "rounds", "offline MB", "local s",
             *(f"s on {name}" for name in networks))]
    for engine in ENGINES:
        for name, engines in document.items():
            found = engines[engine]
            rows.append((engine, TITLES[name], f"{found['relu_kept']:,}", str(found["layers_with_relu"]),
                         megabytes(found["bytes"]), "-" if found["rounds"] is None else str(found["rounds"]),
                         megabytes(found["offline_bytes"]) if found["offline"] else "-",
                         "-" if found["local_seconds"] is None else f"{found['local_seconds']:.2f}",
                         *(f"{s:.3f}" for s in found["link_seconds"].values())))
    text = table(rows) + ("\nOne image, both directions, online. Seconds on a network are those of the link alone; "
                          "where rounds are unknown (-), without their delay. Local seconds are those that both "
                          "parties compute, on the machine whose rates are in autorep/mpc/cost/local_rates.json. "
                          "Offline MB are what a dealer would send before each query; an engine without one has none.")
    if layers:
        rows = [("layer (as trained)", "kind", *(f"{engine} bytes" for engine in ENGINES), "rounds")]
        columns = [document["trained"][engine]["by_layer"] for engine in ENGINES]
        rows += [(row[0]["layer"], row[0]["kind"], *(f"{r['bytes']:,}" for r in row), str(row[0]["messages"]))
                 for row in zip(*columns, strict=True) if any(r["bytes"] for r in row)]
        text += "\n\n" + table(rows)
    return text
