"""The sections of a report: one per board, one per run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from autorep.report.accuracy import against_prices, against_relus
from autorep.report.activation_plots import activations
from autorep.report.groups import Board, Group
from autorep.report.kind_plots import kinds_per_layer
from autorep.report.mask_plots import channel_masks, mean_masks, relus_per_layer
from autorep.report.methods import BASELINE
from autorep.report.page import Section
from autorep.report.picture import Omitted, Picture
from autorep.report.published import published_points
from autorep.report.runs import Run
from autorep.report.search_plots import flips_over_time, scores
from autorep.report.styles import Style
from autorep.report.tables import price_columns, prices_table, published_table, results_table
from autorep.report.variants import by_variant


def board_section(board: Board, groups: Sequence[Group], styles: dict[str, Style]) -> Section:
    """Tables and plots of one study on one data set with one network."""
    points = published_points(board.dataset, board.arch)
    columns = price_columns(groups)
    tables = [results_table(groups)]
    if columns:
        tables.append(prices_table(groups, columns))
    if points:
        tables.append(published_table(points))
    pictures, omitted = [against_relus(board, groups, points, styles)], []
    if any(group.variant for group in groups if group.replacement != BASELINE):
        pictures.append(by_variant(board, groups, styles))
    pictures += against_prices(board, groups, columns, styles)
    if not columns:
        omitted.append("Accuracy against the price of private inference: the table holds no estimates.")
    return Section(f"{board.study}: {board.arch} on {board.dataset}", "", tuple(tables), tuple(pictures),
                   tuple(omitted))


def run_section(run: Run, number: int, styles: dict[str, Style], data_path: str | None) -> Section:
    """Plots of one run folder; a plot that it cannot show is listed with the reason."""
    title, text = f"Run {number}: {run.title}", f"{run.state} Folder: {run.folder}"
    if run.config.gate is None:
        return Section(title, text, (), (), ("A baseline keeps every ReLU: it has no masks and no search.",))
    style = styles[run.label]
    pictures: list[Picture] = []
    omitted: list[str] = []
    for make in (partial(flips_over_time, run, style), partial(scores, run, style),
                 partial(relus_per_layer, run, style), partial(kinds_per_layer, run), partial(mean_masks, run),
                 partial(channel_masks, run), partial(activations, run, style, data_path)):
        try:
            picture = make()
        except Omitted as reason:
            omitted.append(str(reason))
        else:
            pictures.append(dataclasses.replace(picture, name=f"run{number}_{picture.name}"))
    return Section(title, text, (), tuple(pictures), tuple(dict.fromkeys(omitted)))
