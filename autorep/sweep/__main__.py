"""The runs of a study, one after another, each in a process of its own.

Finished runs are skipped and the others resume, so a sweep may be stopped, killed and started again at any time.
Several sweeps may share a study (--shard): a sweep waits for a run that another one is doing; none is done twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autorep.machine.files import user_path
from autorep.machine.stopping import stop_signals
from autorep.machine.terminal import accept_any_text
from autorep.results import require_table
from autorep.sweep.jobs import Stop
from autorep.sweep.runner import SOURCE, Sweep, shard_of, state_of, with_baselines
from autorep.sweep.study import Run, Study, load_study


def _print_plan(runs: Sequence[Run]) -> None:
    states = [state_of(run) for run in runs]
    for run, state in zip(runs, states, strict=True):
        print(f"{state:10} {run.name:40} {run.folder}")
    print(f"{len(runs)} runs: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))


def build_parser() -> argparse.ArgumentParser:
    """The options of `python -m autorep.sweep`."""
    parser = argparse.ArgumentParser(prog="python -m autorep.sweep", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=user_path, metavar="STUDY.toml", help="what to run; see studies/")
    parser.add_argument("--out_dir", type=user_path, default=".", help="where the run folders are made (default: .)")
    parser.add_argument("--data_path", type=user_path, help="folder of the data set")
    parser.add_argument("--gpu", default="0", help="index of the GPU, or cpu (default: 0)")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="do the i-th of n parts")
    parser.add_argument("--max_minutes", type=float, help="save and exit after this time; start again to continue")
    parser.add_argument("--results", type=user_path, help="the table of rows (default: results/STUDY.csv)")
    parser.add_argument("--dry_run", action="store_true", help="list the runs with folder and state, and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; the exit code: 0 done or stopped, 1 a run failed, 2 bad input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    accept_any_text()
    place = {"data_path": args.data_path and str(args.data_path), "gpu": args.gpu, "out_dir": str(args.out_dir)}
    try:
        if args.max_minutes is not None and not args.max_minutes > 0:
            raise ValueError(f"invalid max_minutes={args.max_minutes}: expected more than 0")
        if not (SOURCE / "train_autorep.py").is_file():
            raise ValueError(f"there is no train_autorep.py in {SOURCE}: sweeps run from a checkout (pip install -e .)")
        study = load_study(args.study, {name: value for name, value in place.items() if value is not None})
        runs = with_baselines(shard_of(study.runs, args.shard))
        if args.dry_run:
            _print_plan(runs)
            return 0
        return _run(study, runs, args)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def _run(study: Study, runs: Sequence[Run], args: argparse.Namespace) -> int:
    stop = Stop(args.max_minutes)
    table = args.results or Path("results") / f"{study.name}.csv"
    require_table(table)
    sweep = Sweep(runs, table, {"study": study.name, "recipe": _within_source(args.study)}, stop)
    try:
        with stop_signals(stop.request):
            sweep.run()
    except KeyboardInterrupt:
        return 130
    for run, reason in sweep.failures.items():
        print(f"failed: {run.name}: {reason}")
    unfinished = [run for run in runs if run not in sweep.failures and state_of(run) != "finished"]
    if unfinished:
        print(f"stopped: {len(unfinished)} of {len(runs)} runs are left; start again to continue")
    else:
        print(f"{len(runs) - len(sweep.failures)} of {len(runs)} runs are finished; their rows are in {table}")
    return 1 if sweep.failures else 0


def _within_source(path: Path) -> str:
    """A path that means the same on another machine: within the checkout, or else the name alone."""
    resolved = path.resolve()
    return resolved.relative_to(SOURCE).as_posix() if resolved.is_relative_to(SOURCE) else resolved.name


if __name__ == "__main__":
    sys.exit(main())
