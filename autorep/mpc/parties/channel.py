"""The parties' own connections besides the engine's: to agree on the task, exchange shares, and notice a dead peer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import sys
import threading
import time
from typing import Any

from autorep.mpc.parties.framing import (
    ALIVE,
    BLOB,
    BYE,
    HEADER,
    JSON,
    LARGEST_JSON,
    Connection,
    PeerError,
    parse_json,
    receive_message,
    send_message,
    tune,
)
from autorep.mpc.parties.handshake import StrangerError, admit, introduce
from autorep.mpc.parties.tls import Identity, secure

_POLL_S, _LAST_WORDS_S = 0.1, 1.0
# Between two signs of life; without one for so long: said; the most that is waited. An engine may keep a busy party
# from sending them for a while.
_BEAT_S, _SILENCE_S, _LONGEST_SILENCE_S = 5.0, 30.0, 600.0
Address = tuple[str, int]


def check_free(address: Address) -> None:
    """Raise PeerError if the address cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise PeerError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}; choose "
                            "another --port or --listen") from error


class Channel:
    """Framed messages over one connection, counted; a second one shows that the peer's process is there and runs."""

    def __init__(self, main: Connection, alive: Connection) -> None:
        self._main, self._alive = main, alive
        self.sent = self.received = 0
        self._closing, self._sending = threading.Event(), threading.Lock()
        for work in (self._watch, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def send_json(self, message: Any) -> None:
        """Send one JSON value."""
        self.sent += send_message(self._main, JSON, json.dumps(message).encode())

    def receive_json(self) -> Any:
        """Receive one JSON value. Raises PeerError if the peer is gone or sends anything else."""
        return parse_json(self._receive(JSON, LARGEST_JSON))

    def send_blobs(self, blobs: list[bytes]) -> None:
        """Send a list of byte strings: their number (4 bytes), the length of each (8 bytes), then all bytes."""
        lengths = struct.pack(f">I{len(blobs)}Q", len(blobs), *map(len, blobs))
        self.sent += send_message(self._main, BLOB, lengths + b"".join(blobs))

    def receive_blobs(self, largest: int) -> list[bytes]:
        """Receive what `send_blobs` sent: at most `largest` bytes. Raises PeerError as `receive_json`."""
        data = memoryview(self._receive(BLOB, largest))
        try:
            (count,) = struct.unpack_from(">I", data)
            lengths = struct.unpack_from(f">{count}Q", data, 4)
        except struct.error as error:
            raise PeerError("the peer sent a message that is shorter than its parts") from error
        blobs, start = [], 4 + 8 * count
        for length in lengths:
            blobs.append(bytes(data[start:start + length]))
            start += length
        if start != len(data):
            raise PeerError("the peer sent a message whose parts do not add up")
        return blobs

    def part(self) -> None:
        """End together with the peer, so neither takes that for a failure.

        Raises:
            PeerError: the peer is out of step, or never ends.
        """
        self._main.settimeout(_LONGEST_SILENCE_S)
        self.send_json("done")
        try:
            said = parse_json(self._receive(JSON, LARGEST_JSON, _LONGEST_SILENCE_S))
        except TimeoutError as error:
            raise PeerError(f"the other party did not finish within {_LONGEST_SILENCE_S:g} s") from error
        if said != "done":
            raise PeerError("the other party did not finish in step")
        self._closing.set()  # not before: until then a peer that stops is one that fails
        with contextlib.suppress(PeerError), self._sending:
            send_message(self._alive, BYE, b"")

    def _receive(self, kind: int, largest: int, timeout_s: float | None = None) -> bytes:
        _, data = receive_message(self._main, (kind,), largest, timeout_s, timeout_s)
        self.received += len(data) + HEADER.size
        return data

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT_S):
            with contextlib.suppress(PeerError), self._sending:
                send_message(self._alive, ALIVE, b"")

    def _watch(self) -> None:
        silent, why = 0.0, "its process or its network is gone"
        while silent < _LONGEST_SILENCE_S:
            try:
                kind, _ = receive_message(self._alive, (ALIVE, BYE), 0, _SILENCE_S, _SILENCE_S)
                if kind == BYE:
                    return
                silent = 0.0
            except TimeoutError:
                if self._closing.is_set():
                    return
                silent += _SILENCE_S
                print(f"waiting for the other party, which has shown no sign of life for {silent:g} s (stopped, or its "
                      "machine is overloaded?)", file=sys.stderr, flush=True)
            except (PeerError, OSError):
                break
        else:
            why = f"no sign of life for {silent:g} s"
        # A peer that refuses this one says why before it ends: the main thread reads and reports that first.
        time.sleep(_LAST_WORDS_S)
        if not self._closing.is_set():
            # The main thread may be inside the engine, which would wait for the dead peer for minutes.
            print(f"error: the other party ended before the computation was over ({why})", file=sys.stderr, flush=True)
            os._exit(3)


