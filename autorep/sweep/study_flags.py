"""Flags as a study gives them: TOML values, checked against the flags of the scripts."""

from __future__ import annotations

import difflib
import math
from typing import Any

from autorep.cli.flags import FLAGS, parse_bool, parse_count_or_none, parse_number, text

_PLACE = "it is an option of the sweep, not of the study"
_OWN = "the sweep sets it"
_SET_BY_SWEEP = {
    **dict.fromkeys(("data_path", "gpu", "out_dir", "max_minutes", "dry_run"), _PLACE),
    **dict.fromkeys(("ext", "resume", "evaluate", "start_epoch"), _OWN),
    **dict.fromkeys(("pretrained", "pretrained_path", "checkpoint_path", "teacher_arch", "teacher_path"),
                    "every run starts from the baseline, and has it as its teacher"),
}
_OF_BASELINE = dict.fromkeys(("arch", "dataset"), "it belongs in [baseline], for all runs")
_TOML_TYPES = {parse_bool: (bool, "true or false"), parse_number: ((int, float), "a finite number"),
               int: (int, "a whole number"), parse_count_or_none: (int, "a whole number"),
               str: (str, "a text in quotes")}


def check_axes(where: str, table: dict[str, Any], scalars: bool = False) -> dict[str, list]:
    """Flags with lists of values; with `scalars` a value alone is a list of one."""
    axes = {}
    for flag, values in table.items():
        if scalars and not isinstance(values, list):
            values = [values]
        if not isinstance(values, list) or not values:
            raise ValueError(f"[{where}]: invalid {flag}={values!r}: expected a list of at least one value")
        axes[flag] = [check_flags(where, {flag: value})[flag] for value in values]
    return axes


def check_flags(where: str, table: dict[str, Any], of_baseline: bool = False) -> dict[str, Any]:
    """Flags with their values as the scripts would read them."""
    refused = _SET_BY_SWEEP if of_baseline else _SET_BY_SWEEP | _OF_BASELINE
    found = {}
    for name, value in table.items():
        if name in refused:
            raise ValueError(f"[{where}]: {name} is not allowed here: {refused[name]}")
        if name not in FLAGS:
            near = difflib.get_close_matches(name, FLAGS.keys() - refused.keys())
            hint = f"did you mean {' or '.join(near)}?" if near else "train_autorep.py --help lists the flags"
            raise ValueError(f"[{where}]: unknown flag {name}={value!r}: {hint}")
        flag = FLAGS[name]
        types, expected = _TOML_TYPES[flag.type]
        if flag.choices:
            expected = f"one of {', '.join(flag.choices)}"
        fits = isinstance(value, types) and isinstance(value, bool) == (flag.type is parse_bool)
        if not fits or flag.choices and value not in flag.choices or value in (math.inf, -math.inf) or value != value:
            raise ValueError(f"[{where}]: invalid {name}={value!r}: expected {expected}")
        found[name] = flag.type(text(value))
    return found
