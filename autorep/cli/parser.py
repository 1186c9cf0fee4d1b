"""The parsers of both scripts."""

from __future__ import annotations

import argparse
from typing import Any

from autorep.cli.flags import FLAGS, RECIPES, defaults, parse_bool, text


def build_parser(kind: str) -> argparse.ArgumentParser:
    """The parser of train_baseline.py ("baseline") or train_autorep.py ("autorep"); yields the given flags only.

    Flags that do nothing in a script are read, so that they can be said to have no effect, and not shown by `--help`.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    values = defaults(kind)
    groups: dict[str, Any] = {}
    for name, flag in FLAGS.items():
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        options: dict[str, Any] = {"nargs": "?", "const": True} if flag.type is parse_bool else {}
        choices = tuple(RECIPES[kind]) if name == "recipe" else flag.choices or None
        what = flag.help if values[name] is None else f"{flag.help} (default: {text(values[name])})"
        if kind == "baseline" and flag.search_only:
            what = argparse.SUPPRESS
        groups[flag.group].add_argument(*flag.names, dest=name, type=flag.type, choices=choices,
                                        help=what, metavar=None if choices else flag.metavar, **options)
    return parser