def listen(address: Address, timeout_s: float, secret: bytes, identity: Identity | None = None) -> Channel:
    """Wait for the peer's two connections at `address`; strangers are dropped, and the wait goes on.

    Args:
        identity: with it, both connections are under TLS.

    Raises:
        PeerError: no party that knows the secret came in time.
    """
    arrivals: queue.Queue[tuple[int, Connection]] = queue.Queue()
    found: dict[int, Connection] = {}
    deadline = time.monotonic() + timeout_s
    with socket.create_server(address, reuse_port=False) as server:
        server.settimeout(_POLL_S)
        while len(found) < 2:
            with contextlib.suppress(TimeoutError):
                connection, (host, *_) = server.accept()
                # Beside the others: one that says nothing must not keep the peer waiting.
                threading.Thread(target=_admit, args=(connection, host, secret, identity, arrivals),
                                 daemon=True).start()
            while not arrivals.empty():
                kind, connection = arrivals.get()
                found[kind] = connection
            if len(found) < 2 and time.monotonic() > deadline:
                raise PeerError(f"no party of this run came to {address[0]}:{address[1]} within {timeout_s:g} s")
    return _ready(found[JSON], found[ALIVE])


def _admit(connection: socket.socket, host: str, secret: bytes, identity: Identity | None,
           arrivals: queue.Queue) -> None:
    secured = connection
    try:
        tune(connection)
        if identity:
            secured = secure(connection, identity, server_side=True)
        arrivals.put((admit(secured, secret, (JSON, ALIVE)), secured))
    except (StrangerError, ValueError, OSError) as error:  # the last two where the own keys cannot be read
        print(f"dropped a connection from {host}: {error}", file=sys.stderr, flush=True)
        secured.close()


def connect(address: Address, timeout_s: float, secret: bytes, identity: Identity | None = None) -> Channel:
    """Make both connections to a listening peer, retrying while it starts. Raises PeerError."""
    return _ready(*(_dial(address, kind, timeout_s, secret, identity) for kind in (JSON, ALIVE)))


def _ready(main: Connection, alive: Connection) -> Channel:
    for connection in (main, alive):
        connection.settimeout(None)
    return Channel(main, alive)


def _dial(address: Address, kind: int, timeout_s: float, secret: bytes, identity: Identity | None) -> Connection:
    """A connection that the peer has answered: a proxy accepts one before it knows whether the peer listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=timeout_s)
            tune(connection)
            secured = secure(connection, identity, server_side=False) if identity else connection
            introduce(secured, secret, kind, deadline)
            return secured
        except StrangerError as error:
            raise PeerError(f"this is the wrong peer at {address[0]}:{address[1]}: {error}") from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerError(f"no party answers at {address[0]}:{address[1]} within {timeout_s:g} s: "
                                f"{error}") from error
            time.sleep(0.05)
