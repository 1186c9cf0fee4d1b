"""Append finished runs to a results table. Usage: append_results.py TABLE.csv RUN_FOLDER...

One row a run, with what it takes to repeat it. A run that stands in the table already (same command and commit) is
replaced, so the command can be repeated.
"""

import csv
import json
import os
import sys
from pathlib import Path

COLUMNS = ["dataset", "arch", "act_type", "degree", "relu_budget", "relu_kept", "relu_total", "layers_with_relu",
           "seed", "search_epochs", "epochs", "precision", "test_top1_last_epoch", "selection", "validation_top1_best",
           "test_top1_at_validation_best", "seconds", "commit", "torch", "device", "threads", "command"]


def row_of(folder: Path) -> dict[str, object]:
    """The row of a finished run; its reported accuracy is the last epoch's, which nothing was chosen by."""
    config, summary, environment = (json.loads((folder / f"{name}.json").read_text())
                                    for name in ("config", "summary", "environment"))
    if not summary["finished"]:
        raise SystemExit(f"{folder} is not finished: run it again with --resume auto")
    gate, best = config["gate"] or {}, summary.get("best", {})
    device = environment["cpu"] if environment["device"] == "cpu" else environment["device"]
    return {"dataset": config["data"]["dataset"], "arch": config["model"]["arch"], "act_type": config["act_type"],
            "degree": gate.get("degree", ""), "relu_budget": summary.get("relu_budget", ""),
            "relu_kept": summary["relu_kept"], "relu_total": summary["relu_total"],
            "layers_with_relu": summary["layers_with_relu"], "seed": config["seed"],
            "search_epochs": config["search_epochs"], "epochs": config["epochs"], "precision": config["precision"],
            "test_top1_last_epoch": f"{summary['test_top1']:.2f}", "selection": summary["selection"],
            "validation_top1_best": f"{best['validation_top1']:.2f}" if best else "",
            "test_top1_at_validation_best": f"{best['test_top1']:.2f}" if best else "",
            "seconds": f"{summary['seconds']:.0f}", "commit": environment["commit"], "torch": environment["torch"],
            "device": device, "threads": environment["threads"], "command": _command(environment["command"][1:])}


def _command(words: list[str]) -> str:
    """The command with $DATA in the place of this machine's data folder."""
    pairs = zip(["", *words], words, strict=False)
    return " ".join("$DATA" if before == "--data_path" else word for before, word in pairs)


def main(table: Path, folders: list[Path]) -> None:
    """Write the table anew with the rows of these runs added."""
    rows = {}
    if table.is_file():
        with table.open(newline="") as file:
            rows = {(row["command"], row["commit"]): row for row in csv.DictReader(file)}
    for folder in folders:
        row = row_of(folder)
        rows[row["command"], row["commit"]] = row
    table.parent.mkdir(parents=True, exist_ok=True)
    temporary = table.with_suffix(f".{os.getpid()}")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    os.replace(temporary, table)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
