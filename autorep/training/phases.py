"""The phases of a run."""

from __future__ import annotations

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
