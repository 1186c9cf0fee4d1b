"""The price of one image under secure computation for the current masks of a network: closed form, traced once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autorep.gates.gated_relu import GatedReLU
from autorep.gates.polynomial_sigmoid import iter_fitted
from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.engines import parse_network
from autorep.mpc.ring.fixed_point import FixedPoint

_NETWORKS = ("lan", "wan")
_SHORT = ("bytes", "rounds", "link_seconds")


class TracedPrices:
    """The operations of a model, whose prices follow the current masks and coefficients of its gates.

    Raises:
        ValueError: the model cannot be traced by torch.fx, or computes what private inference does not know.
    """

    def __init__(self, model: nn.Module, example_NCHW: Tensor) -> None:
        from autorep.mpc.export.trace import trace_model  # here, because torchvision takes seconds

        traced = trace_model(model, example_NCHW)
        self.graph = Graph("input", tuple(example_NCHW.shape[1:]), traced.ops, traced.public, {})
        modules = dict(iter_fitted(model))
        self._fitted = {name: modules[path] for name, path in traced.gate_names.items()}
        self.gates = {name: each for name, each in self._fitted.items() if isinstance(each, GatedReLU)}

    def now(self, maskings: Iterable[str] = ("trained",)) -> dict[str, dict[str, dict[str, Any]]]:
        """Masking ("all_relu", "trained", "no_relu") -> engine -> what `estimate` returns."""
        from autorep.mpc.export.converters import public_arrays

        moved = {f"{name}/{key}": array for name, each in self._fitted.items()
                 for key, array in public_arrays(each).items()}
        graph = replace(self.graph, public=self.graph.public | moved)
        networks = [parse_network(name) for name in _NETWORKS]
        return {name: estimate(with_masking(graph, name), FixedPoint(), networks) for name in maskings}

    def metrics(self) -> dict[str, float]:
        """The prices as numbers to log: "mpc/ENGINE/bytes", ".../rounds" where they are known, ".../lan_seconds"."""
        found = {}
        for engine, price in in_short(self.now()).items():
            seconds = {f"{net}_seconds": value for net, value in price.pop("link_seconds").items()}
            found |= {f"mpc/{engine}/{key}": value for key, value in (price | seconds).items() if value is not None}
        return found


def in_short(prices: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Engine -> bytes (both directions), rounds and link seconds of the network as trained."""
    return {engine: {key: found[key] for key in _SHORT} for engine, found in prices["trained"].items()}


def trace_prices(model: nn.Module) -> TracedPrices | None:
    """Trace a model made by `build_model`. If private inference cannot run it, print the reason and return None."""
    parameter = next(model.parameters())
    try:
        return TracedPrices(model, torch.zeros(1, *model.input_shape, device=parameter.device, dtype=parameter.dtype))
    except ValueError as error:
        # torch.fx adds lines about the place in the source.
        print(f"no private-inference prices: {str(error).splitlines()[0]}", flush=True)
        return None
