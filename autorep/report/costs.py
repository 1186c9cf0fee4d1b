"""The columns of a results table that hold estimates of private inference: PROTOCOL_bytes, _rounds, _NET_seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from autorep.mpc.engines import ENGINES


@dataclass(frozen=True)
class CostColumn:
    """One column: which protocol, what it counts ("bytes", "rounds" or "seconds") and on which network."""

    name: str
    protocol: str
    quantity: str
    network: str

    @property
    def title(self) -> str:
        """Protocol, quantity and unit."""
        unit = {"bytes": "MB", "rounds": "rounds", "seconds": f"s on {self.network.upper()}"}[self.quantity]
        return f"{self.protocol} {unit}"

    @property
    def scale(self) -> float:
        """What a cell is multiplied by to be in the unit of the title."""
        return 1e-6 if self.quantity == "bytes" else 1.0


def cost_column(name: str) -> CostColumn | None:
    """What a column of that name holds; None where it holds no estimate."""
    protocols = {engine.protocol.lower(): engine.protocol for engine in ENGINES.values()}
    match = re.fullmatch(rf"({'|'.join(protocols)})_(?:(bytes|rounds)|([a-z0-9]+)_seconds)", name)
    return match and CostColumn(name, protocols[match[1]], match[2] or "seconds", match[3] or "")
