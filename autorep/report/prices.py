"""The columns of a results table that hold estimated prices: PROTOCOL_bytes, _rounds, _NET_seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autorep.mpc.engines import ENGINES


@dataclass(frozen=True)
class PriceColumn:
    """One column: its protocol, its quantity ("bytes", "rounds" or "seconds") and its network (for seconds)."""

    name: str
    protocol: str
    quantity: str
    network: str

    @property
    def title(self) -> str:
        """Protocol and unit."""
        unit = {"bytes": "MB", "rounds": "rounds", "seconds": f"s on {self.where}"}[self.quantity]
        return f"{self.protocol} {unit}"

    @property
    def where(self) -> str:
        """The network of a column of seconds, and that its delays are missing where the rounds are unknown."""
        engine = next(engine for engine in ENGINES.values() if engine.protocol == self.protocol)
        return self.network.upper() + ("" if engine.count_name == "rounds" else " without its delays")

    @property
    def scale(self) -> float:
        """Factor from a cell of the table to the unit of the title."""
        return 1e-6 if self.quantity == "bytes" else 1.0


def price_column(name: str) -> PriceColumn | None:
    """The price column of that name; None if the name is not one of a price column."""
    protocols = {engine.protocol.lower(): engine.protocol for engine in ENGINES.values()}
    match = re.fullmatch(rf"({'|'.join(protocols)})_(?:(bytes|rounds)|([a-z0-9]+)_seconds)", name)
    return match and PriceColumn(name, protocols[match[1]], match[2] or "seconds", match[3] or "")
