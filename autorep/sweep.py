"""A study: the runs of a recipe, one after another, each in a process of its own.

What is finished is skipped and what is not goes on, so a sweep may be stopped, killed and started again at any time.
Several sweeps may share a recipe (--shard): a run that another one is at is waited for, never done twice.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from autorep.config import from_json
from autorep.jobs import Stop, run_script, tail, wait_for_lock
from autorep.phases import stop_signals
from autorep.recipe import Recipe, Run, load_recipe
from autorep.results import append_rows, has_row, row_of
from autorep.run import differences

SOURCE = Path(__file__).parent.parent
LOG_NAME = "sweep.log"


def finished_summary(run: Run) -> dict[str, Any] | None:
    """What summary.json of a finished run holds; None where there is still something to do.

    Raises:
        ValueError: the folder is that of a run with other settings.
    """
    if not (run.folder / "summary.json").is_file():
        return None
    found = differences(from_json((run.folder / "config.json").read_text()), run.config)
    if found:
        raise ValueError(f"{run.folder} holds a run of other settings (there, here): {'; '.join(found)}. Give the "
                         "variant another name, or take another --out_dir")
    summary = json.loads((run.folder / "summary.json").read_text())
    return summary if summary["finished"] else None


def state_of(run: Run) -> str:
    """ "finished", "unfinished", "new", or "blocked" where the folder is taken by a run of other settings."""
    try:
        if finished_summary(run):
            return "finished"
    except ValueError:
        return "blocked"
    return "unfinished" if (run.folder / "last.pth.tar").is_file() else "new"


def shard_of(runs: Sequence[Run], shard: str) -> list[Run]:
    """Every n-th run from the i-th on, for a shard "i/n".

    Raises:
        ValueError: not "i/n" with 1 <= i <= n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    i, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise ValueError(f"shard={shard!r} is not legal: i/n with i from 1 to n, such as 1/4")
    return list(runs[i - 1::n])


def with_baselines(runs: Sequence[Run]) -> list[Run]:
    """The runs, each baseline before the first run that starts from it."""
    return list(dict.fromkeys(each for run in runs for each in (run.baseline, run)))


