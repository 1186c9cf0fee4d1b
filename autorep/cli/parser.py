"""The parsers of both scripts."""

from __future__ import annotations

import argparse
from typing import Any

from autorep.cli.flags import FLAGS, RECIPES, defaults, parse_bool


def build_parser(kind: str) -> argparse.ArgumentParser:
    """The parser of train_baseline.py ("baseline") or train_autorep.py ("autorep"); yields the given flags only."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    values = defaults(kind)
    for name, flag in FLAGS.items():
        options: dict[str, Any] = {"nargs": "?", "const": True} if flag.type is parse_bool else {}
        text = flag.help if values[name] is None else f"{flag.help} (default: {values[name]})"
        choices = tuple(RECIPES[kind]) if name == "recipe" else flag.choices
        parser.add_argument(*(flag.names or (f"--{name}",)), dest=name, type=flag.type, choices=choices, help=text,
                            metavar=None if choices else "X", **options)
    return parser
