"""Reading a run folder, finished or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autorep.act_types import act_type_of
from autorep.config import RunConfig
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.report.methods import method_label
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A run folder: its configuration, rows of metrics.jsonl, summary.json and the network of last.pth.tar.

    A part that the folder does not hold is empty or None.
    """

    folder: Path
    config: RunConfig
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    model: nn.Module | None
    step: int
    num_steps: int

    @property
    def label(self) -> str:
        """The name of its method, as in the tables."""
        config = self.config
        return method_label(act_type_of(config.gate), config.gate.degree if config.gate else None,
                            config.budget.price if config.budget else None)

    @property
    def title(self) -> str:
        """What it trained, on one line."""
        budget = f", budget {self.config.budget}" if self.config.budget else ""
        return (f"{self.config.model.arch} on {self.config.data.dataset}, {self.label}{budget}, "
                f"seed {self.config.seed}")

    @property
    def state(self) -> str:
        """Whether the run is finished, and what it reached."""
        if not self.summary.get("finished"):
            at = f"at step {self.step:,} of {self.num_steps:,}" if self.model else "no checkpoint yet"
            return f"Not finished: {at}."
        return (f"Finished: test top-1 {self.summary['test_top1']:.2f} % (last epoch), "
                f"{self.summary['relu_kept']:,} of {self.summary['relu_total']:,} ReLUs kept.")

    @property
    def gates(self) -> dict[str, GatedReLU]:
        """Qualified name -> gate; empty for a baseline or without a checkpoint."""
        return dict(iter_gates(self.model)) if self.model else {}


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: the folder is not a run folder, or its files are damaged.
    """
    files = RunFolder(folder)
    config = files.read_config()
    payload = checkpoint.load(files.last) if files.last.is_file() else {}
    model = checkpoint.build_from(payload, files.last).eval() if payload else None
    return Run(folder, config, files.read_metrics(), files.read_summary(), model, payload.get("step", 0),
               payload.get("num_steps", 0))