class Sweep:
    """The runs of one shard.

    Args:
        runs: in order, baselines included.
        table: the CSV that takes their rows.
        labels: what else a row says: study and recipe.
        stop: ends the sweep; the run under way saves first.
    """

    def __init__(self, runs: Sequence[Run], table: Path, labels: dict[str, str], stop: Stop) -> None:
        self.runs, self.table, self.labels, self.stop = runs, table, labels, stop
        self.failures: dict[Run, str] = {}
        self._seconds: dict[Run, float] = {}
        self._started = time.monotonic()

    def run(self) -> None:
        """Every run that is not finished; `failures` holds afterwards what went wrong."""
        for number, run in enumerate(self.runs, 1):
            if self.stop:
                return
            if run.baseline in self.failures:
                self.failures[run] = "not started: its baseline failed"
                continue
            try:
                self._bring_to_end(run, f"[{number}/{len(self.runs)}] {run.name}")
            except ValueError as error:
                self.failures[run] = str(error)
            if run in self.failures:
                print(f"[{number}/{len(self.runs)}] {run.name}: failed", flush=True)

    def _bring_to_end(self, run: Run, title: str) -> None:
        lock = wait_for_lock(run.folder / ".sweep.lock", self.stop)
        if lock is None:
            return
        with lock:
            skipped = finished_summary(run) is not None
            if not skipped:
                print(f"{title}: log in {run.folder / LOG_NAME}", flush=True)
                script, *flags = run.words
                code = run_script([str(SOURCE / script), *flags], run.folder / LOG_NAME, lock, self.stop)
            summary = finished_summary(run)
            if summary is None:
                if not self.stop:
                    self.failures[run] = f"exit code {code}, not finished:\n{tail(run.folder / LOG_NAME)}"
                return
            if not (skipped and has_row(self.table, run.folder)):
                append_rows(self.table, [row_of(run.folder, variant=run.variant, **self.labels)])
            self._seconds[run] = summary["seconds"]
            print(f"{title}: {self._progress(summary)}{' (was finished)' if skipped else ''}", flush=True)

    def _progress(self, summary: dict[str, Any]) -> str:
        line = (f"test top-1 {summary['test_top1']:.2f} %, {summary['relu_kept']:,} ReLUs, {summary['seconds']:.0f} s; "
                f"elapsed {_duration(time.monotonic() - self._started)}")
        ahead = [run for run in self.runs if run not in self._seconds and run not in self.failures]
        return f"{line}, about {_duration(sum(map(self._expected_seconds, ahead)))} left"

    def _expected_seconds(self, run: Run) -> float:
        """The mean of the finished runs of its kind, or of all while there is none."""
        same = [seconds for other, seconds in self._seconds.items() if other.kind == run.kind]
        known = same or list(self._seconds.values())
        return sum(known) / len(known)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _print_plan(runs: Sequence[Run]) -> None:
    states = [state_of(run) for run in runs]
    for run, state in zip(runs, states, strict=True):
        print(f"{state:10} {run.name:40} {run.folder}")
    print(f"{len(runs)} runs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))


def build_parser() -> argparse.ArgumentParser:
    """The options of `python -m autorep.sweep`."""
    parser = argparse.ArgumentParser(prog="python -m autorep.sweep", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what to run; see studies/")
    parser.add_argument("--out_dir", default=".", help="where the run folders are made (default: .)")
    parser.add_argument("--data_path", help="folder of the data set")
    parser.add_argument("--gpu", default="0", help="index of the GPU, or cpu (default: 0)")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="do the i-th of n parts")
    parser.add_argument("--max_minutes", type=float, help="save and exit after so many minutes; start again to go on")
    parser.add_argument("--results", type=Path, help="the table of rows (default: results/STUDY.csv)")
    parser.add_argument("--dry_run", action="store_true", help="list the runs with folder and state, and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; the exit code: 0 done or stopped, 1 a run failed, 2 bad input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    place = {"data_path": args.data_path, "gpu": args.gpu, "out_dir": str(Path(args.out_dir))}
    try:
        if args.max_minutes is not None and not args.max_minutes > 0:
            raise ValueError(f"max_minutes={args.max_minutes} is not legal: more than 0")
        if not (SOURCE / "train_autorep.py").is_file():
            raise ValueError(f"there is no train_autorep.py in {SOURCE}: sweeps run from a checkout (pip install -e .)")
        recipe = load_recipe(args.recipe, {name: value for name, value in place.items() if value is not None})
        runs = with_baselines(shard_of(recipe.runs, args.shard))
        if args.dry_run:
            _print_plan(runs)
            return 0
        return _run(recipe, runs, args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def _run(recipe: Recipe, runs: Sequence[Run], args: argparse.Namespace) -> int:
    stop = Stop(args.max_minutes)
    table = args.results or Path("results") / f"{recipe.study}.csv"
    sweep = Sweep(runs, table, {"study": recipe.study, "recipe": _within_source(args.recipe)}, stop)
    try:
        with stop_signals(stop.request):
            sweep.run()
    except KeyboardInterrupt:
        return 130
    for run, reason in sweep.failures.items():
        print(f"failed: {run.name}: {reason}")
    unfinished = [run for run in runs if run not in sweep.failures and state_of(run) != "finished"]
    if unfinished:
        print(f"stopped: {len(unfinished)} of {len(runs)} runs are left; start again to go on")
    else:
        print(f"{len(runs) - len(sweep.failures)} of {len(runs)} runs are finished; their rows stand in {table}")
    return 1 if sweep.failures else 0


def _within_source(path: Path) -> str:
    """A path that means the same on another machine: within the checkout, or else the name alone."""
    resolved = path.resolve()
    return resolved.relative_to(SOURCE).as_posix() if resolved.is_relative_to(SOURCE) else resolved.name


if __name__ == "__main__":
    sys.exit(main())
