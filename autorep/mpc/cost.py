"""What a bundle costs under each engine and network, in closed form: no engine needed, under a second.

SEMI2K counts are exact, to the byte (online part, weights cached, without the headers of input and output: about 140
bytes). CHEETAH counts are an estimate: its preprocessing comes in batches, which are spread evenly here; see
CHEETAH_ERROR. Seconds are the link's alone, without computing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

from autorep.mpc.bundle import Graph
from autorep.mpc.cheetah_cost import cheetah_unit_bytes
from autorep.mpc.engines import ENGINES, Network
from autorep.mpc.lowering import Program, Step, lower
from autorep.mpc.report import TITLES, critical_rounds, megabytes, table
from autorep.mpc.ring import FixedPoint
from autorep.mpc.ring_parameters import conv_form
from autorep.mpc.ring_program import Unit, units
from autorep.mpc.windows import out_size

WORD = 8  # bytes of a ring element
# SEMI2K on a 64-bit ring, bytes each party sends per element, and rounds.
COMPARISON, COMPARISON_ROUNDS = 72, 8
PRODUCT = 2 * WORD
Cost = tuple[int, int]


def semi2k_unit(unit: Unit, batch: int = 1, fixed: FixedPoint | None = None) -> Cost:
    """(bytes that each party sends, rounds) of one unit for `batch` images."""
    elements, rounds = _SEMI2K.get(unit.part, _nothing)(unit.step, _truncation(fixed or FixedPoint()))
    return batch * elements, rounds


def _truncation(fixed: FixedPoint) -> int:
    """Bytes that each party sends per truncated element: what is dropped, as one 32-bit word if it fits."""
    return WORD // 2 if fixed.truncation_bits <= 32 else WORD


def _nothing(step: Step, truncation: int) -> Cost:
    return 0, 0


def _conv(step: Step, truncation: int) -> Cost:
    op, (channels, height, width) = step.op, step.in_shapes[0]
    top, bottom, left, right = op.attrs["padding"]
    padded = (height + top + bottom, width + left + right)
    seen = prod(padded)
    if conv_form(step, opens_operands=True) == "columns":
        seen = prod(op.attrs["kernel"]) * prod(out_size(op, *padded))
    return channels * seen * WORD + prod(step.out_shape) * truncation, op.attrs["groups"][0] + 1


def _linear(step: Step, truncation: int) -> Cost:
    return prod(step.in_shapes[0]) * WORD + prod(step.out_shape) * truncation, 2


def _kept(step: Step, truncation: int) -> Cost:
    return len(step.gate.kept) * COMPARISON, COMPARISON_ROUNDS


def _dropped(step: Step, truncation: int) -> Cost:
    sizes = {degree: len(pixels) for degree, pixels in step.gate.polynomial.items()}
    count = sum(n * ((d - 1) * PRODUCT + max(1, d - 1) * truncation) for d, n in sizes.items())
    return count, sum((d - 1) + max(0, d - 2) for d in sizes) + bool(sizes)


def _product(step: Step, truncation: int) -> Cost:
    return prod(step.out_shape) * (PRODUCT + truncation), 2


def _affine(step: Step, truncation: int) -> Cost:
    return prod(step.out_shape) * (WORD + truncation), 2  # the scale was opened once, as other weights


def _avg_pool(step: Step, truncation: int) -> Cost:
    return (prod(step.out_shape) * truncation, 1) if step.divide else (0, 0)


def _max_pool(step: Step, truncation: int) -> Cost:
    taps = prod(step.op.attrs["kernel"])
    return prod(step.out_shape) * (taps - 1) * COMPARISON, (taps - 1).bit_length() * COMPARISON_ROUNDS


_SEMI2K: dict[str, Callable[[Step, int], Cost]] = {
    "conv": _conv, "linear": _linear, "affine": _affine, "mul": _product, "kept": _kept, "dropped": _dropped,
    "avg_pool": _avg_pool, "max_pool": _max_pool,
}


def input_output_bytes(program: Program) -> int:
    """Ring elements of one image and its logits, as shares on the wire [bytes, both directions]."""
    return WORD * (prod(program.steps[0].in_shapes[0]) + prod(program.steps[-1].out_shape))


def estimate(graph: Graph, fixed: FixedPoint, networks: Sequence[Network]) -> dict[str, dict[str, Any]]:
    """Engine -> bytes (both directions, one image), rounds, link seconds per network, the same by kind and layer.

    Rounds are None for engines whose count is no closed form.
    """
    program = lower(graph, fixed)
    found = {}
    for name, engine in ENGINES.items():
        rows = []
        for unit in units(program):
            sent, rounds = semi2k_unit(unit, fixed=fixed) if engine.opens_operands else (0, None)
            rows.append({"layer": unit.step.op.name, "kind": unit.cost_kind, "messages": rounds,
                         "bytes": 2 * sent if engine.opens_operands else cheetah_unit_bytes(unit),
                         "beside": engine.lanes > 1 and unit.beside})
        found[name] = _totals(program, rows, networks)
    return found


def _totals(program: Program, rows: list[dict[str, Any]], networks: Sequence[Network]) -> dict[str, Any]:
    by_kind: dict[str, int] = defaultdict(int)
    for row in rows:
        by_kind[row["kind"]] += row["bytes"]
    total = sum(by_kind.values()) + input_output_bytes(program)
    counted = all(row["messages"] is not None for row in rows)
    rounds = critical_rounds(rows) + 2 if counted else None
    seconds = {n.name: (rounds or 0) * n.delay_ms / 1e3 + ceil(total / 2) * 8 / (n.mbit * 1e6) for n in networks}
    return {"bytes": total, "rounds": rounds, "link_seconds": seconds, "relu_kept": program.num_kept,
            "layers_with_relu": program.layers_with_relu, "by_kind": dict(by_kind), "by_layer": rows}


def estimate_table(document: dict[str, dict[str, dict[str, Any]]], layers: bool) -> str:
    """One row per engine and variant; with `layers` also one per layer of the trained net."""
    networks = list(next(iter(next(iter(document.values())).values()))["link_seconds"])
    rows = [("engine", "net", "ReLUs", "layers with ReLU", "MB", "rounds", *(f"s on {name}" for name in networks))]
    for engine in ENGINES:
        for name, engines in document.items():
            found = engines[engine]
            rows.append((engine, TITLES[name], f"{found['relu_kept']:,}", str(found["layers_with_relu"]),
                         megabytes(found["bytes"]), "-" if found["rounds"] is None else str(found["rounds"]),
                         *(f"{s:.3f}" for s in found["link_seconds"].values())))
    text = table(rows) + ("\nOne image, both directions, online. Seconds are the link's alone, computing comes on top; "
                          "where rounds are not known (-), the delay that they add is not in.")
    if layers:
        rows = [("layer (as trained)", "kind", *(f"{engine} bytes" for engine in ENGINES), "rounds")]
        columns = [document["trained"][engine]["by_layer"] for engine in ENGINES]
        rows += [(row[0]["layer"], row[0]["kind"], *(f"{r['bytes']:,}" for r in row), str(row[0]["messages"]))
                 for row in zip(*columns, strict=True) if any(r["bytes"] for r in row)]
        text += "\n\n" + table(rows)
    return text
