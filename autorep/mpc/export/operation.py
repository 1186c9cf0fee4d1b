"""An operation of a bundle before it has a name, and the sizes that torch gives for its windows."""

from __future__ import annotations

from typing import Any, NamedTuple

from autorep.mpc.bundle.graph import Arrays


class Operation(NamedTuple):
    """An operation without name and operands."""

    kind: str
    attrs: dict[str, tuple[int, ...]] = {}
    arrays: Arrays = {}


def two(value: Any) -> tuple[int, int]:
    """Height and width, where one number stands for both."""
    return (value, value) if isinstance(value, int) else tuple(value)
