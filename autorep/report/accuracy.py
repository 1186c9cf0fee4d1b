"""Accuracy against ReLUs kept, and against the estimated price of private inference."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from autorep.report.groups import Board, Group
from autorep.report.methods import BASELINE
from autorep.report.picture import Picture, as_written, canvas, finish, log_axis_of_relus, tidy
from autorep.report.prices import PriceColumn
from autorep.report.published import PublishedPoint
from autorep.report.styles import BLACK, Style, published_markers

TOP1 = "test top-1, last epoch [%]"
ERRORS = "Points are means over seeds; bars are one sample standard deviation (two or more seeds)."


def against_relus(board: Board, groups: Sequence[Group], points: Sequence[PublishedPoint],
                  styles: dict[str, Style]) -> Picture:
    """One panel per replacement on shared axes: published points are hollow, the dense network is a dashed line."""
    present = {g.replacement for g in groups} | {p.replacement for p in points}
    panels = [r for r in ("identity", "linear", "quadratic", *sorted(present)) if r in present - {BASELINE}]
    panels = list(dict.fromkeys(panels)) or [BASELINE]
    figure = canvas(3.9 * max(len(panels), 2), 4.4)
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    markers = published_markers(p.method for p in points)
    counts = [*(g.relu_kept.mean for g in groups if g.replacement != BASELINE), *(p.relus for p in points)]
    for axes, replacement in zip(row, panels, strict=True):
        draw_dense(axes, groups)
        draw_groups(axes, [g for g in groups if g.replacement == replacement], styles, lambda g: g.relu_kept.mean)
        _published(axes, [p for p in points if p.replacement == replacement], markers)
        axes.set_title(f"dropped ReLU → {replacement}", fontsize=10)
        log_axis_of_relus(axes, counts)
        tidy(axes)
    low, high = row[0].get_xlim()
    row[0].set_xlim(min(low, low / 1.8), high * 1.8)
    row[0].set_ylabel(TOP1)
    _legend(figure, row)
    compared = "Published points follow their authors' own selection." if points else (
        f"No published points are known for {board.arch} on {board.dataset}.")
    return finish(figure, f"accuracy_{slug(board)}", f"{board.arch} on {board.dataset}: accuracy at a ReLU budget",
                  f"{ERRORS} {compared}")


def against_prices(board: Board, groups: Sequence[Group], columns: Sequence[PriceColumn],
                  styles: dict[str, Style]) -> list[Picture]:
    """One picture per protocol: accuracy against bytes, and against seconds of the link on every network."""
    pictures = []
    for protocol in dict.fromkeys(column.protocol for column in columns):
        mine = [c for c in columns if c.protocol == protocol and c.quantity != "rounds"]
        if not mine:
            continue
        figure = canvas(3.9 * max(len(mine), 2), 4.4)
        row = figure.subplots(1, len(mine), sharey=True, squeeze=False)[0]
        for axes, column in zip(row, mine, strict=True):
            priced = [g for g in groups if g.price(column.name) is not None]
            draw_groups(axes, priced, styles, lambda g, c=column: g.price(c.name).mean * c.scale)
            axes.set_xlabel("traffic, both directions [MB]" if column.quantity == "bytes" else
                            f"time of the link alone, {column.where} [s]")
            tidy(axes)
        row[0].set_ylabel(TOP1)
        _legend(figure, row)
        pictures.append(finish(
            figure, f"cost_{protocol.lower()}_{slug(board)}",
            f"{board.arch} on {board.dataset}: accuracy against the estimated price under {protocol}",
            f"Private inference of one image by the closed form; local computation is not included. {ERRORS}"))
    return pictures


def draw_groups(axes, groups: Sequence[Group], styles: dict[str, Style], x_of) -> None:
    """Draw test top-1 of groups over `x_of(group)`, one line per label, with bars of one standard deviation."""
    for label in dict.fromkeys(g.label for g in groups):
        mine = sorted((g for g in groups if g.label == label), key=x_of)
        style, top1 = styles[label], [g.top1_last for g in mine]
        axes.errorbar([x_of(g) for g in mine], [t.mean for t in top1], label=as_written(label), color=style.colour,
                      yerr=[math.nan if t.std is None else t.std for t in top1], marker=style.marker,
                      linestyle=style.dashes, capsize=3, markersize=6)


def _published(axes, points: Sequence[PublishedPoint], markers: dict[str, str]) -> None:
    for method in dict.fromkeys(p.method for p in points):
        mine = [p for p in points if p.method == method]
        axes.plot([p.relus for p in mine], [p.top1 for p in mine], marker=markers[method], markerfacecolor="none",
                  color="0.35", linestyle=":", linewidth=1, zorder=3, label=f"{method} (published)")


def draw_dense(axes, groups: Sequence[Group]) -> None:
    """Draw the accuracy of the dense network as a dashed line."""
    for group in groups:
        if group.replacement == BASELINE:
            axes.axhline(group.top1_last.mean, color=BLACK, linestyle="--", linewidth=1,
                         label=f"{BASELINE} ({group.relu_kept.mean:,.0f})")


def _legend(figure: Figure, row) -> None:
    """One legend for all panels, below them, in as many columns as fit the width."""
    handles = {label: handle for axes in row
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=9, frameon=False,
                  ncols=int(figure.get_figwidth() / 2.8))


def slug(board: Board) -> str:
    """The board's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(board))
