"""The parties' own connections besides the engine's: to agree on the task, exchange shares, and notice a dead peer."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from typing import Any

_MAGIC = b"ARPI"
_HEADER = struct.Struct(">4sBQ")
_JSON, _BLOB, _ALIVE, _BYE = range(4)
_MAX_MESSAGE = 2**33
_LAST_WORDS_S = 1.0
Address = tuple[str, int]


class PeerError(RuntimeError):
    """The other party is missing, is none of this toolkit, disagrees, or ended."""


class _ClosedError(PeerError):
    """The peer closed the connection."""


def check_free(address: Address) -> None:
    """Raise PeerError if the address cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise PeerError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}; choose "
                            "another --port") from error


class Channel:
    """Framed messages over one connection, counted; a second connection shows when the peer's process ends."""

    def __init__(self, main: socket.socket, alive: socket.socket) -> None:
        self._main, self._alive = main, alive
        self.sent = self.received = 0
        self._closing = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def send_json(self, message: Any) -> None:
        """Send one JSON value."""
        self.sent += _send(self._main, _JSON, json.dumps(message).encode())

    def receive_json(self) -> Any:
        """Receive one JSON value. Raises PeerError if the peer is gone or sends anything else."""
        return json.loads(self._receive(_JSON))

    def send_blobs(self, blobs: list[bytes]) -> None:
        """Send a list of byte strings: their number (4 bytes), the length of each (8 bytes), then all bytes."""
        lengths = struct.pack(f">I{len(blobs)}Q", len(blobs), *map(len, blobs))
        self.sent += _send(self._main, _BLOB, lengths + b"".join(blobs))

    def receive_blobs(self) -> list[bytes]:
        """Receive what `send_blobs` sent."""
        data = memoryview(self._receive(_BLOB))
        (count,) = struct.unpack_from(">I", data)
        lengths = struct.unpack_from(f">{count}Q", data, 4)
        blobs, start = [], 4 + 8 * count
        for length in lengths:
            blobs.append(bytes(data[start:start + length]))
            start += length
        if start != len(data):
            raise PeerError("the peer sent a message whose parts do not add up")
        return blobs

    def part(self) -> None:
        """End together with the peer, so neither takes that for a failure. Raises PeerError if it is out of step."""
        self._closing.set()
        self.send_json("done")
        if self.receive_json() != "done":
            raise PeerError("the other party did not finish in step")
        with contextlib.suppress(PeerError):
            _send(self._alive, _BYE, b"")

    def _receive(self, kind: int) -> bytes:
        data = _receive(self._main, kind)
        self.received += len(data) + _HEADER.size
        return data

    def _watch(self) -> None:
        try:
            _receive(self._alive, _BYE)
            return
        except (PeerError, OSError):
            pass
        # A peer that refuses this one says why before it ends: the main thread reads and reports that first.
        time.sleep(_LAST_WORDS_S)
        if not self._closing.is_set():
            # The main thread may be inside the engine, which would wait for the dead peer for minutes.
            print("error: the other party ended before the computation was over (its process or its network is gone)",
                  file=sys.stderr, flush=True)
            os._exit(3)


def listen(address: Address, timeout_s: float) -> Channel:
    """Wait for the peer's two connections at `address`. Raises PeerError if none comes, or not from a party."""
    with socket.create_server(address, reuse_port=False) as server:
        server.settimeout(timeout_s)
        found: dict[int, socket.socket] = {}
        while len(found) < 2:
            try:
                connection, _ = server.accept()
            except TimeoutError as error:
                raise PeerError(f"no party came to {address[0]}:{address[1]} within {timeout_s:g} s") from error
            connection.settimeout(timeout_s)
            kind = _greeting(connection)
            _send(connection, kind, b"")
            found[kind] = connection
    return _ready(found[_JSON], found[_ALIVE])


def connect(address: Address, timeout_s: float) -> Channel:
    """Make both connections to a listening peer, retrying while it starts. Raises PeerError."""
    return _ready(*(_dial(address, kind, timeout_s) for kind in (_JSON, _ALIVE)))


def _ready(main: socket.socket, alive: socket.socket) -> Channel:
    for connection in (main, alive):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Channel(main, alive)


def _dial(address: Address, kind: int, timeout_s: float) -> socket.socket:
    """A connection that the peer has answered: a proxy accepts one before it knows whether the peer listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=timeout_s)
            _send(connection, kind, b"")
            _receive(connection, kind)
            return connection
        except (OSError, _ClosedError) as error:
            if time.monotonic() > deadline:
                raise PeerError(f"no party answers at {address[0]}:{address[1]} within {timeout_s:g} s: "
                                f"{error}") from error
            time.sleep(0.05)


def _greeting(connection: socket.socket) -> int:
    magic, kind, length = _HEADER.unpack(_exactly(connection, _HEADER.size))
    if magic != _MAGIC or kind not in (_JSON, _ALIVE) or length:
        raise PeerError("something else connected: it is not a party of this toolkit; choose another --port")
    return kind


def _send(connection: socket.socket, kind: int, data: bytes) -> int:
    try:
        connection.sendall(_HEADER.pack(_MAGIC, kind, len(data)) + data)
    except OSError as error:
        raise PeerError(f"the other party is gone: {error}") from error
    return len(data) + _HEADER.size


def _receive(connection: socket.socket, expected: int) -> bytes:
    magic, kind, length = _HEADER.unpack(_exactly(connection, _HEADER.size))
    if magic != _MAGIC or kind != expected or length > _MAX_MESSAGE:
        raise PeerError("the peer does not speak this toolkit's protocol: wrong address, or another version")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        try:
            count = connection.recv_into(view[filled:])
        except TimeoutError as error:
            raise PeerError("the other side sends nothing: it is not a party of this toolkit") from error
        except OSError as error:
            raise PeerError(f"the other party is gone: {error}") from error
        if not count:
            raise _ClosedError("the other party closed the connection")
        filled += count
    return bytes(data)
