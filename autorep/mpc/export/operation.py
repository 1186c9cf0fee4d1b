"""An operation of a bundle before it has a name."""

from __future__ import annotations

from typing import NamedTuple

from autorep.mpc.bundle.graph import Arrays


class Operation(NamedTuple):
    """An operation without name and operands."""

    kind: str
    attrs: dict[str, tuple[int, ...]] = {}
    arrays: Arrays = {}
