"""The server's host: admits one client after another, and runs the server's party for each in a process of its own."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from autorep.mpc.bundle.files import load_weights
from autorep.mpc.bundle.graph import Graph, fingerprint
from autorep.mpc.engines import find_engine
from autorep.mpc.parties.addresses import LAST_PORT
from autorep.mpc.parties.channel import Address, check_free
from autorep.mpc.parties.framing import PeerError, tune
from autorep.mpc.parties.handshake import ADMIT_S, StrangerError
from autorep.mpc.parties.launch import RunError, engine_python
from autorep.mpc.parties.negotiation import Offer, Request, hear, parse_request, tell
from autorep.mpc.parties.one_party import GRACE_S, STOPPED, run_party
from autorep.mpc.parties.task import Task
from autorep.mpc.parties.tls import Identity, secure
from autorep.mpc.parties.tls_connection import TlsConnection
from autorep.mpc.ring.fixed_point import FixedPoint

_POLL_S, _LAST_ANSWERS_S = 0.5, 60.0


class Service:
    """Listens at an address; the ports after it are those of the party: its channel, then one per lane of the engine.

    A stranger is told why it is refused, by the alert of TLS, at any time. A second client waits for the first one.

    Raises:
        RunError: the engine is not installed.
        ValueError: the bundle has no weights, or the ports do not exist.
        PeerError: a port is taken.
    """

    def __init__(self, address: Address, bundle: Path, graph: Graph, engine: str, fixed: FixedPoint,
                 identity: Identity) -> None:
        engine_python()
        load_weights(bundle, graph)  # the party reads them again; here it is only seen that they are there
        (self._host, port), lanes = address, find_engine(engine).lanes
        if not 1 <= port <= LAST_PORT - 1 - lanes:
            raise ValueError(f"invalid port={port}: expected 1 to {LAST_PORT - 1 - lanes}, because the {1 + lanes} "
                             "after it are used too")
        self._offer = Offer(fingerprint(graph), engine, fixed, port + 1, tuple(range(port + 2, port + 2 + lanes)))
        for each in range(port, port + 2 + lanes):
            check_free((self._host, each))
        self._bundle, self._identity = bundle, identity
        self._turn, self._stopping = threading.Lock(), threading.Event()
        self._listener = socket.create_server(address)
        self._listener.settimeout(_POLL_S)

    def stop(self) -> None:
        """Let `run` return, from another thread."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until `stop`, or until an exception such as that of a signal; then no process and no file is left."""
        try:
            while not self._stopping.is_set():
                self._accept()
        finally:
            self._listener.close()
            self._stopping.set()
            # The thread that has the turn ends its party and removes its files first.
            self._turn.acquire(timeout=2 * GRACE_S)

    def _accept(self) -> None:
        try:
            connection, (host, *_) = self._listener.accept()
        except TimeoutError:
            return
        except OSError as error:  # too many open files, say: that passes when strangers are dropped
            _say(f"cannot accept a connection: {error}")
            time.sleep(1)
            return
        # Beside the others: one that says nothing must keep nobody waiting.
        threading.Thread(target=self._attend, args=(connection, host), daemon=True).start()

    def _attend(self, connection: socket.socket, host: str) -> None:
        try:
            tune(connection)
            client = secure(connection, self._identity, server_side=True)
        except (StrangerError, ValueError, OSError) as error:
            _say(f"refused {host}: {error}")
            connection.close()
            return
        try:
            with self._own_turn(client):
                self._serve(client, host)
        except TimeoutError:
            _say(f"client {host}: it said nothing for {ADMIT_S:g} s")
        except (PeerError, RunError, ValueError, OSError) as error:
            _say(f"client {host}: {error}")
            with suppress(PeerError):  # it may have been told already, or be gone
                # Not the error: it may name a secret value, or a file.
                tell(client, {"error": STOPPED if self._stopping.is_set() else "the server ended the session"})
        finally:
            client.close()

    @contextmanager
    def _own_turn(self, client: TlsConnection) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            tell(client, {"waiting": True})
            self._turn.acquire()
        try:
            if self._stopping.is_set():
                raise RunError(STOPPED)
            yield
        finally:
            self._turn.release()

    def _serve(self, client: TlsConnection, host: str) -> None:
        self._offer.send(client)
        request = parse_request(hear(client, ADMIT_S), len(self._offer.links))
        _say(f"client {host}: {request.queries} queries of {request.batch} under {self._offer.engine} ...")
        started = time.monotonic()
        with TemporaryDirectory(prefix="autorep-mpc-") as folder:
            run_party(self._task(request, folder), "server", client, self._stopping)
        with suppress(PeerError, TimeoutError):  # a busy client may still be writing down its answers
            hear(client, _LAST_ANSWERS_S)
        _say(f"client {host}: served in {time.monotonic() - started:.1f} s")

    def _task(self, request: Request, out: str) -> Task:
        offer = self._offer
        links = tuple(((self._host, own), of_client) for own, of_client in zip(offer.links, request.links, strict=True))
        control = ((self._host, offer.control),)
        return Task(bundle=str(self._bundle), masking="trained", engine=offer.engine, fixed=offer.fixed,
                    images=request.batch * request.queries, batch=request.batch, queries=request.queries,
                    secret=request.secret, links=links, links_seen=tuple((lane, lane) for lane in links),
                    control=control, control_seen=control, out=out, identity=self._identity)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
