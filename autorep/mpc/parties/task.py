"""What one run does: the document that the launcher gives to all parties. Of secrets it holds the run's own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from autorep.mpc.parties.channel import Address
from autorep.mpc.parties.tls import Identity
from autorep.mpc.ring.fixed_point import FixedPoint

START_TIMEOUT_S = 60.0
LAUNCHER = "AUTOREP_LAUNCHER"  # environment variable: the process whose end is that of the parties


def socket_name(lane: int) -> str:
    """The Unix socket in a party's folder where its engine listens behind a guard."""
    return f"lane{lane}.sock"


@dataclass(frozen=True)
class Task:
    """One network with one masking under one engine.

    Args:
        links: where each party listens for the engine's messages, by rank, per lane of the engine; with
            an identity, where a guard listens for them.
        links_seen: where a party (first index) finds another (second): a proxy, if the network is shaped; per lane.
        control: for each of the engine's `pairs`, where its first party listens for their own channel.
        control_seen: for each of the `pairs`, where its second party finds the first.
        secret: hexadecimal; each party proves to the others that it knows it.
        queries: without the warm-up. Query q asks about the images q*batch, q*batch + 1, ..., modulo `images`.
        images_file: what the client asks about, as `load_images` reads it; None: the samples of the bundle.
        identity: who the party is and whom it accepts, if all connections are under TLS.
    """

    bundle: str
    masking: str
    engine: str
    fixed: FixedPoint
    images: int
    batch: int
    queries: int
    secret: str
    links: tuple[tuple[Address, ...], ...]
    links_seen: tuple[tuple[tuple[Address, ...], ...], ...]
    control: tuple[Address, ...]
    control_seen: tuple[Address, ...]
    out: str
    images_file: str | None = None
    identity: Identity | None = None

    def to_json(self) -> str:
        """The task as text, which holds the secret of the run."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Task:
        """The inverse of `to_json`."""
        document = json.loads(text)
        document["fixed"] = FixedPoint(**document["fixed"])
        for key in ("links", "links_seen", "control", "control_seen"):
            document[key] = _tuples(document[key])
        if document["identity"] is not None:
            document["identity"] = Identity(**document["identity"])
        return Task(**document)

    def image_indices(self, query: int) -> list[int]:
        """The images that query number `query` asks about."""
        return [(query * self.batch + i) % self.images for i in range(self.batch)]


def _tuples(value: Any) -> Any:
    """Lists of JSON as tuples, at every depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
