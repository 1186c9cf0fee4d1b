"""What one run does: the document that the launcher gives to both parties. It holds no secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from autorep.mpc.parties.channel import Address
from autorep.mpc.ring.fixed_point import FixedPoint

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Task:
    """One network with one masking under one engine.

    Args:
        links: where server and client listen for the engine's messages, per lane of the engine.
        links_seen: where each finds the other: a proxy, if the network is shaped.
        control, control_seen: the same for the parties' own channel, on which only the server listens.
        token: tells runs apart.
        queries: without the warm-up. Query q asks about the samples q*batch, q*batch + 1, ..., modulo `images`.
    """

    bundle: str
    masking: str
    engine: str
    fixed: FixedPoint
    images: int
    batch: int
    queries: int
    token: str
    links: tuple[tuple[Address, Address], ...]
    links_seen: tuple[tuple[Address, Address], ...]
    control: Address
    control_seen: Address
    out: str

    def save(self, path: Path) -> None:
        """Write the task as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(path: Path) -> Task:
        """Read a task written by `save`."""
        document = json.loads(path.read_text())
        document["fixed"] = FixedPoint(**document["fixed"])
        for key in ("links", "links_seen"):
            document[key] = tuple(tuple((str(host), int(port)) for host, port in lane) for lane in document[key])
        for key in ("control", "control_seen"):
            document[key] = (str(document[key][0]), int(document[key][1]))
        return Task(**document)

    def image_indices(self, query: int) -> list[int]:
        """The samples that query number `query` asks about."""
        return [(query * self.batch + i) % self.images for i in range(self.batch)]
