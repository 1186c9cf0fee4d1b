"""A study: a TOML file that describes baselines, and AutoReP runs that start from them.

    study = "name"
    [baseline]      # flags of train_baseline.py; seed may be a list. Or arch, dataset and weights = "FILE", the weights
                    # of a network that is trained already, at a path from the folder of the study
    [common]        # flags of train_autorep.py, for all runs
    [grid]          # flag = [values]; every combination is run, the first flag outermost
    [[variant]]     # name = "...", and the flags in which it differs; those of the grid replace its values, and a
                    # list of values is an axis of this variant alone

Every run starts from the baseline and is distilled from it, unless `distil = false`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autorep.cli.configuration import config_from, idle_flags
from autorep.cli.flags import FLAGS, text
from autorep.cli.wording import in_flags
from autorep.config import RunConfig
from autorep.machine.files import user_path
from autorep.mpc.cost.price import parse_price
from autorep.runs.config_file import to_json
from autorep.runs.folder import RunFolder
from autorep.sweep.study_flags import check_axes, check_flags

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


BASELINE = "baseline"  # the variant of every baseline


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    `point`: its place in the grid; `given`: its flags; `baseline`: the run that it starts from, None for a baseline and
    where weights are there already.
    """

    variant: str
    point: dict[str, Any]
    given: dict[str, Any]
    baseline: Run | None = None

    @property
    def kind(self) -> str:
        """Which script it is a run of."""
        return "baseline" if self.variant == BASELINE else "autorep"

    @property
    def name(self) -> str:
        """Variant and place in the grid."""
        return " ".join([self.variant, *(f"{flag}={text(value)}" for flag, value in self.point.items())])

    @cached_property
    def config(self) -> RunConfig:
        """The configuration of its flags."""
        return config_from(self.kind, self.given)

    @cached_property
    def folder(self) -> RunFolder:
        """Its run folder."""
        return RunFolder.of(self.config)

    @property
    def words(self) -> list[str]:
        """Its command: script and flags."""
        flags = itertools.chain.from_iterable((f"--{name}", text(value)) for name, value in self.given.items())
        return [f"train_{self.kind}.py", *flags]


@dataclass(frozen=True)
class Study:
    """A study: its name, and its AutoReP runs in the order of the grid, all variants of a point together."""

    name: str
    runs: list[Run]


def load_study(path: Path, place: dict[str, str]) -> Study:
    """Read and check a study.

    Args:
        path: the TOML file.
        place: flags of all runs that say where they compute: out_dir, data_path, gpu.

    Raises:
        ValueError: not TOML, or a flag, value or combination that no run could be started with.
    """
    content = path.read_bytes()
    try:
        return _study_of(tomllib.loads(content.decode("utf-8-sig")), place, path.parent)  # Windows puts a mark first
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _study_of(table: dict[str, Any], place: dict[str, str], folder: Path) -> Study:
    keys = ("study", "baseline", "common", "grid", "variant")
    for key in table.keys() - set(keys):
        raise ValueError(f"invalid key {key!r}: expected one of {', '.join(keys)}; flags belong in one of these tables")
    if "study" not in table or "variant" not in table:
        raise ValueError('study = "NAME" and at least one [[variant]] with name = "NAME" are needed')
    common = check_flags("common", _table("common", table))
    grid = check_axes("grid", _table("grid", table))
    baselines = _baselines(_table("baseline", table), place, folder)
    variants = table["variant"]
    if not isinstance(variants, list) or not variants or not all(isinstance(variant, dict) for variant in variants):
        raise ValueError(f"invalid variant={variants!r}: expected tables, each headed [[variant]]")
    for name in common.keys() & grid.keys():
        raise ValueError(f"[common]: {name}={common[name]!r} is in [grid] too: drop one of them")
    runs = []
    for number, variant in enumerate(variants, 1):
        runs += _runs_of(number, variant, common, grid, baselines)
    names = [variant["name"] for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"invalid variant names {', '.join(names)}: expected every name once")
    _check_distinct([*baselines.values(), *(run for _, run in runs)])
    runs.sort(key=lambda indexed: indexed[0])  # stable: the variants of a point stay in the order of the file
    return Study(_checked_name("study", table["study"]), [run for _, run in runs])


def _table(name: str, table: dict[str, Any]) -> dict[str, Any]:
    found = table.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"invalid {name}={found!r}: expected a table of flags, headed [{name}]")
    return found


def _checked_name(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value) or value == BASELINE:
        raise ValueError(f"invalid {key}={value!r}: expected letters, digits, '.', '_' and '-' (it names files), and "
                         f"not {BASELINE!r}")
    return value


