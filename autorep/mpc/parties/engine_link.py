"""The engine's own connection between the parties: one per lane, under TLS if the parties have certificates."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spu import libspu

from autorep.mpc.engines import Engine
from autorep.mpc.parties.task import START_TIMEOUT_S, Task, socket_name
from autorep.mpc.parties.tls import Identity

_LINK_TIMEOUT_MS = 3_600_000  # a dead peer is noticed by the channel, not by waiting


def make_link(task: Task, engine: Engine, rank: int, lane: int) -> Any:
    """Connect lane number `lane` to the others, which do the same. Ends this process if that takes too long."""
    description = libspu.link.Desc()
    description.id = f"lane{lane}"  # the engine counts by this name
    description.recv_timeout_ms = _LINK_TIMEOUT_MS
    description.connect_retry_times = 600
    description.connect_retry_interval_ms = 100
    seen = [f"{host}:{port}" for host, port in task.links_seen[lane][rank]]
    others = ", ".join(address for each, address in enumerate(seen) if each != rank)
    if task.identity:
        seen[rank] = f"unix:{socket_name(lane)}"
        _put_under_tls(description, task.identity)
    for role, address in zip(engine.roles, seen, strict=True):
        description.add_party(role, address)
    with _limited(START_TIMEOUT_S, f"{engine.roles[rank]}: the engine's link with {others} was not made"):
        return libspu.link.create_brpc(description, rank)


def _put_under_tls(description: libspu.link.Desc, identity: Identity) -> None:
    """Trust the peer's certificate alone. With its default depth of 0 the engine would verify nothing."""
    description.enable_ssl = True
    for options in (description.client_ssl_opts, description.server_ssl_opts):
        options.cert.certificate_path, options.cert.private_key_path = identity.certificate, identity.key
        options.verify.ca_file_path, options.verify.verify_depth = identity.peer, 1


@contextmanager
def _limited(seconds: float, what: str) -> Iterator[None]:
    """End this process if the block takes longer: the engine retries in silence, and cannot be interrupted."""
    def give_up() -> None:
        print(f"error: {what} within {seconds:g} s: it takes that address from here, and this host's from there",
              file=sys.stderr, flush=True)
        os._exit(3)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
