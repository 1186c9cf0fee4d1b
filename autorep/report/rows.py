"""Reading results tables: one row per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autorep.machine.files import read_table
from autorep.option import LARGEST
from autorep.report.prices import price_column

REQUIRED = ("dataset", "arch", "act_type", "degree", "relu_budget", "relu_kept", "relu_total", "layers_with_relu",
            "seed", "test_top1_last_epoch", "test_top1_at_validation_best")


@dataclass(frozen=True)
class Row:
    """A finished run. Accuracies are test top-1 [percent]; `prices` holds the filled price cells by column."""

    table: Path
    study: str
    dataset: str
    arch: str
    variant: str
    act_type: str
    degree: int | None
    relu_budget: int | None
    price: str
    price_budget: str
    relu_kept: int
    relu_total: int
    layers_with_relu: int
    seed: int
    top1_last: float
    top1_chosen: float | None
    prices: dict[str, float]


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """The rows of all tables. A table without a `study` column is one study, named after its file.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a table has no rows or lacks a required column, or a cell is not a number.
    """
    return [row for path in paths for row in _read_table(path)]


def _read_table(path: Path) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"no results table at {path}: give a CSV file such as results/STUDY.csv")
    lines = read_table(path, REQUIRED)
    if not lines:
        raise ValueError(f"{path} holds no runs, only a header: append finished runs with "
                         "python -m autorep.results first")
    rows = [_row(path, number, cells) for number, cells in enumerate(lines, 2)]
    if len({_what_ran(row) for row in rows}) < len(rows) and not any(row.variant for row in rows):
        # Runs of other lengths are no further seeds.
        return [replace(row, variant=f"{cells.get('epochs', '')} epochs")
                for row, cells in zip(rows, lines, strict=True)]
    return rows


def _what_ran(row: Row) -> tuple:
    return (row.study, row.dataset, row.arch, row.act_type, row.degree, row.relu_budget, row.price, row.price_budget,
            row.seed)


def _row(path: Path, line: int, cells: dict[str, str]) -> Row:
    where = f"{path}, line {line}"

    def number(name: str, kind: Callable[[str], Any], optional: bool = False, most: float = LARGEST) -> Any:
        if optional and not cells[name]:
            return None
        try:
            found = kind(cells[name])
        except ValueError as error:
            raise ValueError(f"{where}: {name}={cells[name]!r} is not a number") from error
        if not abs(found) <= most:  # nor NaN, which compares with nothing
            raise ValueError(f"{where}: {name}={cells[name]!r} is not a number of at most {most:g} in size")
        return found

    return Row(
        table=path, study=cells.get("study") or path.stem, dataset=cells["dataset"], arch=cells["arch"],
        variant=cells.get("variant", ""), act_type=cells["act_type"], degree=number("degree", int, optional=True),
        relu_budget=number("relu_budget", int, optional=True), price=cells.get("price", ""),
        price_budget=cells.get("price_budget", ""), relu_kept=number("relu_kept", int),
        relu_total=number("relu_total", int), layers_with_relu=number("layers_with_relu", int),
        seed=number("seed", int), top1_last=number("test_top1_last_epoch", float, most=100),
        top1_chosen=number("test_top1_at_validation_best", float, optional=True, most=100),
        prices={name: number(name, float) for name in cells if cells[name] and price_column(name)})
