"""Start all parties, and end all whatever happens."""

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
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from autorep.mpc.bundle.files import make_folder
from autorep.mpc.engines import ROLES, Network, find_engine
from autorep.mpc.parties.addresses import HOSTS, plan_addresses
from autorep.mpc.parties.proxy import ShapedLink
from autorep.mpc.parties.task import LAUNCHER, Task
from autorep.mpc.ring.fixed_point import FixedPoint

_GRACE_S = 5.0
_SETTINGS = {
    # One thread: the engine's matrix products are small, and starting a team of threads takes 80 ms each time.
    "OMP_THREAD_LIMIT": "1",
    # Freed memory is kept [bytes]: to return and request it again makes some networks 1.5 times slower.
    "MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_TOP_PAD_": str(2**26),
}
_ROOT = Path(__file__).resolve().parents[3]


class RunError(RuntimeError):
    """A run that failed; the message holds what the parties said."""


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


def check_hosts(num_parties: int) -> None:
    """Raise RunError if this computer lacks the addresses of the parties."""
    for host in HOSTS[:num_parties]:
        with socket.socket() as probe:
            try:
                probe.bind((host, 0))
            except OSError as error:
                raise RunError(f"the parties need the address {host}, which Linux has and this computer has not "
                               f"({error.strerror}): on macOS add it by sudo ifconfig lo0 alias {host} up") from error


def run_task(bundle: str, masking: str, engine: str, network: Network, fixed: FixedPoint, *, images: int, batch: int,
             queries: int, port: int | None, out: Path) -> Task:
    """Run all parties to their end; each leaves its results in a folder of `out` with the name of its role.

    Raises:
        RunError: a party failed, or cannot be started here; no party is left running.
        ValueError: an invalid `port` or `out`.
    """
    known = find_engine(engine)
    check_hosts(known.parties)
    fields, routes = plan_addresses(port, network, known)
    out = make_folder(out.resolve())
    for role in ROLES:
        shutil.rmtree(out / role, ignore_errors=True)
    task = Task(bundle=str(Path(bundle).resolve()), masking=masking, engine=engine, fixed=fixed, images=images,
                batch=batch, queries=queries, secret=secrets.token_hex(32), out=str(out), **fields)
    link = ShapedLink(network, routes) if network.shaped else contextlib.nullcontext()
    with link:
        _run_parties(task, known.roles)
    return task


def _run_parties(task: Task, roles: Sequence[str]) -> None:
    parties, out = {}, Path(task.out)
    try:
        for role in roles:
            parties[role] = start_party(task, role)
        _wait(parties)
    finally:
        for process in parties.values():
            end_party(process)
        for scratch in out.glob("BeaverCache.*"):  # the engine leaves it in its working directory
            shutil.rmtree(scratch, ignore_errors=True)
    failed = [role for role, process in parties.items() if process.returncode]
    if failed:
        said = [line for role in parties for line in last_words(out, role, parties[role].returncode)]
        raise RunError("the run failed: " + "; ".join(dict.fromkeys(said)))


def start_party(task: Task, role: str) -> subprocess.Popen:
    """Start a party in its folder. On Linux it ends with the thread that starts it.

    It reads the task from its standard input, because the secret of the run is to be in no file.
    """
    out = Path(task.out)
    environment = {**_SETTINGS, **os.environ, "PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu",
                   LAUNCHER: str(os.getpid())}
    with open(out / f"{role}.err", "w") as errors:
        process = subprocess.Popen([engine_python(), "-m", "autorep.mpc.parties.party", str(out), role],
                                   stdin=subprocess.PIPE, stdout=errors, stderr=errors, env=environment, cwd=out,
                                   start_new_session=True)
    with contextlib.suppress(BrokenPipeError), process.stdin:  # of a party that has ended: its exit code says so
        process.stdin.write(task.to_json().encode())
    return process


def _wait(parties: dict[str, subprocess.Popen]) -> None:
    """Return when all have ended, or a few seconds after one has failed."""
    deadline = None
    while any(process.poll() is None for process in parties.values()):
        if deadline is None and any(process.poll() for process in parties.values()):
            deadline = time.monotonic() + _GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.02)


def end_party(process: subprocess.Popen) -> None:
    """Kill a party and its children, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_words(out: Path, role: str, code: int) -> list[str]:
    """Why a party failed, in one line: its error, or else its exit code; nothing for one that did not fail."""
    lines = (out / f"{role}.err").read_text(errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return [errors[-1] if errors[-1].startswith(role) else f"{role}: {errors[-1]}"]
    if code:
        reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return [f"{role}: {reason}" + (f", last line: {lines[-1]}" if lines else "")]
    return []
