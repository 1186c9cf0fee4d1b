"""What is printed reaches any terminal."""

from __future__ import annotations

import sys


def accept_any_text() -> None:
    """Let letters that the terminal does not have be printed as escapes, \\xe9, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")
