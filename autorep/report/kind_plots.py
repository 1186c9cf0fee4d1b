"""What every layer became: ReLUs, quadratics, lines and the identity, as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from autorep.gates.gated_relu import GatedReLU
from autorep.mpc.cost.gate_prices import IDENTITY, LINEAR, QUADRATIC
from autorep.report.picture import Omitted, Picture, canvas, finish, tidy
from autorep.report.runs import Run
from autorep.search.kinds import kinds_of

# The palette of Okabe and Ito, from what costs most to what is free.
_PARTS = (("ReLU", "#D55E00"), ("quadratic", "#009E73"), ("linear", "#56B4E9"), ("identity", "#DDDDDD"))
_KINDS = {"quadratic": QUADRATIC, "linear": LINEAR, "identity": IDENTITY}


def shares_of(gate: GatedReLU) -> dict[str, float]:
    """The share of a gate's pixels [percent] that is a ReLU, quadratic (or of higher degree), linear, the identity."""
    dropped_C = (~gate.mask).reshape(len(gate.mask), -1).sum(1)
    kind_C = kinds_of(gate)
    found = {name: 100 * float(dropped_C[kind_C == kind].sum()) / gate.num_total for name, kind in _KINDS.items()}
    return {"ReLU": 100 * gate.num_kept / gate.num_total, **found}


def draw_kinds(axes, gates: Mapping[str, GatedReLU]) -> None:
    """Draw one bar a layer, the first layer on top."""
    shares = [shares_of(gate) for gate in gates.values()]
    left = torch.zeros(len(shares))
    for name, colour in _PARTS:
        width = torch.tensor([share[name] for share in shares])
        axes.barh(list(gates), width, left=left, color=colour, label=name, height=0.85)
        left = left + width
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("pixels of the layer [%]")
    tidy(axes)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)


def kinds_per_layer(run: Run) -> Picture:
    """What every layer of a run became.

    Raises:
        Omitted: there are no gates.
    """
    if not run.gates:
        raise Omitted("What every layer became: there is no checkpoint.")
    figure = canvas(10.0, 1.4 + 0.27 * len(run.gates))
    axes = figure.subplots()
    draw_kinds(axes, run.gates)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return finish(figure, "kinds", "What every layer became", f"Step {run.step:,}; layers in the order of the network. "
                  "Only a layer without any orange saves the rounds of its comparisons.")
