"""The run folder: where it is, and that one process writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autorep.config import RunConfig
from autorep.machine.files import try_lock


def run_folder(config: RunConfig) -> Path:
    """The folder of a run, under the names that users of the published scripts know."""
    teacher = config.distill.teacher_arch if config.distill else ""
    top, middle = "train_cifar", f"{config.model.arch}_{teacher}_{config.data.dataset}".replace(":", "-")
    if config.gate and config.gate.replacement != "identity":
        top += f"_{'dapa' if config.gate.replacement == 'dapa' else 'autopoly'}{config.gate.degree}"
    if config.distill:
        top += "_distil"
    if config.gate and config.gate.threshold > 0:
        top += "_relay"
        middle += f"_relay_{config.gate.threshold}"
    if config.gate is None:
        leaf = f"{config.optim.schedule}_baseline_ReLUs0lr{config.optim.lr}ep{config.epochs}_{config.ext}"
    else:
        leaf = (f"{config.optim.schedule}_ReLUs{config.budget.relu_budget / 1000}wm_lr{config.optim.score_lr}"
                f"mep{config.search_epochs}_{config.ext}")
    return Path(config.out_dir) / top / middle / leaf


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep the run folder to this process; the system frees it however the process ends.

    Raises:
        ValueError: another process is writing it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".lock")
    if lock is None:
        raise ValueError(f"another process is writing {folder}: wait for it, or start another run with --ext NAME")
    with lock:
        yield
