"""Tables of finished runs: one row a run, with what it takes to repeat it.

`python -m autorep.results TABLE.csv RUN_FOLDER...` adds runs that no sweep started.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autorep.act_types import act_type_of
from autorep.config import RunConfig
from autorep.machine.files import locked, read_table, user_path, write_atomically
from autorep.machine.terminal import accept_any_text
from autorep.mpc.engines import ENGINES
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.runs.same_run import differences, fingerprint
from autorep.search.price import in_short, trace_prices
from autorep.search.relu_count import count_relus

PRICES = [f"{engine.protocol.lower()}_{price}" for engine in ENGINES.values()
         for price in ("bytes", "rounds", "lan_seconds", "wan_seconds")]
VERSIONS = ["python", "torch", "torchvision", "numpy"]
COLUMNS = ["study", "variant", "recipe", "dataset", "arch", "act_type", "degree", "relu_budget", "price",
           "price_budget", "price_allowed", "price_used", "relu_kept", "relu_total", "layers_with_relu", "seed",
           "search_epochs", "epochs", "precision", "test_top1_last_epoch",
           "validation_top1_last_epoch", "selection", "validation_top1_best", "test_top1_at_validation_best", *PRICES,
           "seconds", "commit", "settings", *VERSIONS, "platform", "device", "cpus", "threads", "command"]
_SETTINGS = ("dataset", "arch", "act_type", "degree", "relu_budget", "seed", "epochs")  # that tables always had
Row = dict[str, Any]


def row_of(folder: RunFolder, *, study: str = "", variant: str = "", recipe: str = "") -> Row:
    """The row of a finished run; its reported accuracy is the last epoch's, which nothing was chosen by.

    Prices are those of one image under private inference: bytes in both directions, and seconds of the link alone.
    They are empty where the network cannot be traced.

    Raises:
        ValueError: no run folder, a run that is not finished, or files of several runs.
    """
    config, summary, environment = folder.read_config(), folder.read_summary(), folder.read_environment()
    if not summary.get("finished"):
        raise ValueError(f"{folder} is not finished: run it again with --resume auto")
    gate, best = config.gate, summary.get("best", {})
    return {"study": study, "variant": variant, "recipe": recipe, "dataset": config.data.dataset,
            "arch": config.model.arch, "act_type": act_type_of(gate), "degree": gate.degree if gate else "",
            "relu_budget": _known(summary, "relu_budget"),
            "price": _known(summary, "price"), "price_budget": _known(summary, "price_budget"),
            **{name: f"{summary[name]:.6g}" if name in summary else "" for name in ("price_allowed", "price_used")},
            "relu_kept": summary["relu_kept"], "relu_total": summary["relu_total"],
            "layers_with_relu": summary["layers_with_relu"], "seed": config.seed,
            "search_epochs": config.search_epochs, "epochs": config.epochs,
            "precision": config.precision, "test_top1_last_epoch": _percent(summary, "test_top1"),
            "validation_top1_last_epoch": _percent(summary, "validation_top1"), "selection": summary["selection"],
            "validation_top1_best": _percent(best, "validation_top1"),
            "test_top1_at_validation_best": _percent(best, "test_top1"), **_prices(_network(folder, config, summary)),
            "seconds": f"{summary['seconds']:.0f}", **_identity(folder, config, environment),
            **{name: environment[name] for name in (*VERSIONS, "platform", "cpus", "threads")},
            "device": environment["cpu"] if environment["device"] == "cpu" else environment["device"]}


def _identity(folder: RunFolder, config: RunConfig, environment: dict[str, Any]) -> Row:
    """What tells the row of this attempt at a run from others: a program may start several runs by one command."""
    return {"command": _command(environment["command"][1:], config.out_dir), "commit": environment["commit"] or "",
            "settings": fingerprint(json.loads(folder.config.read_text()))}


def _known(summary: dict[str, Any], name: str) -> Any:
    return "" if summary.get(name) is None else summary[name]


def _percent(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:.2f}" if name in values else ""


def _network(folder: RunFolder, config: RunConfig, summary: dict[str, Any]) -> nn.Module:
    """The network of a finished run. Raises ValueError where the files of its folder are of several runs."""
    payload = checkpoint.load(folder.last)
    model = checkpoint.build_from(payload, folder.last)
    differing = differences(checkpoint.config_of(payload, folder.last), config)
    found = {"step": payload.get("step"), "relu_kept": count_relus(model).kept}
    differing += [f"{name} {value}, {summary[name]}" for name, value in found.items() if value != summary[name]]
    if differing:
        raise ValueError(f"{folder} holds files of several runs: {folder.last.name} and the .json files differ in "
                         f"{'; '.join(differing)}. Bring those of one run together")
    return model


def _prices(model: nn.Module) -> Row:
    traced, row = trace_prices(model), {}
    for engine, found in (in_short(traced.now()) if traced else {}).items():
        name = ENGINES[engine].protocol.lower()
        row |= {f"{name}_bytes": found["bytes"], f"{name}_rounds": found["rounds"],
                **{f"{name}_{net}_seconds": f"{seconds:.4f}" for net, seconds in found["link_seconds"].items()}}
    return row


def _command(words: Sequence[str], out_dir: str) -> str:
    """The command, to be run where the scripts are, with $DATA and $OUT in the place of this machine's folders."""
    script, *flags = words
    found = [_quoted(Path(script).name)]
    for before, word in zip(words, flags, strict=False):
        flag, value = re.fullmatch(r"(--\w+=)?(.*)", word, re.DOTALL).groups(default="")
        found.append(flag + ("$DATA" if "--data_path" in (before, flag[:-1]) else _below_out(value, out_dir)))
    return " ".join(found)


