"""Variants side by side: what each changes, at each budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autorep.report.accuracy import ERRORS, TOP1, slug
from autorep.report.groups import Board, Group
from autorep.report.methods import BASELINE
from autorep.report.picture import Picture, as_written, canvas, finish, tidy
from autorep.report.styles import Style

_COLUMNS = 4


def by_variant(board: Board, groups: Sequence[Group], styles: dict[str, Style]) -> Picture:
    """One panel per budget, one row per variant: mean and sample standard deviation."""
    groups = [g for g in groups if g.replacement != BASELINE]
    labels = list(dict.fromkeys(g.label for g in groups))
    budgets = {g.budget: g.priced_for for g in sorted(groups, key=lambda g: g.budget_order)}
    columns = min(_COLUMNS, len(budgets))
    rows = math.ceil(len(budgets) / columns)
    figure = canvas(2.8 + 2.3 * columns, rows * (1.1 + 0.27 * len(labels)))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (budget, priced_for) in zip(grid, budgets.items(), strict=False):
        for group in (g for g in groups if g.budget == budget):
            top1, style = group.top1_last, styles[group.label]
            axes.errorbar(top1.mean, labels.index(group.label), xerr=math.nan if top1.std is None else top1.std,
                          color=style.colour, marker=style.marker, capsize=3, linestyle="none")
        axes.set_title(as_written(budget) if priced_for else f"{budget} ReLUs", fontsize=10)
        axes.set_xlabel(TOP1, fontsize=8)
        tidy(axes)
    for axes in grid[len(budgets):]:
        axes.set_visible(False)
    grid[0].set_yticks(range(len(labels)), [as_written(label) for label in labels])
    grid[0].set_ylim(len(labels) - 0.5, -0.5)  # the first variant on top
    return finish(figure, f"variants_{slug(board)}", f"{board.arch} on {board.dataset}: variants side by side", ERRORS)
