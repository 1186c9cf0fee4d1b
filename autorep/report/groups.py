"""Groups of runs that differ in their seed alone; reports show means over them."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autorep.report.methods import BASELINE, method_label, replacement_of
from autorep.report.rows import Row


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (n - 1 in the denominator) of n values; `std` is None when n is 1."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """The statistic of one or more values."""
        n = len(values)
        mean = math.fsum(values) / n
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
        return cls(mean, std, n)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


class Board(NamedTuple):
    """One study, one data set, one network: the runs that are compared with each other."""

    study: str
    dataset: str
    arch: str


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, as far as the table shows."""

    board: Board
    variant: str
    act_type: str
    degree: int | None
    relu_budget: int | None
    priced_for: str
    price_budget: str
    rows: tuple[Row, ...]

    @property
    def replacement(self) -> str:
        """What replaces a dropped ReLU; published points are compared within one replacement."""
        return replacement_of(self.act_type, self.degree, self.priced_for)

    @property
    def label(self) -> str:
        """The name in legends, the same for all budgets."""
        if self.variant and self.replacement != BASELINE:
            return f"{self.variant} ({self.replacement})" if self.variant != self.replacement else self.variant
        return self.method

    @property
    def method(self) -> str:
        """What replaces a dropped ReLU, and for which price."""
        return method_label(self.act_type, self.degree, self.priced_for)

    @property
    def budget(self) -> str:
        """What the runs were allowed, "" for a baseline."""
        relus = [] if self.relu_budget is None else [f"{self.relu_budget:,}"]
        return ", ".join(relus + ([f"{self.price_budget} of {self.priced_for}"] if self.priced_for else []))

    @property
    def budget_order(self) -> tuple[str, str, int, float]:
        """What budgets are sorted by: engine and link, unit of the price, ReLUs, amount. Other units do not compare."""
        amount, unit = re.match(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)?(.*)", self.price_budget).groups()
        return self.priced_for, unit, self.relu_budget or 0, float(amount or 0)

    @property
    def top1_last(self) -> Statistic:
        """Test top-1 [percent] of the last epoch."""
        return Statistic.of([row.top1_last for row in self.rows])

    @property
    def top1_chosen(self) -> Statistic | None:
        """Test top-1 [percent] at the epoch that validation chose; None if a run did not record it."""
        values = [row.top1_chosen for row in self.rows]
        return None if None in values else Statistic.of(values)

    @property
    def relu_kept(self) -> Statistic:
        """ReLUs kept per image."""
        return Statistic.of([row.relu_kept for row in self.rows])

    def price(self, column: str) -> Statistic | None:
        """The estimated price in a column of the table; None if no run has it."""
        values = [row.prices[column] for row in self.rows if column in row.prices]
        return Statistic.of(values) if values else None


def group_rows(rows: Iterable[Row]) -> dict[Board, list[Group]]:
    """Board -> its groups: the baseline first, then by method, then by increasing budget.

    Raises:
        ValueError: a group holds a seed twice, which would count as two seeds.
    """
    found: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        board = Board(row.study, row.dataset, row.arch)
        found[board, row.variant, row.act_type, row.degree, row.relu_budget, row.price, row.price_budget].append(row)
    boards: dict[Board, list[Group]] = defaultdict(list)
    for key, members in found.items():
        group = Group(*key, rows=tuple(members))
        _check_seeds(group)
        boards[group.board].append(group)
    for groups in boards.values():
        order = {label: i for i, label in enumerate(dict.fromkeys(group.label for group in groups))}
        groups.sort(key=lambda g: (g.replacement != BASELINE, order[g.label], g.budget_order))
    return dict(boards)


def _check_seeds(group: Group) -> None:
    twice = [seed for seed, count in Counter(row.seed for row in group.rows).items() if count > 1]
    if twice:
        tables = ", ".join(dict.fromkeys(str(row.table) for row in group.rows if row.seed == twice[0]))
        raise ValueError(f"{tables}: {'/'.join(group.board)}, {group.label}, budget {group.budget or None}: seed "
                         f"{twice[0]} is in more than one row and would count as two seeds; tell the rows apart by "
                         "`variant` or `study`, or remove all but one")