def _below_out(word: str, out_dir: str) -> str:
    out = out_dir.rstrip("/")
    if out in ("", ".") or not f"{word}/".startswith(f"{out}/"):
        return _quoted(word)
    below = word[len(out):].rstrip("/")
    return "$OUT" + (below and _quoted(below))


def _quoted(word: str) -> str:
    """A word as a shell reads it; names of files that are no UTF-8 with escapes, because tables are."""
    return shlex.quote(os.fsencode(word).decode(errors="backslashreplace"))


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no table yet.

    Raises:
        ValueError: the file is damaged, or no table of runs. The message names it.
    """
    return read_table(table, ("command", "commit")) if table.exists() and table.stat().st_size else []


def require_table(table: Path) -> None:
    """Raises ValueError or OSError where rows could not be added to a table: before hours of training, not after."""
    table.parent.mkdir(parents=True, exist_ok=True)
    read_rows(table)


def has_row(table: Path, folder: RunFolder) -> bool:
    """Whether the table has the row of this attempt at a run."""
    row = _identity(folder, folder.read_config(), folder.read_environment())
    return not {_key(row), _older_key(row)}.isdisjoint(map(_key, read_rows(table)))


def append_rows(table: Path, rows: Sequence[Row]) -> None:
    """Add rows, or replace those of the same command, commit and settings; several processes may write one table."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with locked(table.with_name(f".{table.name}.lock")):
        merged = {_key(row): row for row in read_rows(table)}
        for row in rows:
            older = merged.get(_older_key(row), {})
            if older and all(older.get(name, "") == str(row.get(name, "")) for name in _SETTINGS):
                del merged[_older_key(row)]
            merged[_key(row)] = row
        text = io.StringIO(newline="")
        columns = dict.fromkeys([*COLUMNS, *itertools.chain.from_iterable(merged.values())])  # theirs are kept
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
        write_atomically(table, text.getvalue())


def _key(row: Row) -> tuple[str, str, str]:
    return row["command"], row["commit"], row.get("settings", "")


def _older_key(row: Row) -> tuple[str, str, str]:
    """That of the same run in a table from before there were settings."""
    return row["command"], row["commit"], ""


def main(argv: Sequence[str] | None = None) -> None:
    """Append finished runs to a table; a row of the same command, commit and settings is replaced."""
    parser = argparse.ArgumentParser(prog="python -m autorep.results", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("table", type=user_path, metavar="TABLE.csv")
    parser.add_argument("folders", type=user_path, nargs="+", metavar="RUN_FOLDER")
    parser.add_argument("--variant", default="", metavar="NAME", help="what these runs are called in reports, which "
                        "takes rows of one name for seeds of one setting")
    args = parser.parse_args(argv)
    accept_any_text()
    try:
        append_rows(args.table, [row_of(RunFolder(folder), variant=args.variant) for folder in args.folders])
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