def _baselines(table: dict[str, Any], place: dict[str, str], folder: Path) -> dict[int, Run]:
    """Seed -> baseline; where weights are given it has them as its `pretrained_path`, and is never run."""
    weights = table.pop("weights", None)
    if weights is not None:
        for name in table.keys() - {"arch", "dataset"}:
            raise ValueError(f"[baseline]: {name}={table[name]!r} has no effect beside weights={weights!r}; leave it "
                             "out")
        # As seen from here where that is below, so that a row's command is one for any machine.
        weights = os.path.normpath(folder / user_path(str(weights)))
        weights = min(weights, os.path.relpath(weights), key=lambda path: path.startswith((os.pardir, os.sep)))
        if not os.path.isfile(weights):
            raise ValueError(f"[baseline]: invalid weights={weights!r}: expected the path of a file, from the folder "
                             "of the study")
    seeds = check_axes("baseline", {"seed": table.get("seed", 0)}, scalars=True)["seed"]
    flags = check_flags("baseline", {k: v for k, v in table.items() if k != "seed"}, of_baseline=True)
    start = {"pretrained_path": weights} if weights else {}
    found = [Run(BASELINE, {"seed": seed},
                 {**flags, **start, **place, "seed": seed, "ext": f"seed{seed}", "resume": "auto"})
             for seed in seeds]
    for run in found:
        _check_run("baseline", run, table.keys())
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"[baseline]: invalid seed={seeds}: expected every seed once")
    return dict(zip(seeds, found, strict=True))


def _runs_of(number: int, table: dict[str, Any], common: dict[str, Any], grid: dict[str, list],
             baselines: dict[int, Run]) -> list[tuple[tuple[int, ...], Run]]:
    """The runs of a variant with their places in the grid."""
    name = _checked_name(f"[[variant]] {number}: name", table.get("name"))
    where = f"variant {name}"
    own = {k: v for k, v in table.items() if k in grid or isinstance(v, list)}
    axes = grid | check_axes(where, own, scalars=True)
    flags = check_flags(where, {k: v for k, v in table.items() if k not in own and k != "name"})
    runs = []
    for indices in itertools.product(*(range(len(values)) for values in axes.values())):
        point = {flag: values[i] for (flag, values), i in zip(axes.items(), indices, strict=True)}
        run = _autorep_run(name, point, common | flags | point, baselines)
        _check_run(where, run, flags)
        runs.append((indices, run))
    return runs


def _autorep_run(variant: str, point: dict[str, Any], flags: dict[str, Any], baselines: dict[int, Run]) -> Run:
    seed = flags.get("seed", FLAGS["seed"].default("autorep"))
    if len(baselines) > 1 and seed not in baselines:
        raise ValueError(f"variant {variant}: invalid seed={seed}: with several baselines a run starts from that "
                         f"of its own seed, expected one of {', '.join(map(str, baselines))}")
    baseline = baselines[seed] if len(baselines) > 1 else next(iter(baselines.values()))
    inherited = {k: v for k, v in baseline.given.items()
                 if k in ("arch", "dataset", "data_path", "gpu", "out_dir")}
    given_weights = baseline.given.get("pretrained_path")
    weights = given_weights or str(baseline.folder.last)
    # The folder's name holds the budgets already.
    places = [f"{flag}{text(value)}" for flag, value in point.items()
              if flag not in ("ReLU_count", "price", "price_budget")]
    teacher = {"distil": True, "teacher_path": weights} if flags.get("distil", True) else {}
    given = {**inherited, **flags, "pretrained_path": weights, **teacher, "ext": "_".join([variant, *places]),
             "resume": "auto"}
    return Run(variant, point, given, None if given_weights else baseline)


def _check_run(where: str, run: Run, own: Iterable[str]) -> None:
    """Refuse what no run could be started with, and flags of the table itself that change nothing."""
    try:
        if run.config.budget and run.config.budget.price:
            parse_price(run.config.budget.price)
        idle = idle_flags(run.given, run.config)
    except ValueError as error:
        raise ValueError(f"[{where}]: {in_flags(error)}") from error
    for name in own:
        if name in idle:
            raise ValueError(f"[{where}]: {name}={run.given[name]!r} has no effect: {idle[name]}; leave it out")


def _check_distinct(runs: list[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        for what in (f"the run folder {run.folder}", to_json(dataclasses.replace(run.config, ext=""))):
            if what in seen and seen[what] is not run:
                shared = what if what.startswith("the run folder") else "every setting"
                raise ValueError(f"{seen[what].name} and {run.name} share {shared}: drop one of them, or name or set "
                                 "it differently")
            seen[what] = run
