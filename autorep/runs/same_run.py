"""Whether two configurations describe the same run."""

from __future__ import annotations

import dataclasses
from typing import Any

from autorep.config import RunConfig

# Where and how long a run computes may change between its attempts; what it computes may not.
_MAY_CHANGE = ("gpu", "compile", "resume", "max_minutes", "print_freq", "out_dir")
_DATA_MAY_CHANGE = ("data_path", "workers")


def differences(there: RunConfig, here: RunConfig) -> list[str]:
    """The settings in which two runs differ, as "field there, here"; empty where one may resume the other."""
    return _differing(_what_it_computes(there), _what_it_computes(here))


def _what_it_computes(config: RunConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    for name in _MAY_CHANGE:
        del values[name]
    for name in _DATA_MAY_CHANGE:
        del values["data"][name]
    return values


def _differing(there: dict, here: dict, prefix: str = "") -> list[str]:
    found = []
    for name in here:
        a, b = there[name], here[name]
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differing(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} {a!r}, {b!r}")
    return found
