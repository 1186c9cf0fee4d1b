"""What stands before the engine's ports: it lets in whoever begins with TLS, and the engine sees the certificate.

The engine itself would take a connection in plain text at the same port, whatever it is told of TLS. So it listens on
Unix sockets in the party's own folder, where no other user comes to, and only what passes here reaches it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path

from autorep.mpc.parties.channel import Address, check_free
from autorep.mpc.parties.framing import PeerError, tune
from autorep.mpc.parties.handshake import ADMIT_S, deadline_in, read_exactly
from autorep.mpc.parties.task import START_TIMEOUT_S

_POLL_S, _DIAL_AGAIN_S, _CHUNK = 0.2, 0.01, 2**18
_LONGEST_PATH = 100  # bytes of the path of a Unix socket, which systems limit to about as many
_HEAD = 6  # bytes from which the engine tells TLS from plain text


class Guard:
    """Within the block, TLS connections to each address are passed on to a Unix socket.

    Raises:
        PeerError: an address cannot be listened on.
        ValueError: a path is too long for a Unix socket.
    """

    def __init__(self, routes: list[tuple[Address, Path]]) -> None:
        self._routes = routes
        self._closing = threading.Event()
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Guard:
        for address, path in self._routes:
            if len(os.fsencode(path)) > _LONGEST_PATH:
                raise ValueError(f"invalid TMPDIR: expected a shorter path, because {path} is too long for a socket")
            check_free(address)
        try:
            self._listeners += [socket.create_server(address) for address, _ in self._routes]
        except OSError as error:  # taken since it was checked
            raise PeerError(f"cannot listen: {error}") from error
        for listener, (_, path) in zip(self._listeners, self._routes, strict=True):
            listener.settimeout(_POLL_S)
            self._threads.append(threading.Thread(target=self._accept, args=(listener, path), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for thread in self._threads:  # one that still waits for a connection would keep its port busy
            thread.join()
        for listener in self._listeners:
            listener.close()

    def _accept(self, listener: socket.socket, path: Path) -> None:
        while not self._closing.is_set():
            try:
                connection, (host, *_) = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # too many open files, say: that passes
                print(f"cannot accept a connection: {error}", file=sys.stderr, flush=True)
                self._closing.wait(1)
                continue
            threading.Thread(target=_pass_on, args=(connection, host, path, self._closing), daemon=True).start()


def _pass_on(connection: socket.socket, host: str, path: Path, closing: threading.Event) -> None:
    """Carry both directions of one connection until either ends."""
    with connection, contextlib.suppress(OSError):
        head = read_exactly(connection, _HEAD, deadline_in(ADMIT_S))
        if not is_client_hello(head):
            print(f"dropped a connection from {host}: it does not begin with TLS", file=sys.stderr, flush=True)
            return
        with _dial(path, closing) as engine:
            engine.sendall(head)
            connection.settimeout(None)
            tune(connection)
            back = threading.Thread(target=_carry, args=(engine, connection), daemon=True)
            back.start()
            _carry(connection, engine)
            back.join()


def _dial(path: Path, closing: threading.Event) -> socket.socket:
    """Connect to this host's engine, which may not listen yet: the other one would need seconds to dial again."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        engine = socket.socket(socket.AF_UNIX)
        try:
            engine.connect(str(path))
            return engine
        except OSError:
            engine.close()
            if closing.wait(_DIAL_AGAIN_S) or time.monotonic() > deadline:
                raise


def is_client_hello(head: bytes) -> bool:
    """Whether a connection begins with a handshake record (22) of TLS (3.x) that holds a ClientHello (1)."""
    return head[0] == 22 and head[1] == 3 and head[5] == 1


def _carry(source: socket.socket, sink: socket.socket) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            sink.sendall(buffer[:count])
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
