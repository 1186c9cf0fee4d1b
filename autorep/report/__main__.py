"""`python -m autorep.report RESULTS... [--runs RUN_FOLDER...]`: tables, plots and one page of results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from autorep.machine.files import user_path, write_atomically
from autorep.machine.terminal import accept_any_text
from autorep.report.engine_runs import engine_section, is_engine_table
from autorep.report.groups import group_rows
from autorep.report.page import Section, render
from autorep.report.rows import read_rows
from autorep.report.runs import read_run
from autorep.report.sections import board_section, run_section
from autorep.report.styles import assign_styles


def main(argv: Sequence[str] | None = None) -> None:
    """Write tables (tables.md), plots (figures/, PNG and SVG) and one self-contained page (report.html) of results."""
    parser = argparse.ArgumentParser(prog="python -m autorep.report", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("results", nargs="+", type=user_path, metavar="RESULTS",
                        help="tables of results (CSV), of trained networks or of runs under an engine")
    parser.add_argument("--runs", nargs="+", type=user_path, default=[], metavar="RUN_FOLDER",
                        help="run folders whose masks, activations and search over time are plotted")
    parser.add_argument("--data_path", type=user_path,
                        help="folder of the runs' data set; default: the folder that each run used")
    parser.add_argument("--out", type=user_path, default=Path("report"), metavar="DIR", help="default: report")
    args = parser.parse_args(argv)
    accept_any_text()
    try:
        sections = make_sections(args.results, args.runs, args.data_path)
        write_report(args.out, sections)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(tables_markdown(sections))
    for section in sections:
        for reason in section.omitted:
            print(f"not shown ({section.title}): {reason}")
    print(f"page: {args.out / 'report.html'}")


def make_sections(results: Sequence[Path], runs: Sequence[Path], data_path: str | None) -> list[Section]:
    """Draw all sections of the report; write nothing.

    Raises:
        ValueError, FileNotFoundError: a table or a run folder cannot be read.
    """
    measured = [path for path in results if is_engine_table(path)]
    boards = group_rows(read_rows([path for path in results if path not in measured]))
    folders = [read_run(folder) for folder in runs]
    styles = assign_styles([*(g.label for groups in boards.values() for g in groups), *(r.label for r in folders)])
    return [*(board_section(board, groups, styles) for board, groups in boards.items()), *map(engine_section, measured),
            *(run_section(run, i, styles, data_path) for i, run in enumerate(folders, start=1))]


def tables_markdown(sections: Sequence[Section]) -> str:
    """The tables of all sections, as Markdown."""
    return "\n\n".join(section.markdown() for section in sections if section.tables) + "\n"


def write_report(out: Path, sections: Sequence[Section]) -> None:
    """Write the files of a report, each of them atomically."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for section in sections:
        for picture in section.pictures:
            write_atomically(out / "figures" / f"{picture.name}.png", picture.png)
            write_atomically(out / "figures" / f"{picture.name}.svg", picture.svg)
    write_atomically(out / "tables.md", tables_markdown(sections))
    write_atomically(out / "report.html", render(sections))


if __name__ == "__main__":
    main()
