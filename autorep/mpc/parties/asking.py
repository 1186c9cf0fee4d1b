"""The client's host: asks a server about images."""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from autorep.mpc.bundle.graph import Graph, fingerprint
from autorep.mpc.parties.addresses import LAST_PORT, free_ports
from autorep.mpc.parties.answers import Answers, collect_answers
from autorep.mpc.parties.channel import Address
from autorep.mpc.parties.framing import PeerError, tune
from autorep.mpc.parties.handshake import ADMIT_S, StrangerError
from autorep.mpc.parties.launch import engine_python
from autorep.mpc.parties.negotiation import Offer, Request, hear, parse_offer, tell
from autorep.mpc.parties.one_party import run_party
from autorep.mpc.parties.task import Task
from autorep.mpc.parties.tls import Identity, secure
from autorep.mpc.parties.tls_connection import TlsConnection


@dataclass(frozen=True)
class Question:
    """What a client asks about: the first `num` images of a file that `load_images` reads, `batch` of them per query.

    Args:
        listen: where the server reaches this host: the first of the ports, one per lane of the engine. None: any free
            ports, at the address from which this host dials.
    """

    bundle: Path
    graph: Graph
    images_file: Path
    num: int
    batch: int
    identity: Identity
    listen: Address | None = None


def ask_server(address: Address, question: Question, accept: Callable[[Offer], None]) -> Answers:
    """Ask the server at `address`. `accept` is shown its offer, and raises ValueError to leave, which tells the server.

    Raises:
        PeerError: the server is not there, is the wrong one, or ends the session.
        RunError: a party failed, or the engine is not installed.
    """
    engine_python()
    with contextlib.closing(_dial(address, question.identity)) as server:
        offer = _offer(server)
        try:
            if offer.bundle != fingerprint(question.graph):
                raise ValueError("the server has another bundle than this client: both need the same graph.json and "
                                 "public.npz")
            accept(offer)
            links = _own_links(server, offer, question)
        except ValueError as error:
            tell(server, {"error": str(error)})
            raise
        request = Request(question.batch, -(-question.num // question.batch), links, secrets.token_hex(32))
        request.send(server)
        with TemporaryDirectory(prefix="autorep-mpc-") as folder:
            task = _task(question, offer, request, server.peer_host(), folder)
            run_party(task, "client", server)
            return collect_answers(task, question.graph)


def _own_links(server: TlsConnection, offer: Offer, question: Question) -> tuple[Address, ...]:
    if question.listen is None:
        host = server.own_host()
        return tuple((host, port) for port in free_ports(host, len(offer.links)))
    host, port = question.listen
    last = LAST_PORT - len(offer.links) + 1
    if port > last:
        raise ValueError(f"invalid --listen port {port}: expected at most {last}, because {len(offer.links)} ports are "
                         "used from there")
    return tuple((host, port + lane) for lane in range(len(offer.links)))


def _task(question: Question, offer: Offer, request: Request, host: str, out: str) -> Task:
    links = tuple(((host, of_server), own) for of_server, own in zip(offer.links, request.links, strict=True))
    control = ((host, offer.control),)
    return Task(bundle=str(question.bundle.resolve()), masking="trained", engine=offer.engine, fixed=offer.fixed,
                images=question.num, batch=request.batch, queries=request.queries, secret=request.secret, links=links,
                links_seen=tuple((lane, lane) for lane in links), control=control, control_seen=control, out=out,
                images_file=str(question.images_file.resolve()), identity=question.identity)


def _dial(address: Address, identity: Identity) -> TlsConnection:
    where = f"{address[0]}:{address[1]}"
    try:
        connection = socket.create_connection(address, timeout=ADMIT_S)
    except (OSError, UnicodeError) as error:  # the second for what can be no name of a host
        raise PeerError(f"no server answers at {where}: {getattr(error, 'strerror', None) or error}") from error
    tune(connection)
    try:
        return secure(connection, identity, server_side=False)
    except StrangerError as error:
        raise PeerError(f"no session with the server at {where}: {error}") from error


def _offer(server: TlsConnection) -> Offer:
    try:
        message = hear(server, ADMIT_S)
        if message.get("waiting"):
            print("waiting: the server serves another client", file=sys.stderr, flush=True)
            message = hear(server, None)
    except TimeoutError as error:
        raise PeerError(f"the server said nothing for {ADMIT_S:g} s") from error
    return parse_offer(message)
