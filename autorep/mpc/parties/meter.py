"""What a run sent, read from the engine's profile: the engine reports it nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ASIDE = "aside"  # the name of executions that run at the same time, so their profiles are mixed up
_START = re.compile(r"\[Profiling\] SPU execution (\S+) completed")
_TOTAL = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")


@dataclass(frozen=True)
class Traffic:
    """What one party sent and received in one execution: bytes, and messages (rounds, if every message is one)."""

    sent: int = 0
    received: int = 0
    sent_actions: int = 0
    received_actions: int = 0


def parse_profile(path: Path) -> list[tuple[str, Traffic]]:
    """(name, traffic) of every execution in a log of the engine, in order, without those named ASIDE.

    Raises:
        ValueError: an execution without totals, because the log was cut short or the engine changed its wording.
    """
    found: list[tuple[str, Traffic]] = []
    name = None
    for line in path.read_text(errors="replace").splitlines():
        if start := _START.search(line):
            if name not in (None, ASIDE):
                raise ValueError(f"{path}: execution {name!r} has no totals")
            name = start[1]
        elif (total := _TOTAL.search(line)) and name not in (None, ASIDE):
            found.append((name, Traffic(*map(int, total.groups()))))
            name = None
    if name not in (None, ASIDE):
        raise ValueError(f"{path}: execution {name!r} has no totals")
    return found
