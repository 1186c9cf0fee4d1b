"""What a party does whatever its role: agree on the task, start the engine, send and receive shares, leave a record."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from spu import libspu

from autorep.mpc.bundle.files import load_graph
from autorep.mpc.bundle.graph import Graph, fingerprint
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.engines import Engine, find_engine
from autorep.mpc.parties.channel import Address, Channel, PeerError, check_free, connect, listen
from autorep.mpc.parties.engine_link import make_link
from autorep.mpc.parties.spu_session import SecureSession, log_to
from autorep.mpc.parties.task import START_TIMEOUT_S, Task
from autorep.mpc.ring.lowering import Program, lower

_LARGEST_ELEMENT, _LARGEST_HEADERS = 16, 2**16  # bytes of a share's message


class Party:
    """One of the parties of a task. `rank` is its place among the roles of the engine."""

    def __init__(self, task: Task, rank: int) -> None:
        self.task, self.rank = task, rank
        self.engine: Engine = find_engine(task.engine)
        self.folder = Path(task.out) / self.engine.roles[rank]
        self.folder.mkdir(parents=True)
        self.graph: Graph = with_masking(load_graph(task.bundle), task.masking)
        self.program: Program = lower(self.graph, task.fixed)
        own = [] if task.identity else [lane[rank] for lane in task.links]  # under TLS a guard listens there
        for address in own + self._listened():
            check_free(address)
        log_to(self.folder / "engine.log")
        self.channels = self._open_channels()
        self._agree()
        links = [make_link(task, self.engine, rank, lane) for lane in range(len(task.links))]
        self.session = SecureSession(links, self.engine, self.program, task.batch)
        self.unit_seconds: list[list[float]] = []

    def _listened(self) -> list[Address]:
        return [address for address, (first, _) in zip(self.task.control, self.engine.pairs, strict=True)
                if first == self.rank]

    def _open_channels(self) -> dict[int, Channel]:
        """Rank of every other party -> the channel to it. All parties go through the pairs in the same order."""
        secret, channels = bytes.fromhex(self.task.secret), {}
        for (first, second), here, seen in zip(self.engine.pairs, self.task.control, self.task.control_seen,
                                               strict=True):
            if self.rank == first:
                channels[second] = listen(here, START_TIMEOUT_S, secret, self.task.identity)
            elif self.rank == second:
                channels[first] = connect(seen, START_TIMEOUT_S, secret, self.task.identity)
        return channels

    def _agree(self) -> None:
        terms = {"task": fingerprint(self.graph), "engine": self.engine.name, "fixed": vars(self.task.fixed),
                 "batch": self.task.batch, "queries": self.task.queries, "spu": version("spu")}
        for channel in self.channels.values():
            channel.send_json({"role": self.engine.roles[self.rank], **terms})
        for rank, channel in self.channels.items():
            expected, other = {"role": self.engine.roles[rank], **terms}, channel.receive_json()
            if not isinstance(other, dict):
                raise PeerError("this is the wrong peer: it sent a message that is no object")
            differing = [key for key in expected if other.get(key) != expected[key]]
            if differing:
                raise PeerError(f"this is the wrong peer: it differs in {', '.join(differing)} (another run, another "
                                "bundle or another version)")

    @property
    def sent(self) -> int:
        """Bytes that this party sent over its own channels so far."""
        return sum(channel.sent for channel in self.channels.values())

    @property
    def received(self) -> int:
        """Bytes that this party received over its own channels so far."""
        return sum(channel.received for channel in self.channels.values())

    def send_share(self, rank: int, share: libspu.Share) -> None:
        """Send another party its share, or this party's own for it to reconstruct the value."""
        self.channels[rank].send_blobs([share.meta, *share.share_chunks])

    def distribute(self, shares: list[libspu.Share]) -> libspu.Share:
        """Send each other party its share of a secret of this one, by rank; returns this party's own."""
        for rank in self.channels:
            self.send_share(rank, shares[rank])
        return shares[self.rank]

    def receive_share(self, rank: int, shape: tuple[int, ...]) -> libspu.Share:
        """A share of this shape from another party. Raises PeerError if it sends anything else."""
        blobs = self.channels[rank].receive_blobs(_LARGEST_ELEMENT * prod(shape) + _LARGEST_HEADERS)
        if not blobs:
            raise PeerError("the peer sent a share without content")
        meta, *chunks = blobs
        share = libspu.Share()
        share.meta, share.share_chunks = meta, chunks
        return share

    def compute(self, query: int, input_share: libspu.Share) -> libspu.Share:
        """One query through the engine, with each unit timed. The warm-up, query -1, runs one unit at a time."""
        result, seconds = self.session.run(input_share, side_by_side=query >= 0)
        self.unit_seconds.append(seconds)
        return result

    def finish(self, channel_sent: list[int], **record: Any) -> None:
        """End together with the others, and write down what was measured. `channel_sent`: bytes per query."""
        setup_sent = self.sent - sum(channel_sent)
        for channel in self.channels.values():
            channel.part()
        versions = {"python": platform.python_version(), **{p: version(p) for p in ("spu", "jax", "numpy")}}
        document = {"channel_sent": channel_sent, "setup_sent": setup_sent, **record, "pid": os.getpid(),
                    "versions": versions, "executions": self.session.executions, "unit_seconds": self.unit_seconds,
                    "address": self.task.links[0][self.rank]}
        temporary = self.folder / "record.json.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self.folder / "record.json")
