"""Where the parties of a run on one computer listen, and the proxies between them."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from autorep.mpc.engines import Engine, Network
from autorep.mpc.parties.channel import Address
from autorep.mpc.parties.proxy import Route

PROXY_HOST, HOSTS = "127.0.0.1", ("127.0.0.2", "127.0.0.3", "127.0.0.4")  # HOSTS: of the parties, by rank
LAST_PORT = 65535


def free_ports(host: str, count: int) -> list[int]:
    """Different ports of `host` that no program listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


def plan_addresses(port: int | None, network: Network, engine: Engine) -> tuple[dict[str, Any], list[Route]]:
    """The address fields of a Task, and the routes of the proxies between the parties (none on the loopback).

    Args:
        port: first of the ports that every party uses, on its own address: one for its own channel with each other
            party, and one per lane; None: any that are free.

    Raises:
        ValueError: there are no such ports.
    """
    ranks, num_channels = range(engine.parties), engine.parties - 1
    count = num_channels + engine.lanes
    if port is not None and not 1 <= port <= LAST_PORT - count + 1:
        raise ValueError(f"invalid port={port}: expected 1 to {LAST_PORT - count + 1}, because the {count - 1} after "
                         "it are used too")
    ports = [list(range(port, port + count)) if port else free_ports(HOSTS[rank], count) for rank in ranks]
    control = tuple((HOSTS[first], ports[first][second - first - 1]) for first, second in engine.pairs)
    links = tuple(tuple((HOSTS[rank], ports[rank][num_channels + lane]) for rank in ranks)
                  for lane in range(engine.lanes))
    dials = [(there, second, first) for there, (first, second) in zip(control, engine.pairs, strict=True)]
    dials += [(lane[rank], viewer, rank) for lane in links for viewer in ranks for rank in ranks if rank != viewer]
    routes = _proxies(dials) if network.shaped else []
    seen = {(there, dialing): here for here, there, dialing, _ in routes}
    return {"links": links, "control": control,
            "links_seen": tuple(tuple(tuple(seen.get((there, viewer), there) for there in lane) for viewer in ranks)
                                for lane in links),
            "control_seen": tuple(seen.get(dial[:2], dial[0]) for dial in dials[:len(control)])}, routes


def _proxies(dials: list[tuple[Address, int, int]]) -> list[Route]:
    """A route for every (address, rank that dials it, rank that listens there)."""
    ports = free_ports(PROXY_HOST, len(dials))
    return [((PROXY_HOST, port), *dial) for port, dial in zip(ports, dials, strict=True)]
