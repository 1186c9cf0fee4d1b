"""One party as a process of its own: `python -m autorep.mpc.parties.party TASK.json {server,client}`.

The server reads the weights and never the images; the client reads the images and never the weights. Each sends the
other one random-looking share of its own secret, and only the client gets the server's share of the logits.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
import time
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from spu import libspu

from autorep.mpc.bundle.files import load_graph, load_samples, load_weights
from autorep.mpc.bundle.graph import BundleError, Graph, fingerprint
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.engines import Engine, find_engine
from autorep.mpc.parties.channel import Channel, PeerError, check_free, connect, listen
from autorep.mpc.parties.spu_session import CLIENT, SERVER, SecureSession, log_to
from autorep.mpc.parties.task import LAUNCHER, START_TIMEOUT_S, Task
from autorep.mpc.ring.fixed_point import decode, encode
from autorep.mpc.ring.lowering import Program, lower
from autorep.mpc.ring.parameters import secret_parameters, secret_shapes

_LINK_TIMEOUT_MS = 3_600_000  # a dead peer is noticed by the channel, not by waiting
_PR_SET_PDEATHSIG = 1
_LARGEST_ELEMENT, _LARGEST_HEADERS = 16, 2**16  # bytes of a share's message


class Party:
    """What both roles do: agree on the task, start the engine, measure queries, leave a record."""

    def __init__(self, task: Task, rank: int) -> None:
        self.task, self.rank = task, rank
        self.folder = Path(task.out) / ("server", "client")[rank]
        self.folder.mkdir(parents=True)
        self.engine: Engine = find_engine(task.engine)
        self.graph: Graph = with_masking(load_graph(task.bundle), task.masking)
        self.program: Program = lower(self.graph, task.fixed)
        for address in [lane[rank] for lane in task.links] + [task.control] * (rank == SERVER):
            check_free(address)
        log_to(self.folder / "engine.log")
        secret = bytes.fromhex(task.secret)
        self.channel: Channel = (listen(task.control, START_TIMEOUT_S, secret) if rank == SERVER
                                 else connect(task.control_seen, START_TIMEOUT_S, secret))
        self._agree()
        links = [self._link(lane) for lane in range(len(task.links))]
        self.session = SecureSession(links, self.engine, self.program, task.batch)
        self.unit_seconds: list[list[float]] = []

    def _agree(self) -> None:
        hello = {"role": ("server", "client")[self.rank], "task": fingerprint(self.graph),
                 "engine": self.engine.name, "fixed": vars(self.task.fixed), "batch": self.task.batch,
                 "queries": self.task.queries, "spu": version("spu")}
        self.channel.send_json(hello)
        other = self.channel.receive_json()
        differing = [key for key in hello if key != "role" and other.get(key) != hello[key]]
        if differing or other.get("role") == hello["role"]:
            raise PeerError(f"this is the wrong peer: it differs in {', '.join(differing) or 'nothing, role included'} "
                            "(another run, another bundle or another version)")

    def _link(self, lane: int) -> Any:
        description = libspu.link.Desc()
        description.id = f"lane{lane}"  # the engine counts by this name
        description.recv_timeout_ms = _LINK_TIMEOUT_MS
        description.connect_retry_times = 600
        description.connect_retry_interval_ms = 100
        for rank in (SERVER, CLIENT):
            host, port = (self.task.links if rank == self.rank else self.task.links_seen)[lane][rank]
            description.add_party(("server", "client")[rank], f"{host}:{port}")
        return libspu.link.create_brpc(description, self.rank)

    def share_message(self, share: libspu.Share) -> list[bytes]:
        """A share as bytes for the peer."""
        return [share.meta, *share.share_chunks]

    def receive_share(self, shape: tuple[int, ...]) -> libspu.Share:
        """A share of this shape from the peer."""
        meta, *chunks = self.channel.receive_blobs(_LARGEST_ELEMENT * prod(shape) + _LARGEST_HEADERS)
        share = libspu.Share()
        share.meta, share.share_chunks = meta, chunks
        return share

    def compute(self, query: int, input_share: libspu.Share) -> libspu.Share:
        """One query through the engine, with each unit timed. The warm-up, query -1, runs one unit at a time."""
        result, seconds = self.session.run(input_share, side_by_side=query >= 0)
        self.unit_seconds.append(seconds)
        return result

    def finish(self, record: dict[str, Any]) -> None:
        """End together with the peer, and write down what was measured."""
        self.channel.part()
        versions = {"python": platform.python_version(), **{p: version(p) for p in ("spu", "jax", "numpy")}}
        document = {**record, "pid": os.getpid(), "versions": versions, "executions": self.session.executions,
                    "unit_seconds": self.unit_seconds, "address": self.task.links[0][self.rank]}
        temporary = self.folder / "record.json.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self.folder / "record.json")


def serve(task: Task) -> None:
    """The server's side: send shares of the weights, then compute every query of the task."""
    party = Party(task, SERVER)
    weights = load_weights(task.bundle, party.graph)
    for step in party.program.steps:
        own = secret_parameters(step, weights, task.fixed, party.engine.opens_operands)
        for key in sorted(own):
            name = f"{step.op.name}/{key}"
            if party.engine.private_weights:
                party.session.keep_private(name, own[key], SERVER)
                continue
            mine, theirs = party.session.share(own[key])
            party.session.set_share(name, mine)
            party.channel.send_blobs(party.share_message(theirs))
    if party.engine.opens_operands:
        party.session.cache_weights()
    sent = []
    for query in range(-1, task.queries):
        before = party.channel.sent
        logits = party.compute(query, party.receive_share((task.batch, *party.graph.input_shape)))
        party.channel.send_blobs(party.share_message(logits))
        sent.append(party.channel.sent - before)
    party.finish({"channel_sent": sent, "setup_sent": party.channel.sent - sum(sent)})


