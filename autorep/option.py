"""How a setting is declared: once, on its field, with default, flag, help and group. Everything else is derived."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

SAME = object()
LARGEST = 10**18  # of any number: far beyond sense, and within what float32 and 64-bit integers hold


@dataclass(frozen=True)
class Option:
    """How the command line gives a field.

    Args:
        flag: without dashes.
        choices: the valid values, besides None where the field may be None.
        metavar: what `--help` shows for the value.
        group: heading in `--help`; "" is that of the dataclass.
        autorep: the default in train_autorep.py, where it differs.
        search_only: whether it does nothing in train_baseline.py.
        names: how the flag is written, where that is not `--flag`.
        switch: a flag (name, help) without which the field is None.
        switched_on: the value with the switch alone, where the field's own default is None.
        scale: the field is a whole number, this many times the one on the command line.
    """

    flag: str
    help: str
    choices: tuple[str, ...] = ()
    metavar: str = ""
    group: str = ""
    autorep: Any = SAME
    search_only: bool = False
    names: tuple[str, ...] = ()
    switch: tuple[str, str] | None = None
    switched_on: Any = None
    scale: int | None = None

    @property
    def is_path(self) -> bool:
        """Whether the value names a file or a folder."""
        return self.metavar.endswith(("FILE", "FOLDER"))

    def taken(self, given: Any) -> Any:
        """From the value on the command line to the field's."""
        if self.scale is None or given is None:
            return given
        scaled = self.scale * given
        # The field refuses what is too large, and a part of one.
        return scaled if abs(scaled) > LARGEST or 0 < abs(scaled) <= 0.5 else round(scaled)

    def given(self, value: Any) -> Any:
        """The inverse of `taken`."""
        return value if self.scale is None or value is None else value / self.scale


def option(default: Any, flag: str, text: str, **how: Any) -> Any:
    """A dataclass field with the flag that gives it; `how` as in `Option`. A default of `...` makes it required."""
    value = {} if default is ... else {"default": default}
    return field(**value, metadata={"option": Option(flag, text, **how)})


def _at_home(path: str | None) -> str | None:
    """A path with the home folder for a leading ~, which the shell leaves alone in --flag=~/folder."""
    return os.path.expanduser(path) if path else path


class InvalidSetting(ValueError):
    """A value that a field cannot have. The command line names the flag in place of the field."""

    def __init__(self, owner: type, name: str, value: Any, expected: str) -> None:
        super().__init__(f"invalid {name}={value!r}: expected {expected}")
        self.owner, self.name, self.value, self.expected = owner, name, value, expected


class Settings:
    """Base of the configuration dataclasses."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if "option" in each.metadata and each.metadata["option"].is_path:
                object.__setattr__(self, each.name, _at_home(getattr(self, each.name)))
            choices = each.metadata["option"].choices if "option" in each.metadata else ()
            value = getattr(self, each.name)
            self.expect(not isinstance(value, (int, float)) or abs(value) <= LARGEST or each.name == "seed", each.name,
                        f"a number of at most {LARGEST:.0e} in size")  # nor NaN, which compares with nothing
            optional = "None" in str(each.type)
            self.expect(not choices or value in choices or optional and value is None, each.name,
                        f"one of {', '.join(choices)}{' or None' if optional else ''}")

    def expect(self, condition: bool, name: str, expected: str) -> None:
        """Raises InvalidSetting for the field `name` unless the condition holds."""
        if not condition:
            raise InvalidSetting(type(self), name, getattr(self, name), expected)

    @classmethod
    def for_search(cls, **values: Any) -> Any:
        """With the defaults of train_autorep.py in place of those of train_baseline.py."""
        options = {each.name: each.metadata["option"] for each in fields(cls) if "option" in each.metadata}
        return cls(**{name: option.autorep for name, option in options.items() if option.autorep is not SAME} | values)
