"""The run folder: where it is, what its files are called, and that one process writes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from autorep.config import RunConfig
from autorep.machine.files import read_json_object, to_json_text, try_lock, write_atomically
from autorep.runs.config_file import from_json, to_json
from autorep.runs.environment import environment

_CONFIG, _ENVIRONMENT, _SUMMARY = "config.json", "environment.json", "summary.json"
CHECKPOINTS = _LAST, _BEST = "last.pth.tar", "best.pth.tar"
_NUMBER = (int, float)
_ENVIRONMENT_NEEDS = {"command": list, "commit": (str, NoneType), **dict.fromkeys(
    ("python", "torch", "torchvision", "numpy", "platform", "cpu", "device"), str), "cpus": (int, NoneType),
    "threads": int}
_SUMMARY_NEEDS = {"finished": bool}
_RESULT_NEEDS = {"selection": str, **dict.fromkeys(
    ("step", "num_steps", "seconds", "relu_kept", "relu_total", "layers_with_relu", "test_top1"), _NUMBER)}
_RESULT_MAY_HAVE = {"best": {"validation_top1": _NUMBER, "test_top1": _NUMBER}, "mpc": dict,
                    "relu_budget": (int, NoneType),
                    **dict.fromkeys(("validation_top1", "price_allowed", "price_used"), _NUMBER)}


@dataclass(frozen=True)
class RunFolder:
    """One run folder. Nothing is made on disk before something is written."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def last(self) -> Path:
        """The checkpoint that resuming starts from; after the last step it holds the result."""
        return self.path / _LAST

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch that validation chose."""
        return self.path / _BEST

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / _CONFIG

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder that TensorBoard reads."""
        return self.path / "tb"

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder of a run, under the names that users of the published scripts know."""
        return cls(Path(config.out_dir) / _relative_path(config))

    def describe_(self, config: RunConfig, device: torch.device) -> None:
        """Write what is run, and where: config.json and environment.json."""
        write_atomically(self.config, to_json(config))
        write_atomically(self.path / _ENVIRONMENT, to_json_text(environment(device)))

    def summarise_(self, summary: dict[str, Any]) -> None:
        """Write summary.json, with null where a number is not finite."""
        write_atomically(self.path / _SUMMARY, to_json_text(summary))

    def read_config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
            ValueError: not a run folder, or a damaged config.json.
        """
        path = self.config
        if not path.is_file():
            raise ValueError(f"{self} is not a run folder: it holds no {_CONFIG} (both training scripts print where "
                             "their run folder is)")
        try:
            return from_json(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}; last.pth.tar beside it holds the same configuration, "
                             "with which --resume auto goes on and writes it again") from error

    def read_environment(self) -> dict[str, Any]:
        """Versions, machine, command and commit of the last attempt.

        Raises:
            ValueError: the file is missing or damaged.
        """
        path = self.path / _ENVIRONMENT
        found = read_json_object(path, lambda found: _ENVIRONMENT_NEEDS)
        words = found.get("command", ())
        if len(words) < 2 or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path} is missing, or its 'command' is damaged: remove it and {_SUMMARY} beside it, and "
                             "resume the run with --resume auto, which writes both again")
        return found

    def read_summary(self) -> dict[str, Any]:
        """What summary.json holds, {} where there is none yet. Raises ValueError where the file is damaged."""
        return read_json_object(self.path / _SUMMARY, lambda found: _SUMMARY_NEEDS | (
            _RESULT_NEEDS if found.get("finished") else {}) | {
                name: kind for name, kind in _RESULT_MAY_HAVE.items() if name in found})

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without damaged ones: with a warning, but for a last one that a kill cut short."""
        lines = self.metrics.read_text(errors="replace").splitlines() if self.metrics.is_file() else []
        rows = [_row(line) for line in lines]
        if damaged := [number for number, row in enumerate(rows[:-1], 1) if row is None]:
            warnings.warn(f"{self.metrics}: {len(damaged)} damaged rows are left out, the first is line {damaged[0]}",
                          stacklevel=2)
        return [row for row in rows if row is not None]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder to this process; the system frees it however the process ends.

        Raises:
            ValueError: another process is writing it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = try_lock(self.path / ".lock")
        if lock is None:
            raise ValueError(f"another process is writing {self}: wait for it, or start another run with `ext`=NAME")
        with lock:
            for left in self.path.glob(".*"):
                # By a writer that was killed: the lock shows that it is gone.
                if left.suffix[1:].isdigit() and left.is_file():
                    left.unlink()
            yield


def _relative_path(config: RunConfig) -> Path:
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
        budget = config.budget
        limits = "" if budget.relu_budget is None else f"_ReLUs{budget.relu_budget / 1000}"
        if budget.price:
            limits += f"_{budget.price.replace(':', '-')}_{budget.price_budget}_"
        leaf = f"{config.optim.schedule}{limits}wm_lr{config.optim.score_lr}mep{config.search_epochs}_{config.ext}"
    return Path(top) / middle / leaf


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
