"""Start both parties, and end both whatever happens."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from autorep.mpc.bundle.files import make_folder
from autorep.mpc.engines import Network, find_engine
from autorep.mpc.parties.channel import Address
from autorep.mpc.parties.proxy import ShapedLink
from autorep.mpc.parties.task import LAUNCHER, Task
from autorep.mpc.ring.fixed_point import FixedPoint

SERVER_HOST, CLIENT_HOST, PROXY_HOST = "127.0.0.2", "127.0.0.3", "127.0.0.1"
LAST_PORT = 65535
_GRACE_S = 5.0
_SETTINGS = {
    # One thread: the engine's matrix products are small, and starting a team of threads takes 80 ms each time.
    "OMP_THREAD_LIMIT": "1",
    # Freed memory is kept [bytes]: to return and request it again makes some networks 1.5 times slower.
    "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**26),
}
_ROOT = Path(__file__).resolve().parents[3]


class RunError(RuntimeError):
    """A run that failed; the message holds what both parties said."""


def engine_python() -> str:
    """The interpreter that has the engine: this one, or the one of .venv-mpc.

    Raises:
        RunError: neither has it.
    """
    if find_spec("spu") is not None:
        return sys.executable
    for folder in (Path.cwd(), _ROOT):
        candidate = folder / ".venv-mpc" / "bin" / "python"
        if candidate.exists():
            return str(candidate)
    raise RunError("the secure-computation engine is not installed: bash scripts/setup_mpc.sh makes .venv-mpc with it")


def check_hosts() -> None:
    """Raise RunError if this computer lacks the addresses of the parties."""
    for host in (SERVER_HOST, CLIENT_HOST):
        with socket.socket() as probe:
            try:
                probe.bind((host, 0))
            except OSError as error:
                raise RunError(f"the parties need the address {host}, which Linux has and this computer has not "
                               f"({error.strerror}): on macOS add it by sudo ifconfig lo0 alias {host} up") from error


def free_port(host: str) -> int:
    """A port of `host` that no program listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def plan_addresses(port: int | None, network: Network, lanes: int) -> tuple[dict, list[tuple[Address, Address, bool]]]:
    """The address fields of a Task, and the routes of the proxies between them (none on the loopback).

    Args:
        port: first of 1 + `lanes` ports, which both parties use, each on its own address; None: any that are free.

    Raises:
        ValueError: there are no such ports.
    """
    if port is not None and not 1 <= port <= LAST_PORT - lanes:
        raise ValueError(f"invalid port={port}: expected 1 to {LAST_PORT - lanes}, because the {lanes} after it are "
                         "used too")
    control = (SERVER_HOST, port or free_port(SERVER_HOST))
    links = tuple(tuple((host, port + 1 + lane if port else free_port(host)) for host in (SERVER_HOST, CLIENT_HOST))
                  for lane in range(lanes))
    fields = {"links": links, "links_seen": links, "control": control, "control_seen": control}
    if not network.shaped:
        return fields, []
    seen = tuple(tuple((PROXY_HOST, free_port(PROXY_HOST)) for _ in lane) for lane in links)
    seen_control = (PROXY_HOST, free_port(PROXY_HOST))
    routes = [(seen_control, control, True)]
    for (seen_server, seen_client), (server, client) in zip(seen, links, strict=True):
        routes += [(seen_server, server, True), (seen_client, client, False)]
    return {**fields, "links_seen": seen, "control_seen": seen_control}, routes


def run_task(bundle: str, masking: str, engine: str, network: Network, fixed: FixedPoint, *, images: int, batch: int,
             queries: int, port: int | None, out: Path) -> Task:
    """Run both parties to their end; they leave their results in `out`/server and `out`/client.

    Raises:
        RunError: a party failed, or cannot be started here; no party is left running.
        ValueError: an invalid `port` or `out`.
    """
    check_hosts()
    out = make_folder(out.resolve())
    for role in ("server", "client"):
        shutil.rmtree(out / role, ignore_errors=True)
    fields, routes = plan_addresses(port, network, find_engine(engine).lanes)
    task = Task(bundle=str(Path(bundle).resolve()), masking=masking, engine=engine, fixed=fixed, images=images,
                batch=batch, queries=queries, secret=secrets.token_hex(32), out=str(out), **fields)
    task.save(out / "task.json")
    link = ShapedLink(network, routes) if network.shaped else contextlib.nullcontext()
    with link:
        _run_parties(out)
    return task


def _run_parties(out: Path) -> None:
    parties = {}
    try:
        for role in ("server", "client"):
            parties[role] = _start(out, role)
        _wait(parties)
    finally:
        for process in parties.values():
            _end(process)
        for scratch in out.glob("BeaverCache.*"):  # the engine leaves it in its working directory
            shutil.rmtree(scratch, ignore_errors=True)
    failed = [role for role, process in parties.items() if process.returncode]
    if failed:
        said = [line for role in parties for line in _last_words(out, role, parties[role].returncode)]
        raise RunError("the run failed: " + "; ".join(dict.fromkeys(said)))


def _start(out: Path, role: str) -> subprocess.Popen:
    environment = {**_SETTINGS, **os.environ, "PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu",
                   LAUNCHER: str(os.getpid())}
    with open(out / f"{role}.err", "w") as errors:
        return subprocess.Popen([engine_python(), "-m", "autorep.mpc.parties.party", str(out / "task.json"), role],
                                stdout=errors, stderr=errors, env=environment, cwd=out, start_new_session=True)


def _wait(parties: dict[str, subprocess.Popen]) -> None:
    """Return when both have ended, or a few seconds after one has failed."""
    deadline = None
    while any(process.poll() is None for process in parties.values()):
        if deadline is None and any(process.poll() for process in parties.values()):
            deadline = time.monotonic() + _GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_words(out: Path, role: str, code: int) -> list[str]:
    lines = (out / f"{role}.err").read_text(errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return [errors[-1] if errors[-1].startswith(role) else f"{role}: {errors[-1]}"]
    if code:
        reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return [f"{role}: {reason}" + (f", last line: {lines[-1]}" if lines else "")]
    return []
