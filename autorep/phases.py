"""The phases of a run, and the signals that end it early."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autorep.config import RunConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one optimiser: "baseline", "search" (masks move) or "finetune" (masks frozen)."""

    name: str
    start: int
    end: int

    @property
    def num_steps(self) -> int:
        """Length in steps."""
        return self.end - self.start


def plan_phases(config: RunConfig, steps_per_epoch: int) -> list[Phase]:
    """The phases of a run, in order; empty ones left out."""
    search = config.search_epochs * steps_per_epoch
    end = search + config.epochs * steps_per_epoch
    last = "baseline" if config.gate is None else "finetune"
    phases = [Phase("search", 0, search), Phase(last, search, end)]
    return [phase for phase in phases if phase.num_steps > 0]


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block the first SIGTERM or SIGINT calls `stop`; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may install handlers
        return
    seen = []

    def handle(number: int, _frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        print(f"{signal.Signals(number).name}: saving after this step (again to quit at once)", flush=True)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
