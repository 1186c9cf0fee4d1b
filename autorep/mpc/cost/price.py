"""A price as one number: the seconds that an image takes under an engine, on the link or in all, or its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from autorep.mpc.cost.local import LocalRates, load_rates
from autorep.mpc.engines import Network, find_engine, parse_network
from autorep.mpc.ring.fixed_point import FixedPoint

_LOCAL = "-local"
_COMPUTING = "+computing"


@dataclass(frozen=True)
class Price:
    """How bytes and rounds add up: seconds on a network, or bytes where it is None.

    Of one query online, without what is sent before it: a dealer's randomness, keys, the start of oblivious transfers.
    Seconds are those of the link alone, where every party sends as much; with `rates` also those that the parties
    compute, on the machine of the rates. For an engine without a closed form of its rounds they lack the delays.
    """

    engine: str
    network: Network | None
    truncation: str = "exact"
    rates: LocalRates | None = None

    @property
    def unit(self) -> str:
        """What the number counts."""
        return "bytes" if self.network is None else "seconds"

    @property
    def symbol(self) -> str:
        """The unit that a budget is given in."""
        return "MB" if self.network is None else "s"

    @property
    def scale(self) -> float:
        """How many of `unit` the unit of a budget is."""
        return 1e6 if self.network is None else 1.0

    def text(self, value: float) -> str:
        """A price with its unit."""
        return f"{value / self.scale:.4g} {self.symbol}"

    def of(self, num_bytes: float, rounds: float | None, local_seconds: float = 0.0) -> float:
        """The price of bytes (of all parties together), rounds, and what the parties compute, which `rates` count."""
        if self.network is None:
            return float(num_bytes)
        link = (rounds or 0) * self.network.delay_ms / 1e3 + num_bytes / self._parties * 8 / (self.network.mbit * 1e6)
        if self.rates is None:
            return link
        return link + local_seconds + (rounds or 0) * self.rates.per_round * self.network.shaped

    @property
    def _parties(self) -> int:
        return find_engine(self.engine).parties

    @property
    def fixed(self) -> FixedPoint:
        """The number format that is priced: the usual one of its truncation."""
        return FixedPoint.of(self.truncation)

    def __str__(self) -> str:
        engine = self.engine + (_LOCAL if self.truncation == "local" else "")
        return engine if self.network is None else f"{engine}:{self.network.name}{_COMPUTING * bool(self.rates)}"


def parse_price(text: str) -> Price:
    """The price that ENGINE or ENGINE:LINK names; a link is a name or DELAY_MS:MBIT.

    "-local" behind the engine stands for local truncation; "+computing" behind the link adds what the parties compute.

    Raises:
        ValueError: no such engine or link, a link that costs nothing, or no table of rates for the engine.
    """
    whole, computing = text.removesuffix(_COMPUTING), text.endswith(_COMPUTING)
    name, colon, link = whole.partition(":")
    engine = find_engine(name.removesuffix(_LOCAL))
    local = name.endswith(_LOCAL)
    if local and not engine.local_truncation:
        raise ValueError(f"invalid price {text!r}: expected {engine.name}, which has no local truncation")
    if colon and not link:
        raise ValueError(f"invalid price {text!r}: expected a link after the colon, or {name} alone for bytes")
    network = parse_network(link) if link else None
    rates = load_rates().get(engine.name) if computing else None
    if computing and (network is None or rates is None):
        raise ValueError(f"invalid price {text!r}: expected a link before {_COMPUTING}, and an engine with a table of "
                         f"rates ({', '.join(load_rates())})")
    if network is not None and not network.shaped and not computing:
        raise ValueError(f"invalid link {link!r} of a price: expected lan, wan, or DELAY_MS:MBIT such as 25:100; on "
                         f"loopback the link takes no time, so give the price in bytes ({name} alone)")
    return Price(engine.name, network, "local" if local else "exact", rates)
