"""The price of a network, taken apart: what each gate costs pixel by pixel, and what remains without the gates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from autorep.mpc.bundle.graph import Arrays, Graph
from autorep.mpc.bundle.ops import Shape
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.price import Price
from autorep.mpc.engines import ENGINES

# What replaces the dropped ReLUs of a channel.
IDENTITY, LINEAR, QUADRATIC = range(3)
_COEFFICIENTS = {IDENTITY: (0.0, 1.0, 0.0), LINEAR: (0.0, 0.5, 0.0), QUADRATIC: (0.0, 0.5, 0.25)}


@dataclass(frozen=True)
class GatePrices:
    """What one gate costs, in the unit of a `Price`: a sum over its pixels, and charges for what occurs in it at all.

    Args:
        kept: of a pixel that keeps its ReLU.
        dropped: of a pixel that became the identity, linear, quadratic.
        folds: whether a linear channel without any ReLU is free: it is folded into the layer before.
        kept_charge: once, if any pixel keeps its ReLU.
        dropped_charges: once, that of the costliest kind of dropped pixels.
        beside: only the larger of the two charges is due: the engine computes both kinds at once.
        computing: once, if any pixel keeps its ReLU, and if any does not, whatever is beside.
    """

    kept: float
    dropped: tuple[float, float, float]
    folds: bool
    kept_charge: float
    dropped_charges: tuple[float, float, float]
    beside: bool
    computing: tuple[float, float] = (0.0, 0.0)

    def charge(self, keeps: bool, costliest: int, drops: bool = True) -> float:
        """What is due once, for whether any ReLU is kept, the costliest kind of the others, and if there are any."""
        of_kept, of_dropped = self.kept_charge * keeps, self.dropped_charges[costliest]
        computing = self.computing[0] * keeps + self.computing[1] * drops
        return computing + (max(of_kept, of_dropped) if self.beside else of_kept + of_dropped)

    def of(self, mask_CP: np.ndarray, kind_C: np.ndarray) -> float:
        """The price of the gate with this mask, bool [C, P], and these kinds [C]."""
        dropped_C, has_relu_C = (~mask_CP).sum(1), mask_CP.any(1)
        if self.folds:
            kind_C = np.where((kind_C == LINEAR) & ~has_relu_C, IDENTITY, kind_C)
        costliest = int(kind_C[dropped_C > 0].max(initial=IDENTITY))
        pixels = self.kept * mask_CP.sum() + (np.array(self.dropped)[kind_C] * dropped_C).sum()
        return float(pixels + self.charge(bool(has_relu_C.any()), costliest, bool(dropped_C.any())))

    def uniform(self, num_pixels: int, kept: bool) -> float:
        """The price of a gate of so many pixels that keeps all its ReLUs, or is the identity."""
        return self.of(np.full((1, num_pixels), kept), np.full(1, IDENTITY))


def take_apart(graph: Graph, price: Price, names: Iterable[str]) -> tuple[float, dict[str, GatePrices]]:
    """What the network costs without the gates of these names, and the prices of each of them.

    Other gates of the graph, of activations that were not converted, are part of the first.

    Read off the estimates of programs in which all gates are in the same state, so that they are those of any engine.
    The sum over all is exactly the estimate, as long as polynomials have degree 2 at most.
    """
    shapes = graph.shapes
    gates = {name: shapes[name] for name in names}

    def estimated(kept: str, kind: int) -> dict:
        state = {key: array for name, shape in gates.items() for key, array in _state(name, shape, kept, kind).items()}
        return estimate(replace(graph, public=graph.public | state), price.fixed, ())[price.engine]

    def parts(kept: str, kind: int) -> dict[tuple[str, str], tuple[float, float]]:
        """(gate, "comparison" or "polynomial") -> price of its bytes, price of its rounds."""
        return {(row["layer"], row["kind"]): (price.of(row["bytes"], 0), price.of(0, row["messages"]))
                for row in estimated(kept, kind)["by_layer"] if row["layer"] in gates}

    free = estimated("none", IDENTITY)
    kept, linear, quadratic = parts("all", IDENTITY), parts("none", LINEAR), parts("none", QUADRATIC)
    unfolded = parts("one of each channel", LINEAR)
    found = {}
    for name, shape in gates.items():
        num, nothing = prod(shape), (0.0, 0.0)
        folds = linear.get((name, "polynomial"), nothing) == nothing
        num_linear = num - shape[0] if folds else num
        of_linear = (unfolded if folds else linear).get((name, "polynomial"), nothing)
        of_kept, of_quadratic = kept[name, "comparison"], quadratic[name, "polynomial"]
        link = GatePrices(
            of_kept[0] / num, (0.0, of_linear[0] / max(1, num_linear), of_quadratic[0] / num), folds,
            of_kept[1], (0.0, of_linear[1], of_quadratic[1]), beside=ENGINES[price.engine].lanes > 1)
        found[name] = _with_computing(link, price, num)
    whole = price.of(free["bytes"], free["rounds"], free["local_seconds"])
    return whole - sum(gate.uniform(prod(gates[name]), kept=False) for name, gate in found.items()), found


def _with_computing(link: GatePrices, price: Price, num_pixels: int) -> GatePrices:
    if price.rates is None:
        return link
    kept, dropped, computing = price.rates.of_gate(num_pixels, price.fixed)
    dropped = tuple(np.add(link.dropped, dropped).tolist())
    return replace(link, kept=link.kept + kept, dropped=dropped, computing=computing)


def _state(name: str, shape: Shape, kept: str, kind: int) -> Arrays:
    """The public arrays of a gate of one kind that keeps all, none, or the first pixel of each channel."""
    mask = np.full(shape, kept == "all")
    if kept == "one of each channel":
        mask.reshape(shape[0], -1)[:, 0] = True
    return {f"{name}/mask": mask, f"{name}/coefficients": np.tile(_COEFFICIENTS[kind], (shape[0], 1))}
