"""What one run does: the document that the launcher gives to both parties. Of secrets it holds the run's own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from autorep.mpc.parties.channel import Address
from autorep.mpc.ring.fixed_point import FixedPoint

START_TIMEOUT_S = 60.0
LAUNCHER = "AUTOREP_LAUNCHER"  # environment variable: the process whose end is that of the parties


@dataclass(frozen=True)
class Task:
    """One network with one masking under one engine.

    Args:
        links: where server and client listen for the engine's messages, per lane of the engine.
        links_seen: where each finds the other: a proxy, if the network is shaped.
        control, control_seen: the same for the parties' own channel, on which only the server listens.
        secret: hexadecimal; each party proves to the other that it knows it.
        queries: without the warm-up. Query q asks about the samples q*batch, q*batch + 1, ..., modulo `images`.
    """

    bundle: str
    masking: str
    engine: str
    fixed: FixedPoint
    images: int
    batch: int
    queries: int
    secret: str
    links: tuple[tuple[Address, Address], ...]
    links_seen: tuple[tuple[Address, Address], ...]
    control: Address
    control_seen: Address
    out: str

    def save(self, path: Path) -> None:
        """Write the task as JSON, for its owner alone."""
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
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
