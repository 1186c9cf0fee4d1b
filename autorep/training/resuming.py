"""Which checkpoint a run resumes from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from autorep.config import RunConfig
from autorep.machine.distributed import is_main
from autorep.machine.files import write_atomically
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.runs.same_run import differences, weight_sums
from autorep.training.trainer import Trainer


def find_checkpoint(config: RunConfig, folder: RunFolder) -> dict[str, Any] | None:
    """The checkpoint that `config.resume` asks for, None for a new run.

    Raises:
        ValueError: the folder already holds a run, the checkpoint is of a run with other settings or other weights,
            or the folder is further along than it.
        FileNotFoundError: no such checkpoint.
    """
    if config.resume in (None, "auto") and not folder.last.exists() and folder.read_summary().get("finished"):
        raise ValueError(f"{folder} holds a finished run without its {folder.last.name}: start another one beside it "
                         "with `ext`=NAME, or remove the folder")
    if config.resume is None:
        if folder.last.exists():
            raise ValueError(f"{folder} already holds a run: resume it with `resume`=auto, or start another one beside "
                             "it with `ext`=NAME")
        return None
    path = folder.last if config.resume == "auto" else Path(config.resume)
    if config.resume == "auto" and not folder.last.exists():
        return None
    payload = _load(path, folder)
    _require_same_run(path, payload, config)
    if path.resolve() != folder.last.resolve() and folder.last.exists():
        here = _load(folder.last, folder)
        _require_same_run(folder.last, here, config)
        if here["step"] > payload["step"]:
            raise ValueError(f"{folder.last} is further along than {path}: resume it with `resume`=auto, or remove it")
    return payload


def _load(path: Path, folder: RunFolder) -> dict[str, Any]:
    try:
        return checkpoint.load_to_resume(path)
    except ValueError as error:
        if path.resolve() == folder.last.resolve() and folder.best.is_file():
            raise ValueError(f"{error}. Or remove it, and go back to `resume`={folder.best}") from error
        raise


def _require_same_run(path: Path, payload: dict[str, Any], config: RunConfig) -> None:
    if differing := differences(checkpoint.config_of(payload, path), config):
        raise ValueError(f"{path} is of a run with other settings (there, here): {'; '.join(differing)}. Give the "
                         "same settings, or start a new run with `ext`=NAME")
    there = payload["weight_sums"]
    if others := [f"`{name}`" for name, here in weight_sums(config).items() if there.get(name, here) != here]:
        raise ValueError(f"{path} is of a run that began with other weights than those that are in the file of "
                         f"{', '.join(others)} now: put them back, or start a new run with `ext`=NAME")


def bring_over_(source: Path, folder: RunFolder, trainer: Trainer) -> None:
    """Complete the folder of a run that resumes from a checkpoint in another folder: copy what is known there."""
    there = RunFolder(source.parent)
    if there.path.resolve() == folder.path.resolve():
        return
    best = best_checkpoint(there, trainer)
    if best is None:
        trainer.best = {}  # on every rank: it decides what the ranks evaluate together
    if not is_main():
        return
    if best is not None:
        checkpoint.save(folder.best, best)
    if there.metrics.is_file() and not folder.metrics.exists():
        write_atomically(folder.metrics, there.metrics.read_bytes())
    checkpoint.save(folder.last, checkpoint.load(source))


def best_checkpoint(folder: RunFolder, trainer: Trainer) -> dict[str, Any] | None:
    """The checkpoint of the epoch that validation chose; None where the folder has that of another epoch or run."""
    path, step = folder.best, trainer.best.get("step")
    if step is None or not path.is_file():
        return None
    payload = checkpoint.load(path)
    if payload.get("step") == step and not differences(checkpoint.config_of(payload, path), trainer.config):
        return payload
    warnings.warn(f"{path} is not from step {step} of this run, which validation chose: it is left out", stacklevel=2)
    return None
