"""Whether two configurations describe the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path, PurePath
from typing import Any

from autorep.config import RunConfig
from autorep.runs.folder import CHECKPOINTS

# Where and how long a run computes may change between its attempts; what it computes may not.
_MAY_CHANGE = ("gpu", "compile", "resume", "max_minutes", "print_freq", "out_dir")
_DATA_MAY_CHANGE = ("data_path", "workers")
_WEIGHTS = ("pretrained_path", "teacher_path", "checkpoint_path")
_RUN_FOLDER_DEPTH = 4  # parts of a checkpoint's path below out_dir


def differences(there: RunConfig, here: RunConfig) -> list[str]:
    """The settings in which two runs differ, as "field there, here"; empty where one may resume the other.

    Weights are the same where they have the same name, and those of a run where they lie in the same run folder: the
    folder that all of it is in may have moved.
    """
    return _differing(*(_what_it_computes(dataclasses.asdict(config)) for config in (there, here)))


def fingerprint(values: dict[str, Any]) -> str:
    """A short text that differs between runs of other settings, from what config.json holds.

    Not from what is read of it: later versions of the package read further settings into an older file.
    """
    return hashlib.sha256(json.dumps(_what_it_computes(values), sort_keys=True).encode()).hexdigest()[:12]


def weight_sums(config: RunConfig) -> dict[str, str]:
    """Field -> a sum of the file of weights that it names, where that is there: names stay when contents change."""
    start = config.checkpoint_path
    files = {"checkpoint_path": start, "model.pretrained_path": None if start else config.model.pretrained_path,
             "distill.teacher_path": config.distill and config.distill.teacher_path}
    return {name: _sum_of_tensors(Path(file)) for name, file in files.items() if file and Path(file).is_file()}


def _sum_of_tensors(file: Path) -> str:
    """Of all tensors in a file of torch.save: how long a training took, which is there too, differs when it repeats."""
    try:
        with zipfile.ZipFile(file) as archive:
            sums = [(member.CRC, member.file_size) for member in archive.infolist() if "/data/" in member.filename]
    except zipfile.BadZipFile:  # of an early torch, or damaged
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def _what_it_computes(values: dict[str, Any]) -> dict[str, Any]:
    data = {name: value for name, value in values["data"].items() if name not in _DATA_MAY_CHANGE}
    return {name: value for name, value in values.items() if name not in _MAY_CHANGE} | {"data": data}


def _differing(there: dict, here: dict, prefix: str = "") -> list[str]:
    found = []
    for name in here:
        a, b = there[name], here[name]
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differing(a, b, f"{prefix}{name}.")
        elif a != b and not (name in _WEIGHTS and a and b and _same_weights(a, b)):
            found.append(f"{prefix}{name} {a!r}, {b!r}")
    return found


def _same_weights(a: str, b: str) -> bool:
    depth = _RUN_FOLDER_DEPTH if PurePath(a).name in CHECKPOINTS else 1
    ends = ([part for part in PurePath(path).parts if part != ".."][-depth:] for path in (a, b))
    return all(x == y for x, y in zip(*map(reversed, ends), strict=False))  # from ../weights/ less of it is seen
