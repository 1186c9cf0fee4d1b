"""One party on this host: when it ends, or the other host's, or the connection between the hosts, so do the others."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path

from autorep.mpc.parties.framing import Connection, PeerError
from autorep.mpc.parties.guard import Guard
from autorep.mpc.parties.launch import RunError, end_party, last_words, start_party
from autorep.mpc.parties.negotiation import hear, tell
from autorep.mpc.parties.task import Task, socket_name

_POLL_S, GRACE_S = 0.1, 5.0
STOPPED = "the service was stopped"


def run_party(task: Task, role: str, other_host: Connection, stopping: threading.Event | None = None) -> None:
    """Run one party in a process of its own until its end; it leaves its results in `task.out`/`role`.

    The other host is told that this party failed and never why: an error may name a secret value, or a file.

    Args:
        other_host: says so, should the other party fail, and closes with the process that started that one.
        stopping: set to end the party early.

    Raises:
        RunError: a party failed, the other host is gone, or `stopping` was set. The party is not running any more.
        PeerError, ValueError: the engine's ports cannot be listened on.
    """
    out, rank = Path(task.out), ("server", "client").index(role)
    try:
        with Guard([(addresses[rank], out / socket_name(lane)) for lane, addresses in enumerate(task.links)]):
            _run(task, role, other_host, stopping)
    except (PeerError, ValueError):  # the guard's
        _tell(other_host, _failed(role))
        raise


def _run(task: Task, role: str, other_host: Connection, stopping: threading.Event | None) -> None:
    process = start_party(task, role)
    own: list[str] = []
    heard: list[str] = []
    try:
        while process.poll() is None and not own + heard:
            if stopping is not None and stopping.is_set():
                own = [STOPPED]
            else:
                heard = _listen(other_host, _POLL_S)
        if heard:
            _wait(process)
        if code := process.poll():
            own = last_words(Path(task.out), role, code)
    finally:
        end_party(process)
    if process.returncode == 0:
        return
    if own:
        _tell(other_host, STOPPED if own == [STOPPED] else _failed(role))
    raise RunError("; ".join(dict.fromkeys(own + (heard or _listen(other_host, GRACE_S)))))


def _failed(role: str) -> str:
    return f"the {role}'s party failed: its own output says why"


def _tell(other_host: Connection, why: str) -> None:
    with contextlib.suppress(PeerError):
        tell(other_host, {"error": why})


def _wait(process: subprocess.Popen) -> None:
    """Let a party whose peer is gone find that out, and end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _listen(other_host: Connection, seconds: float) -> list[str]:
    """Why the other host ended the session; nothing if it has not, or says nothing for so long."""
    try:
        hear(other_host, seconds)
    except TimeoutError:
        return []
    except PeerError as error:
        return [str(error)]
    return ["the other host spoke out of turn"]
