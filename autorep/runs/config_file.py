"""A configuration as JSON text with a version."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from autorep.config import PARTS, RunConfig

CONFIG_VERSION = 1
# What fields that an older file lacks meant when it was written.
_OLDER = {"gate": {"score_init": "uniform"}, "dapa": {"scale_x2": 0.1},
          "budget": {"schedule": "linear", "anneal_fraction": 0.6}}


def to_json(config: RunConfig) -> str:
    """The configuration as JSON text with its version."""
    return json.dumps({"version": CONFIG_VERSION, **asdict(config)}, indent=2)


def from_json(text: str) -> RunConfig:
    """The inverse of `to_json`; also for files of older versions of this package.

    Raises:
        ValueError: another version of the format, a field that this version does not know, or a damaged file.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"a configuration is an object of fields, and this is {text[:40]!r}")
    version = values.pop("version", None)
    if version != CONFIG_VERSION:
        raise ValueError(f"configuration of version {version!r}: this autorep reads version {CONFIG_VERSION}; "
                         "use the autorep that wrote it, or train again")
    values.pop("act_type", None)  # older files say it beside the gate, which decides it
    try:
        for name, cls in PARTS.items():
            if values.get(name) is not None:
                values[name] = _strict(cls, _OLDER.get(name, {}) | values[name])
        return _strict(RunConfig, values)
    except TypeError as error:  # a text where a number belongs, a missing field
        raise ValueError(f"damaged configuration: {error}") from error


def _strict(cls: type, values: dict) -> Any:
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)}; it has {sorted(f.name for f in fields(cls))}")
    return cls(**values)
