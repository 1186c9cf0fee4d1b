"""Messages on one connection: a header with their kind and length, then their content."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Protocol

from autorep.mpc.parties.handshake import MAGIC, deadline_in, read_exactly

HEADER = struct.Struct(">4sBQ")
JSON, BLOB, ALIVE, BYE = range(4)
LARGEST_JSON = 2**16  # bytes


class PeerError(RuntimeError):
    """The other party is missing, is none of this run, disagrees, or ended."""


class Connection(Protocol):
    """What is used of a socket: a plain one is a `Connection`, and so is one under TLS."""

    def sendall(self, data: bytes) -> None: ...

    def recv_into(self, buffer: memoryview) -> int: ...

    def settimeout(self, seconds: float | None) -> None: ...

    def close(self) -> None: ...


def send_message(connection: Connection, kind: int, data: bytes) -> int:
    """Send one message; returns its bytes with the header. Raises PeerError if the peer is gone."""
    try:
        connection.sendall(HEADER.pack(MAGIC, kind, len(data)) + data)
    except OSError as error:
        raise PeerError(f"the other party is gone: {error}") from error
    return len(data) + HEADER.size


def receive_message(connection: Connection, expected: tuple[int, ...], largest: int, wait_s: float | None = None,
                    rest_s: float | None = None) -> tuple[int, bytes]:
    """The kind and the content of the next message, which is of one of these kinds and has at most so many bytes.

    Args:
        wait_s: the longest wait for its first byte [s]; None: for ever.
        rest_s: the longest wait from there to its last byte [s].

    Raises:
        PeerError: the peer is gone, sends anything else, or stops within a message.
        TimeoutError: no message has begun. So the next call misses nothing.
    """
    first = _exactly(connection, 1, deadline_in(wait_s))
    deadline = deadline_in(rest_s)
    try:
        magic, kind, length = HEADER.unpack(first + _exactly(connection, HEADER.size - 1, deadline))
        if magic != MAGIC or kind not in expected or length > largest:
            raise PeerError("the peer does not speak this toolkit's protocol: wrong address, or another version")
        return kind, _exactly(connection, length, deadline)
    except TimeoutError as error:
        raise PeerError(f"the other party began a message and did not end it within {rest_s:g} s") from error


def parse_json(data: bytes) -> Any:
    """The JSON value of a message. Raises PeerError if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeerError("the peer sent a message that is no JSON") from error


def tune(connection: socket.socket) -> None:
    """Send small messages at once, and notice after about a minute that the peer's host is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _exactly(connection: Connection, length: int, deadline: float | None) -> bytes:
    try:
        return read_exactly(connection, length, deadline)
    except OSError as error:
        if isinstance(error, TimeoutError) and error.errno is None:  # of the deadline, not the system's: see `tune`
            raise
        closed = error.errno is None  # an orderly end, not an error of the system
        raise PeerError("the other party closed the connection" if closed
                        else f"the other party is gone: {error}") from error
