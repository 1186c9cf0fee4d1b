"""One party as a process of its own: `python -m autorep.mpc.parties.party FOLDER {server,client,helper}`, with its task
as JSON in the standard input.

The server reads the weights and never the images; the client reads the images and never the weights; the helper, of
engines with three parties, reads neither. Each sends every other one random-looking share of its own secret, directly,
since two shares together may give it away. Only the client gets the others' shares of the logits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import numpy as np

from autorep.mpc.bundle.files import load_images, load_weights, samples_file
from autorep.mpc.bundle.graph import BundleError
from autorep.mpc.engines import CLIENT, HELPER, SERVER
from autorep.mpc.parties.channel import PeerError
from autorep.mpc.parties.member import Party
from autorep.mpc.parties.task import LAUNCHER, Task
from autorep.mpc.ring.fixed_point import decode, encode
from autorep.mpc.ring.parameters import secret_parameters, secret_shapes

_PR_SET_PDEATHSIG = 1


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
            else:
                party.session.set_share(name, party.distribute(party.session.share(own[key])))
    _answer(party)


def help_out(task: Task) -> None:
    """The helper's side: receive shares of everything, compute every query."""
    party = Party(task, HELPER)
    _receive_weights(party)
    _answer(party)


def _answer(party: Party) -> None:
    """Compute each query on the client's share of its images, and give it this party's share of the logits."""
    if party.engine.opens_operands:
        party.session.cache_weights()
    sent = []
    for query in range(-1, party.task.queries):
        before = party.sent
        images = party.receive_share(CLIENT, (party.task.batch, *party.graph.input_shape))
        party.send_share(CLIENT, party.compute(query, images))
        sent.append(party.sent - before)
    party.finish(sent)


def _receive_weights(party: Party) -> None:
    shapes = secret_shapes(party.program, party.engine.opens_operands)
    for step in party.program.steps:
        for name in sorted(name for name in shapes if name.startswith(f"{step.op.name}/")):
            if party.engine.private_weights:
                party.session.keep_private(name, None, party.rank)
            else:
                party.session.set_share(name, party.receive_share(SERVER, shapes[name]))


def ask(task: Task) -> None:
    """The client's side: receive shares of the weights, share images, reconstruct the logits."""
    started = time.perf_counter()
    party = Party(task, CLIENT)
    images, _ = load_images(task.images_file or samples_file(task.bundle), party.graph)
    _receive_weights(party)
    if party.engine.opens_operands:
        party.session.cache_weights()
    warm_up, sent, received, seconds, logits = 0.0, [], [], [], []
    for query in range(-1, task.queries):
        begin, before, before_received = time.perf_counter(), party.sent, party.received
        values = encode(images[task.image_indices(max(query, 0))], task.fixed.fraction_bits, "images")
        shares = {CLIENT: party.compute(query, party.distribute(party.session.share(values)))}
        shape = (task.batch, *party.graph.shapes[party.graph.output_name])
        shares |= {rank: party.receive_share(rank, shape) for rank in party.channels}
        result = party.session.reconstruct([shares[rank] for rank in sorted(shares)])
        seconds.append(time.perf_counter() - begin)
        sent.append(party.sent - before)
        received.append(party.received - before_received)
        logits.append(decode(result, task.fixed.fraction_bits))
        warm_up = warm_up or time.perf_counter() - started
    np.save(party.folder / "logits.npy", np.stack(logits[1:]))
    party.finish(sent, seconds=seconds[1:], setup_seconds=warm_up, channel_received=received,
                 setup_received=party.received - sum(received))


def _end_with_launcher() -> None:
    """End this process when the launcher's ends, a SIGKILL included. Elsewhere than on Linux the system cannot."""
    if (launcher := os.environ.get(LAUNCHER)) is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it has ended before
            os._exit(3)


def main(argv: list[str]) -> int:
    """Run one role; exit code 3 with one line on stderr if a peer or the task is at fault."""
    _end_with_launcher()
    task, role = Task.from_json(sys.stdin.read()), argv[1]
    try:
        {"server": serve, "client": ask, "helper": help_out}[role](task)
    except (PeerError, BundleError, ValueError, RuntimeError) as error:
        print(f"error: {role}: {str(error).strip().splitlines()[0]}", file=sys.stderr, flush=True)
        # The engine's threads may wait long for the peer. So this process ends at once, which the peer notices.
        os._exit(3)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
