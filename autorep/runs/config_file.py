"""A configuration as JSON text with a version."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from autorep.config import PARTS, RunConfig

CONFIG_VERSION = 1
_TYPES = {"bool": bool, "int": int, "float": (int, float), "str": str} | {cls.__name__: cls for cls in PARTS.values()}
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


def _fits(value: Any, kind: str) -> bool:
    """Whether a value has the type that a field is annotated with, such as "int | None"."""
    names = kind.split(" | ")
    if value is None:
        return "None" in names
    if isinstance(value, bool):  # which is an int to Python
        return "bool" in names
    return isinstance(value, tuple(_TYPES[name] for name in names if name != "None"))


def _strict(cls: type, values: dict) -> Any:
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {sorted(unknown)}; it has {sorted(f.name for f in fields(cls))}")
    for each in fields(cls):
        if each.name in values and not _fits(values[each.name], each.type):
            raise ValueError(f"damaged configuration: {each.name}={values[each.name]!r}, expected {each.type}")
    return cls(**values)
