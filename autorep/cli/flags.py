"""The flags of both scripts, derived from the fields of the configuration, and the recipes: other sets of defaults."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autorep.act_types import ACT_TYPES, act_type_of
from autorep.config import PARTS, GateConfig, RunConfig
from autorep.data.datasets import DATASET_NAMES
from autorep.option import SAME, Option

_OWNERS = {**PARTS, "": RunConfig}
_GROUPS = {"": "run", "data": "data", "model": "network", "optim": "optimisation", "gate": "gates",
           "dapa": "coefficients", "budget": "budget", "distill": "distillation"}
_SEARCH_ONLY = ("gate", "dapa", "budget")


def parse_bool(text: str) -> bool:
    """True or False from the usual spellings."""
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected true or false")


def parse_number(text: str) -> float:
    """A finite number."""
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected a finite number")
    return number


def parse_count_or_none(text: str) -> int | None:
    """A whole number, or None from its name."""
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}: expected a whole number or None") from None


_PARSERS: dict[str, Callable[[str], Any]] = {"int": int, "float": parse_number, "bool": parse_bool, "str": str}
_METAVARS = {int: "N", parse_count_or_none: "N|None", parse_number: "NUMBER", parse_bool: "true|false", str: "TEXT"}


def text(value: Any) -> str:
    """A value as it is written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Flag:
    """One flag: how it is written (`names`), its default in either script, and the field that it sets.

    `owner` and `field` name it: ("optim", "lr"), ("", "epochs"); `field` is "" where the flag sets several or none.
    """

    names: tuple[str, ...]
    help: str
    type: Callable[[str], Any]
    baseline: Any
    autorep: Any
    group: str
    metavar: str
    choices: tuple[str, ...] = ()
    owner: str = ""
    field: str = ""
    search_only: bool = False
    option: Option | None = None

    def default(self, kind: str) -> Any:
        """The default in the script of a kind, whatever the recipe."""
        return self.baseline if kind == "baseline" else self.autorep


def _of_field(owner: str, each: dataclasses.Field) -> dict[str, Flag]:
    """The flag of a field and, where it has one, its switch."""
    option: Option = each.metadata["option"]
    parser = parse_number if option.scale else _PARSERS[str(each.type).split(" ")[0]]
    default = None if each.default is dataclasses.MISSING else each.default
    if each.type == "int | None" and default is not None:
        parser = parse_count_or_none
    autorep = default if option.autorep is SAME else option.autorep
    common = {"group": option.group or _GROUPS[owner], "owner": owner,
              "search_only": option.search_only or owner in _SEARCH_ONLY}
    choices = DATASET_NAMES if option.flag == "dataset" else option.choices
    found = {}
    if option.switch:
        name, what = option.switch
        found[name] = Flag((f"--{name}",), what, parse_bool, default is not None, autorep is not None,
                           metavar=_METAVARS[parse_bool], **common)
        default, autorep = (option.switched_on if value is None else value for value in (default, autorep))
    found[option.flag] = Flag(option.names or (f"--{option.flag}",), option.help, parser, default, autorep,
                              metavar=option.metavar or _METAVARS[parser], choices=choices, field=each.name,
                              option=option, **common)
    return found


def _all_flags() -> dict[str, Flag]:
    def of_script(help_: str, parser: Callable[[str], Any], baseline: Any, autorep: Any, group: str = "run",
                  names: tuple[str, ...] = (), **how: Any) -> Flag:
        return Flag(names, help_, parser, baseline, autorep, group, _METAVARS[parser], **how)

    # These set no field, or several.
    found = {
        "recipe": of_script("defaults of the other flags", str, "reference", "best", names=("--recipe",)),
        "act_type": of_script("what replaces a dropped ReLU", str, act_type_of(None), act_type_of(GateConfig()),
                              group="gates", names=("--act_type",), choices=ACT_TYPES),
        "distil": of_script("distil from a dense teacher", parse_bool, False, False, group="distillation",
                            names=("--distil",)),
        "evaluate": of_script("evaluate --checkpoint_path on the test set and exit", parse_bool, False, False,
                              names=("-e", "--evaluate")),
        "dry_run": of_script("print the configuration, the run folder, the ReLU total and, of a search, the price of "
                             "private inference, and exit", parse_bool, False, False, names=("--dry_run",)),
    }
    for owner, cls in _OWNERS.items():
        for each in dataclasses.fields(cls):
            if "option" in each.metadata:
                found |= _of_field(owner, each)
    return found


FLAGS = _all_flags()
# Defaults that replace those of the flags; flags that are given win over both.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "baseline": {
        "reference": {},  # the published settings are the defaults of the flags
        "fast": {"epochs": 20, "batch_size": 128, "w_lr": 0.2, "nesterov": True, "optim": "linear",
                 "warmup_epochs": 2.0},
    },
    "autorep": {
        # As published; the corrections are in the code (standard deviation for variance, masks that move once a step).
        "reference": {"score_init": "uniform", "dapa_fit": "gaussian", "refit_until": None, "scale_x2": 0.1,
                      "range_width": 0.0, "budget_schedule": "constant", "warmup_epochs": 0.0, "lr_update": "epoch",
                      "clip_scores": False},
        "best": {},
    },
}


def defaults(kind: str, recipe: str | None = None) -> dict[str, Any]:
    """Flag -> its default in the script of a kind under a recipe (None: the script's own).

    Raises:
        ValueError: that script has no such recipe.
    """
    recipe = FLAGS["recipe"].default(kind) if recipe is None else recipe
    if recipe not in RECIPES[kind]:
        raise ValueError(f"invalid --recipe={recipe}: expected one of {', '.join(RECIPES[kind])}")
    return {name: flag.default(kind) for name, flag in FLAGS.items()} | RECIPES[kind][recipe]
