"""Errors and warnings of the package in the words of the command line."""

from __future__ import annotations

import re

from autorep.cli.flags import FLAGS, text
from autorep.config import PARTS
from autorep.option import InvalidSetting

# "optim.lr" -> "--w_lr": messages of the package name fields in backquotes.
_WRITTEN = {f"{flag.owner}.{flag.field}".lstrip("."): flag.names[0] for flag in FLAGS.values() if flag.field}
_OWNERS = {cls: owner for owner, cls in PARTS.items()}


def in_flags(message: object) -> str:
    """A message with flags in place of the fields that it names."""
    if isinstance(message, InvalidSetting):
        owner = _OWNERS.get(message.owner, "")
        flag = next((f for f in FLAGS.values() if (f.owner, f.field) == (owner, message.name)), None)
        if flag is not None:
            value = flag.option.given(message.value)
            message = f"invalid {flag.names[0]}={text(value)}: expected {message.expected}"
    return re.sub(r"`([\w.]+)`", lambda found: _WRITTEN.get(found[1], found[0]), str(message))
