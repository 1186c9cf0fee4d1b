"""What the result of a search may hold or cost: a number of ReLUs, of layers, a price."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autorep.option import Settings, option


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Settings):
    """The ReLU budget [ReLUs per image], the weight of its penalty, and how the search approaches it.

    The budget falls from all ReLUs to `relu_budget` over the first `anneal_fraction` of the search, by `schedule`, and
    the masks hold it at every step. With "constant", as published, the penalty alone brings the number of ReLUs down:
    a short search may then end above its budget, and the final projection drops the rest.
    `relu_layers`: the number of layers that may hold a ReLU in the result, because secure computation charges rounds
    for each; None is no limit.
    `price`, `price_budget`: what an image may cost under ENGINE on LINK, as a share of the network with every ReLU, in
    seconds ("0.8s"), of the link or in all, or, without a link, in bytes ("4MB"). The search then chooses what is worth
    its price: ReLUs, quadratics, lines, the identity.
    """

    relu_budget: int | None = option(None, "ReLU_count", "ReLU budget per image, in thousands", metavar="THOUSANDS",
                                     scale=1000)
    price: str | None = option(None, "price", "engine and link whose price is limited, such as spu-semi2k:wan; an "
                               "engine alone counts bytes, spu-semi2k-local is that with local truncation, and "
                               "spu-semi2k:wan+computing adds what the parties compute", metavar="ENGINE[:LINK]")
    price_budget: str | None = option(None, "price_budget", "that limit: a share of the price with all ReLUs (0.5), "
                                      "seconds (0.8s) or megabytes (4MB)", metavar="AMOUNT")
    penalty_weight: float = option(140.0, "lamda", "weight of the budget penalty", metavar="WEIGHT")
    schedule: str = option("linear", "budget_schedule", "how the budget falls; constant: the penalty alone lowers it",
                           choices=("constant", "linear", "cosine", "exponential"))
    anneal_fraction: float = option(0.3, "anneal_fraction", "share of the search over which it falls",
                                    metavar="SHARE")
    relu_layers: int | None = option(None, "relu_layers", "how many layers may hold a ReLU in the result; secure "
                                     "computation charges for each", metavar="N")

    def __post_init__(self) -> None:
        if self.price_budget is not None:  # a share may be a number, and one amount has one text
            object.__setattr__(self, "price_budget", str(self.price_budget))
            number, unit = self.price_amount
            if number > 0:
                object.__setattr__(self, "price_budget", f"{number:.12g}{unit}")
        super().__post_init__()
        self.expect(self.relu_budget is not None or self.price is not None, "relu_budget",
                    "a number of ReLUs per image, or a `price` with its `price_budget`")
        self.expect(self.relu_budget is None or self.relu_budget >= 0 and self.relu_budget % 1 == 0, "relu_budget",
                    "0 or more whole ReLUs per image")
        self.expect((self.price is None) == (self.price_budget is None), "price_budget",
                    "an amount with a `price`, none without")
        self.expect(self.price_budget is None or self.price_amount[0] > 0, "price_budget",
                    "a share such as 0.5, seconds such as 0.8s, or megabytes such as 4MB")
        self.expect(self.penalty_weight >= 0, "penalty_weight", "0 or more")
        self.expect(0 < self.anneal_fraction <= 1, "anneal_fraction", "more than 0, at most 1")
        fewest = 0 if self.relu_budget == 0 or self.price else 1
        self.expect(self.relu_layers is None or self.relu_layers >= fewest, "relu_layers",
                    f"{fewest} or more layers at this budget")

    def __str__(self) -> str:
        limits = [] if self.relu_budget is None else [f"{self.relu_budget:,} ReLUs"]
        limits += [f"{self.price_budget} of {self.price}"] if self.price else []
        limits += [] if self.relu_layers is None else [f"{self.relu_layers} layers"]
        return ", ".join(limits)

    @property
    def price_amount(self) -> tuple[float, str]:
        """`price_budget` as a number and its unit: "s", "MB", or "" for a share; 0 where it is none of them."""
        parts = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(s|MB|)", self.price_budget or "")
        number, unit = (float(parts[1]), parts[2]) if parts else (0.0, "")
        return (number, unit) if unit or number <= 1 else (0.0, "")
