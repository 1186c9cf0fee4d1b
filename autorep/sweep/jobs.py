"""A script in a process of its own: one at a time per lock, with a log, told to save when it is time to stop."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from autorep.machine.files import try_lock

POLL_SECONDS = 0.2
TAIL_LINES = 12


class Stop:
    """True once it was requested, or once `max_minutes` are over."""

    def __init__(self, max_minutes: float | None = None) -> None:
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._requested = False

    def request(self) -> None:
        """Make it true."""
        self._requested = True

    def __bool__(self) -> bool:
        return self._requested or (self._deadline is not None and time.monotonic() >= self._deadline)


def wait_for_lock(path: Path, stop: Stop) -> IO | None:
    """A lock as an open file, which frees it when closed; None if `stop` comes before another process lets it go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = False
    while not stop:
        if lock := try_lock(path):
            return lock
        if not said:
            print(f"waiting for the process that is running {path.parent}", flush=True)
        said = True
        time.sleep(POLL_SECONDS)
    return None


def run_script(words: Sequence[str], log: Path, lock: IO, stop: Stop) -> int:
    """Run a Python script to its end, or until it has saved after `stop`; its exit code. Output is added to the log."""
    with log.open("a") as output:
        # In a session of its own the script gets Ctrl-C once, through us. It holds the lock too: if we are killed, the
        # next sweep waits for it instead of failing on its folder.
        child = subprocess.Popen([sys.executable, *words], stdout=output, stderr=subprocess.STDOUT,
                                 start_new_session=True, pass_fds=[lock.fileno()])
    try:
        told = False
        while child.poll() is None:
            if stop and not told:
                child.terminate()
                told = True
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        child.kill()
        raise
    return child.returncode


def tail(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines)
