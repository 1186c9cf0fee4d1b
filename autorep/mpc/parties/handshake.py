"""Who is at the other end: both sides prove that they know the secret of the run, and neither tells it."""

from __future__ import annotations

import hmac
import secrets
import socket
import time

MAGIC = b"ARPI"
_NONCE, _PROOF = 16, 32
ADMIT_S = 10.0  # a stranger that says nothing is dropped then


class StrangerError(Exception):
    """Whoever connected is none of this run."""


def admit(connection: socket.socket, secret: bytes, kinds: tuple[int, ...]) -> int:
    """The listening side: the kind of connection that a party of this run asks for.

        client    magic, kind, its nonce
        server    its nonce, HMAC-SHA256(secret, "server", kind, both nonces)
        client    HMAC-SHA256(secret, "client", kind, both nonces)

    Raises:
        StrangerError: it is no party of this run, or has not shown that within `ADMIT_S`.
    """
    deadline = deadline_in(ADMIT_S)
    try:
        hello = read_exactly(connection, len(MAGIC) + 1 + _NONCE, deadline)
        kind, theirs = hello[len(MAGIC)], hello[len(MAGIC) + 1:]
        if not hello.startswith(MAGIC) or kind not in kinds:
            raise StrangerError("it does not speak this toolkit's protocol")
        ours = secrets.token_bytes(_NONCE)
        connection.sendall(ours + _proof(secret, b"server", kind, theirs, ours))
        proof = read_exactly(connection, _PROOF, deadline)
        if not hmac.compare_digest(proof, _proof(secret, b"client", kind, theirs, ours)):
            raise StrangerError("it does not know the secret of this run")
    except OSError as error:
        raise StrangerError(str(error)) from error
    return kind


def introduce(connection: socket.socket, secret: bytes, kind: int, deadline: float) -> None:
    """The dialling side of `admit`.

    Raises:
        StrangerError: whoever listens does not know the secret.
        OSError: the connection fails, or there is no answer before the deadline.
    """
    ours = secrets.token_bytes(_NONCE)
    connection.sendall(MAGIC + bytes([kind]) + ours)
    theirs = read_exactly(connection, _NONCE, deadline)
    proof = read_exactly(connection, _PROOF, deadline)
    if not hmac.compare_digest(proof, _proof(secret, b"server", kind, ours, theirs)):
        raise StrangerError("it does not know the secret of this run: another run, or another program")
    connection.sendall(_proof(secret, b"client", kind, ours, theirs))


def _proof(secret: bytes, role: bytes, kind: int, of_client: bytes, of_server: bytes) -> bytes:
    return hmac.digest(secret, role + bytes([kind]) + of_client + of_server, "sha256")


def deadline_in(seconds: float | None) -> float | None:
    """The time of the monotonic clock in so many seconds; None: never."""
    return None if seconds is None else time.monotonic() + seconds


def read_exactly(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    """So many bytes, all of them before the deadline: who sends one at a time gains nothing.

    Raises:
        OSError: the connection fails or ends before them.
        TimeoutError: the deadline passes.
    """
    data = bytearray(length)
    view, filled = memoryview(data), 0
    while filled < length:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left)
        if not (count := connection.recv_into(view[filled:])):
            raise ConnectionResetError("it closed the connection")
        filled += count
    return bytes(data)
