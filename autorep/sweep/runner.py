"""The runs of a study, one after another, each in a process of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import autorep
from autorep.results import append_rows, has_row, row_of
from autorep.runs.same_run import differences
from autorep.sweep.jobs import Stop, run_script, tail, wait_for_lock
from autorep.sweep.study import Run

SOURCE = Path(autorep.__file__).parent.parent
LOG_NAME = "sweep.log"


def finished_summary(run: Run) -> dict[str, Any] | None:
    """What summary.json of a finished run holds; None where there is still something to do.

    Raises:
        ValueError: the folder is that of a run with other settings.
    """
    summary = run.folder.read_summary()
    if not summary:
        return None
    found = differences(run.folder.read_config(), run.config)
    if found:
        raise ValueError(f"{run.folder} holds a run of other settings (there, here): {'; '.join(found)}. Give the "
                         "variant another name, or take another --out_dir")
    return summary if summary["finished"] else None


def state_of(run: Run) -> str:
    """ "finished", "unfinished", "new", or "blocked" where the folder is taken by a run of other settings."""
    try:
        if finished_summary(run):
            return "finished"
    except ValueError:
        return "blocked"
    return "unfinished" if run.folder.last.is_file() else "new"


def shard_of(runs: Sequence[Run], shard: str) -> list[Run]:
    """Every n-th run from the i-th on, for a shard "i/n".

    Raises:
        ValueError: not "i/n" with 1 <= i <= n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    i, n = map(int, match.groups()) if match else (0, 0)
    if not 1 <= i <= n:
        raise ValueError(f"invalid shard={shard!r}: expected i/n with i from 1 to n, such as 1/4")
    return list(runs[i - 1::n])


def with_baselines(runs: Sequence[Run]) -> list[Run]:
    """The runs, each baseline before the first run that starts from it, unless it is trained already."""
    return list(dict.fromkeys(each for run in runs for each in (run.baseline, run) if each))


class Sweep:
    """The runs of one shard.

    Args:
        runs: in order, baselines included.
        table: the CSV that takes their rows.
        labels: what else a row says: "study" and the column "recipe", which has the path of its file.
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
            except (ValueError, OSError) as error:
                self.failures[run] = str(error)
            if run in self.failures:
                print(f"[{number}/{len(self.runs)}] {run.name}: failed", flush=True)

    def _bring_to_end(self, run: Run, title: str) -> None:
        log = run.folder.path / LOG_NAME
        lock = wait_for_lock(run.folder.path / ".sweep.lock", self.stop)
        if lock is None:
            return
        with lock:
            skipped = finished_summary(run) is not None
            if not skipped:
                print(f"{title}: log in {log}", flush=True)
                script, *flags = run.words
                code = run_script([str(SOURCE / script), *flags], log, lock, self.stop)
            summary = finished_summary(run)
            if summary is None:
                if not self.stop:
                    self.failures[run] = f"exit code {code}, not finished:\n{tail(log)}"
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