def ask(task: Task) -> None:
    """The client's side: receive shares of the weights, share images, reconstruct the logits."""
    started = time.perf_counter()
    party = Party(task, CLIENT)
    images = load_samples(task.bundle, party.graph).images
    shapes = secret_shapes(party.program, party.engine.opens_operands)
    for step in party.program.steps:
        for name in sorted(name for name in shapes if name.startswith(f"{step.op.name}/")):
            if party.engine.private_weights:
                party.session.keep_private(name, None, CLIENT)
            else:
                party.session.set_share(name, party.receive_share(shapes[name]))
    if party.engine.opens_operands:
        party.session.cache_weights()
    warm_up, sent, seconds, logits = 0.0, [], [], []
    for query in range(-1, task.queries):
        begin, before = time.perf_counter(), party.channel.sent
        values = encode(images[task.image_indices(max(query, 0))], task.fixed.fraction_bits, "images")
        theirs, mine = party.session.share(values)
        party.channel.send_blobs(party.share_message(theirs))
        share = party.compute(query, mine)
        theirs = party.receive_share((task.batch, *party.graph.shapes[party.graph.output_name]))
        result = party.session.reconstruct([theirs, share])
        seconds.append(time.perf_counter() - begin)
        sent.append(party.channel.sent - before)
        logits.append(decode(result, task.fixed.fraction_bits))
        warm_up = warm_up or time.perf_counter() - started
    np.save(party.folder / "logits.npy", np.stack(logits[1:]))
    party.finish({"channel_sent": sent, "setup_sent": party.channel.sent - sum(sent), "seconds": seconds[1:],
                  "setup_seconds": warm_up})


def _end_with_launcher() -> None:
    """End this process when the launcher's ends, a SIGKILL included. Elsewhere than on Linux the system cannot."""
    if (launcher := os.environ.get(LAUNCHER)) is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it has ended before
            os._exit(3)


def main(argv: list[str]) -> int:
    """Run one role; exit code 3 with one line on stderr if the peer or the task is at fault."""
    _end_with_launcher()
    task, role = Task.load(Path(argv[0])), argv[1]
    try:
        {"server": serve, "client": ask}[role](task)
    except (PeerError, BundleError, ValueError, RuntimeError) as error:
        print(f"error: {role}: {str(error).strip().splitlines()[0]}", file=sys.stderr, flush=True)
        # The engine's threads may wait long for the peer. So this process ends at once, which the peer notices.
        os._exit(3)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
