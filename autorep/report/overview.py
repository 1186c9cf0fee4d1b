"""One picture of the method, as README shows it: `python -m autorep.report.overview TABLE.csv RUN_FOLDER OUT.png`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from autorep.gates.gated_relu import GatedReLU
from autorep.machine.files import user_path, write_atomically
from autorep.report.accuracy import ERRORS, TOP1, draw_dense, draw_groups
from autorep.report.groups import Board, Group, group_rows
from autorep.report.kind_plots import draw_kinds
from autorep.report.methods import BASELINE
from autorep.report.picture import Picture, canvas, finish, tidy
from autorep.report.rows import read_rows
from autorep.report.runs import Run, read_run
from autorep.report.styles import assign_styles

PRICE = "semi2k_wan_seconds"


def draw_overview(board: Board, groups: Sequence[Group], gates: dict[str, GatedReLU]) -> Picture:
    """Accuracy against seconds of the link (SEMI2K, wan), and what every layer of one run became.

    Each replacement is drawn by its variant with the most budgets.

    Raises:
        ValueError: the table holds no estimate of these seconds.
    """
    drawn = _widest(groups)
    dense = [group for group in groups if group.replacement == BASELINE]
    styles = assign_styles(group.label for group in dense + drawn)
    if any(group.price(PRICE) is None for group in dense + drawn):
        raise ValueError(f"invalid table: expected {PRICE} in every row; python -m autorep.results writes it")
    figure = canvas(11.0, 3.9)
    seconds, layers = figure.subplots(1, 2)
    draw_dense(seconds, groups)
    draw_groups(seconds, dense + drawn, styles, lambda g: g.price(PRICE).mean)
    seconds.set_ylabel(TOP1)
    seconds.set_xlabel("time of the link alone, SEMI2K on WAN [s]")
    tidy(seconds)
    seconds.legend(fontsize=8, frameon=False, loc="best")
    draw_kinds(layers, gates)
    layers.tick_params(axis="y", labelsize=7)
    layers.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return finish(figure, "overview", f"{board.arch} on {board.dataset}: accuracy against price, and what the layers "
                  "became", ERRORS)


def _widest(groups: Sequence[Group]) -> list[Group]:
    """The groups of the variant with the most budgets for each replacement, labelled by their method."""
    variants: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group.replacement != BASELINE:
            variants.setdefault((group.replacement, group.variant), []).append(group)
    by_replacement = {replacement: [] for replacement, _ in variants}
    for (replacement, _), members in variants.items():
        by_replacement[replacement] = max(by_replacement[replacement], members, key=len)
    return [dataclasses.replace(group, variant="") for members in by_replacement.values() for group in members]


def _gates_of(run: Run, board: Board) -> dict[str, GatedReLU]:
    """The gates of a run of the board's network. Raises ValueError if it is of another one, or has none."""
    found = f"{run.config.model.arch} on {run.config.data.dataset}"
    if found != f"{board.arch} on {board.dataset}":
        raise ValueError(f"invalid run {run.folder}: expected {board.arch} on {board.dataset}, as in the table; it is "
                         f"of {found}")
    if not run.gates:
        raise ValueError(f"invalid run {run.folder}: expected a search with a checkpoint; it has no gates to draw")
    return run.gates


def main(argv: Sequence[str] | None = None) -> None:
    """Draw accuracy against link seconds for a results table, and what the layers of a run became, as one PNG."""
    parser = argparse.ArgumentParser(prog="python -m autorep.report.overview", description=main.__doc__,
                                     allow_abbrev=False)
    parser.add_argument("table", type=user_path, metavar="TABLE.csv", help="a results table of one study")
    parser.add_argument("run", type=user_path, metavar="RUN_FOLDER", help="the run whose layers are drawn")
    parser.add_argument("out", type=user_path, metavar="OUT.png")
    args = parser.parse_args(argv)
    try:
        boards = group_rows(read_rows([args.table]))
        if len(boards) > 1:
            raise ValueError(f"invalid table {args.table}: expected one study, data set and network; it holds "
                             f"{', '.join('/'.join(board) for board in boards)}")
        [(board, groups)] = boards.items()
        write_atomically(args.out, draw_overview(board, groups, _gates_of(read_run(args.run), board)).png)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
