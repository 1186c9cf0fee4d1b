"""The price of a bundle under each engine and network, in closed form: no engine needed, in less than a second.

SEMI2K and ABY3 counts are exact, to the byte (online part, weights cached, without the headers of input and output:
about 140 bytes, and twice that of three parties). CHEETAH counts are an estimate: its preprocessing comes in batches,
which are spread evenly here; see CHEETAH_ERROR. Seconds of the link are exact for these counts if every party sends as
much, as in SEMI2K; under ABY3 the busiest one was seen to send up to 10 % more. Seconds of computing follow from the
table of rates in `local.py`, which belongs to one machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from autorep.mpc.bundle.graph import Graph
from autorep.mpc.cost.aby3 import aby3_unit
from autorep.mpc.cost.cheetah import cheetah_unit_bytes
from autorep.mpc.cost.cheetah_setup import CORES, cheetah_setup
from autorep.mpc.cost.local import LocalRates, load_rates
from autorep.mpc.cost.offline import dealt_bytes, offline_counts
from autorep.mpc.cost.price import Price
from autorep.mpc.cost.semi2k import semi2k_unit
from autorep.mpc.engines import ENGINES, Engine, Network
from autorep.mpc.ring.fixed_point import WORD, FixedPoint
from autorep.mpc.ring.lowering import Program, lower
from autorep.mpc.ring.program import Unit, units
from autorep.mpc.tables import TITLES, critical_rounds, megabytes, table


def _semi2k(unit: Unit, fixed: FixedPoint) -> tuple[int, int]:
    sent, rounds = semi2k_unit(unit, fixed=fixed)
    return 2 * sent, rounds


# Protocol -> bytes that all parties send together for one unit and one image, and rounds (None: unknown).
_UNIT_PRICES: dict[str, Callable[[Unit, FixedPoint], tuple[int, int | None]]] = {
    "SEMI2K": _semi2k, "CHEETAH": lambda unit, fixed: (cheetah_unit_bytes(unit), None),
    "ABY3": lambda unit, fixed: aby3_unit(unit, fixed=fixed),
}


def input_output_bytes(program: Program, engine: Engine) -> int:
    """The shares of one image for every party but the client, and the shares of its logits from them [bytes]."""
    share = WORD * engine.components
    return (engine.parties - 1) * share * (prod(program.steps[0].in_shapes[0]) + prod(program.steps[-1].out_shape))


def estimate(graph: Graph, fixed: FixedPoint, networks: Sequence[Network]) -> dict[str, dict[str, Any]]:
    """Engine -> bytes (of all parties, one image), rounds, link seconds per network; bytes by kind, both by layer.

    `offline`, `offline_bytes`: what an image takes of a dealer's randomness before the query (see `offline.py`).
    `setup`, `setup_bytes`: what an engine without a dealer sends once a session (see `cheetah_setup.py`).
    `seconds` per network: those of the link, the local ones, and what each round takes beyond its delay.
    Rounds are None for an engine without a closed form for them; local seconds and `seconds`, without a table of rates.
    """
    program, rates = lower(graph, fixed), load_rates()
    plan = units(program)
    found = {}
    for name, engine in ENGINES.items():
        rows = []
        for unit in plan:
            num_bytes, rounds = _UNIT_PRICES[engine.protocol](unit, fixed)
            rows.append({"layer": unit.step.op.name, "kind": unit.price_kind, "messages": rounds, "bytes": num_bytes,
                         "offline": offline_counts(unit, fixed) if engine.opens_operands else {},
                         "local_seconds": rates[name].seconds(unit, fixed) if name in rates else None,
                         "beside": engine.lanes > 1 and unit.beside})
        setup = cheetah_setup(plan) if engine.protocol == "CHEETAH" else {}
        totals = _totals(program, engine, rows, networks)
        found[name] = totals | {"setup": setup, "setup_bytes": sum(setup.values()),
                                "seconds": {each.name: _seconds(totals, name, rates, each) for each in networks}}
    return found


def _seconds(totals: dict[str, Any], engine: str, rates: dict[str, LocalRates], network: Network) -> float | None:
    if engine not in rates:
        return None
    return Price(engine, network, rates=rates[engine]).of(totals["bytes"], totals["rounds"], totals["local_seconds"])


def _totals(program: Program, engine: Engine, rows: list[dict[str, Any]],
            networks: Sequence[Network]) -> dict[str, Any]:
    by_kind: dict[str, int] = defaultdict(int)
    offline: dict[str, int] = defaultdict(int)
    for row in rows:
        by_kind[row["kind"]] += row["bytes"]
        for kind, count in row["offline"].items():
            offline[kind] += count
    total = sum(by_kind.values()) + input_output_bytes(program, engine)
    counted = all(row["messages"] is not None for row in rows)
    rounds = critical_rounds(rows) + 2 if counted else None
    seconds = {network.name: Price(engine.name, network).of(total, rounds) for network in networks}
    local = [row["local_seconds"] for row in rows]
    return {"bytes": total, "rounds": rounds, "link_seconds": seconds,
            "local_seconds": None if None in local else sum(local), "relu_kept": program.num_kept,
            "layers_with_relu": program.layers_with_relu, "by_kind": dict(by_kind), "by_layer": rows,
            "offline": dict(offline), "offline_bytes": dealt_bytes(offline)}


def estimate_table(document: dict[str, dict[str, dict[str, Any]]], layers: bool) -> str:
    """One row per engine and masking; with `layers` also one per layer of the network as trained."""
    networks = list(next(iter(next(iter(document.values())).values()))["link_seconds"])
    rows = [("engine", "net", "ReLUs", "layers with ReLU", "MB", "rounds", "offline MB", "set-up MB", "local s",
             *(f"s on {name}" for name in networks))]
    for engine in ENGINES:
        for name, engines in document.items():
            found = engines[engine]
            rows.append((engine, TITLES[name], f"{found['relu_kept']:,}", str(found["layers_with_relu"]),
                         megabytes(found["bytes"]), "-" if found["rounds"] is None else str(found["rounds"]),
                         megabytes(found["offline_bytes"]) if found["offline"] else "-",
                         megabytes(found["setup_bytes"]) if found["setup"] else "-",
                         "-" if found["local_seconds"] is None else f"{found['local_seconds']:.2f}",
                         *(f"{s:.3f}" for s in found["link_seconds"].values())))
    text = table(rows) + ("\nOne image, all parties together, online. Seconds on a network are those of the link "
                          "alone; where rounds are unknown (-), without their delay. Local seconds are those that the "
                          "parties compute, on the machine whose rates are in autorep/mpc/cost/local_rates.json. "
                          "Offline MB are what a dealer would send before each query; an engine without one has none. "
                          f"Set-up MB are keys and the first oblivious transfers, once a session, with {CORES} cores.")
    if layers:
        counted = [engine for engine in ENGINES if document["trained"][engine]["rounds"] is not None]
        rows = [("layer (as trained)", "kind", *(f"{engine} bytes" for engine in ENGINES),
                 *(f"{engine} rounds" for engine in counted))]
        columns = [document["trained"][engine]["by_layer"] for engine in ENGINES]
        rows += [(row[0]["layer"], row[0]["kind"], *(f"{r['bytes']:,}" for r in row),
                  *(str(r["messages"]) for r, engine in zip(row, ENGINES, strict=True) if engine in counted))
                 for row in zip(*columns, strict=True) if any(r["bytes"] for r in row)]
        text += "\n\n" + table(rows)
    return text
