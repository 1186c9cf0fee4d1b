"""Compare a baseline and an AutoReP run folder: a table, then one JSON line. Usage: compare_runs.py BASELINE AUTOREP"""

import json
import sys
from pathlib import Path


def main(baseline_folder: str, autorep_folder: str) -> None:
    """Print the table and the JSON line; accuracies are percent on the test set at the last epoch."""
    baseline, autorep = (json.loads((Path(folder) / "summary.json").read_text())
                         for folder in (baseline_folder, autorep_folder))
    seconds = baseline["seconds"] + autorep["seconds"]
    print(f"\n{'':10} {'test top-1':>10} {'ReLUs kept':>18} {'seconds':>8}")
    for name, run in (("baseline", baseline), ("AutoReP", autorep)):
        kept = f"{run['relu_kept']:,} / {run['relu_total']:,}"
        print(f"{name:10} {run['test_top1']:>8.2f} % {kept:>18} {run['seconds']:>8.1f}")
    print(f"\nbaseline run folder: {baseline_folder}\nAutoReP run folder:  {autorep_folder}")
    print(json.dumps({"baseline_top1": baseline["test_top1"], "autorep_top1": autorep["test_top1"],
                      "relu_kept": autorep["relu_kept"], "relu_total": autorep["relu_total"], "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
