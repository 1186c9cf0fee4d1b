"""The price that a search may spend: the network taken apart into its gates, and what a budget allows."""

from __future__ import annotations

import math

from torch import Tensor, nn

from autorep.config import BudgetConfig
from autorep.gates.gated_relu import GatedReLU
from autorep.mpc.bundle.graph import Graph
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.gate_prices import GatePrices, take_apart
from autorep.mpc.cost.local import load_rates
from autorep.mpc.cost.price import Price, parse_price
from autorep.option import InvalidSetting
from autorep.search.kinds import kinds_of
from autorep.search.price import TracedPrices


class PriceModel:
    """What a network costs under the price of a budget, whatever its gates hold, in `unit`.

    Attributes:
        base: without the gates.
        gates: the prices of every gate.
        all_relu: with every ReLU.
        floor: without any, all gates the identity.
        allowed: what the budget allows.

    Raises:
        ValueError: the model cannot be traced.
        InvalidSetting: no such engine or link, a budget in another unit than the price, or below the floor.
    """

    def __init__(self, model: nn.Module, example_NCHW: Tensor, config: BudgetConfig) -> None:
        self.price = _price_of(config)
        traced = TracedPrices(model, example_NCHW)
        self.base, prices = take_apart(traced.graph, self.price, traced.gates)
        self.gates: dict[GatedReLU, GatePrices] = {traced.gates[name]: price for name, price in prices.items()}
        self.floor, self.all_relu = (
            self.base + sum(price.uniform(gate.num_total, kept) for gate, price in self.gates.items())
            for kept in (False, True))
        self.allowed = self._allowed(config)
        self._graph = traced.graph

    def _allowed(self, config: BudgetConfig) -> float:
        number, unit = config.price_amount
        if unit not in ("", self.price.symbol):
            raise InvalidSetting(BudgetConfig, "price_budget", config.price_budget,
                                 f"a share such as 0.5, or a number of {self.price.symbol}: {config.price} is a "
                                 f"price in {self.price.unit}")
        allowed = number * (self.price.scale if unit else self.all_relu)
        if not self.floor <= allowed <= self.all_relu:
            lowest = math.ceil(1000 * self.floor / self.all_relu) / 1000
            raise InvalidSetting(
                BudgetConfig, "price_budget", config.price_budget,
                f"from {lowest} ({self.price.text(lowest * self.all_relu)}), what the convolutions and the other "
                f"layers cost under {config.price} without any ReLU or polynomial, to 1 "
                f"({self.price.text(self.all_relu)}), with every ReLU")
        return allowed

    def __str__(self) -> str:
        text = self.price.text
        return (f"price of an image under {self.price}: {text(self.all_relu)} with all ReLUs, {text(self.allowed)} "
                f"allowed ({self.allowed / self.all_relu:.3f}), {text(self.floor)} without any ReLU or polynomial"
                f"{_computing(self._graph, self.price)}")

    def now(self) -> float:
        """The price of the model as it is."""
        return self.base + sum(
            price.of(gate.mask.reshape(len(gate.mask), -1).cpu().numpy(), kinds_of(gate).cpu().numpy())
            for gate, price in self.gates.items())


def _price_of(config: BudgetConfig) -> Price:
    try:
        return parse_price(config.price)
    except ValueError as error:
        raise InvalidSetting(BudgetConfig, "price", config.price, f"ENGINE or ENGINE:LINK ({error})") from error


def _computing(graph: Graph, price: Price) -> str:
    """What the parties compute beside the seconds of the link; empty for bytes, or without a table of rates."""
    if price.rates:
        return f" ({price.rates.machine})"
    rates = load_rates().get(price.engine)
    if price.network is None or rates is None:
        return ""
    most, least = (estimate(with_masking(graph, masking), price.fixed, [price.network])[price.engine]["seconds"]
                   for masking in ("all_relu", "no_relu"))
    name = price.network.name
    return (f"; the link alone: with what the parties compute about {most[name]:.3g} s with all ReLUs and "
            f"{least[name]:.3g} s without ({rates.machine}): {price}+computing is a price of both")
