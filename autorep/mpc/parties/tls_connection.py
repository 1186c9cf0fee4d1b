"""A connection under TLS that two threads may use."""

from __future__ import annotations

import contextlib
import select
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


class TlsConnection:
    """A connection under TLS that one thread may read while another writes, as they may with a plain socket.

    OpenSSL must not be called for one connection by two threads at once. So a lock guards every call, no call waits,
    and the waiting is done beside the lock.
    """

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls, self._lock, self._timeout = tls, threading.Lock(), tls.gettimeout()
        tls.setblocking(False)

    def settimeout(self, seconds: float | None) -> None:
        """The longest that one call waits for the peer [s]; None: for ever."""
        self._timeout = seconds

    def own_host(self) -> str:
        """The address of this end."""
        return self._tls.getsockname()[0]

    def peer_host(self) -> str:
        """The address of the other end."""
        return self._tls.getpeername()[0]

    def recv_into(self, buffer: memoryview) -> int:
        """Read what is there, at least one byte; 0 at the end of the connection."""
        return self._when_ready(lambda: self._tls.recv_into(buffer))

    def sendall(self, data: bytes) -> None:
        """Send all bytes."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._when_ready(lambda rest=rest: self._tls.send(rest)):]

    def close(self) -> None:
        """Close the connection, without waiting for the peer."""
        with self._lock, contextlib.suppress(OSError):
            self._tls.close()

    def _when_ready(self, call: Callable[[], _Result]) -> _Result:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            with self._lock:
                try:
                    return call()
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                poll = select.poll()  # unlike select, for descriptors of any number
                poll.register(self._tls, wanted)
            left = None if deadline is None else 1000 * max(0.0, deadline - time.monotonic())
            if not poll.poll(left):
                raise TimeoutError("timed out")
