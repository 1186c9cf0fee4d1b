"""Tables of results, as Markdown and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from autorep.report.groups import Group
from autorep.report.prices import PriceColumn, price_column
from autorep.report.published import PublishedPoint

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table of text. The first `num_text` columns are aligned left, the others hold numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_text: int = 1

    def markdown(self) -> str:
        """The table as Markdown, without its title."""
        rule = ["---" if i < self.num_text else "---:" for i in range(len(self.header))]
        lines = [self.header, rule, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def html(self) -> str:
        """The table as HTML below its title; on a narrow screen it scrolls sideways."""
        def line(cells: Sequence[str], tag: str) -> str:
            classes = ["text" if i < self.num_text else "figure" for i in range(len(cells))]
            return "<tr>" + "".join(f'<{tag} class="{c}">{html.escape(cell)}</{tag}>'
                                    for c, cell in zip(classes, cells, strict=True)) + "</tr>"
        body = "\n".join(line(row, "td") for row in self.rows)
        return (f'<p class="title">{html.escape(self.title)}</p>\n<div class="scroll"><table><thead>'
                f"{line(self.header, 'th')}</thead>\n<tbody>{body}</tbody></table></div>")


def price_columns(groups: Sequence[Group]) -> list[PriceColumn]:
    """The price columns that any row of these groups fills, in the order of the table."""
    names = dict.fromkeys(name for group in groups for row in group.rows for name in row.prices)
    return [price_column(name) for name in names]


def results_table(groups: Sequence[Group]) -> Table:
    """Accuracy of every group: mean ± sample standard deviation over seeds."""
    variants = any(group.variant for group in groups)
    header = (*(("variant",) if variants else ()), "a dropped ReLU becomes", "budget [ReLUs]", "n",
              "test top-1, last epoch [%]", "test top-1, epoch chosen by validation [%]", "ReLUs kept",
              "layers with ReLU")
    rows = []
    for group in groups:
        rows.append((*((group.variant or NOTHING,) if variants else ()), group.method, group.budget or NOTHING,
                     str(len(group.rows)), str(group.top1_last),
                     NOTHING if group.top1_chosen is None else str(group.top1_chosen),
                     f"{_span([r.relu_kept for r in group.rows])} of {_span([r.relu_total for r in group.rows])}",
                     _span([r.layers_with_relu for r in group.rows])))
    return Table("Accuracy at a ReLU budget: mean ± sample standard deviation over n seeds", header, tuple(rows),
                 num_text=1 + variants)


def prices_table(groups: Sequence[Group], columns: Sequence[PriceColumn]) -> Table:
    """The estimated price of private inference of one image: means over seeds."""
    rows = []
    for group in groups:
        prices = [(column, group.price(column.name)) for column in columns]
        rows.append((group.label, group.budget or NOTHING,
                     *(NOTHING if price is None else _figure(column, price.mean) for column, price in prices)))
    return Table("Private inference of one image, estimated: traffic in both directions, seconds of the link alone, "
                 "exact truncation",
                 ("method", "budget [ReLUs]", *(column.title for column in columns)), tuple(rows))


def published_table(points: Sequence[PublishedPoint]) -> Table:
    """The published points of a board, with their sources."""
    rows = tuple((p.method, p.replacement, p.source, f"{p.relus:,}", f"{p.top1:.2f}") for p in points)
    return Table("Published, by their authors' own selection",
                 ("method", "a dropped ReLU becomes", "source", "ReLUs", "test top-1 [%]"), rows, num_text=3)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _figure(column: PriceColumn, value: float) -> str:
    digits = {"bytes": 1, "rounds": 0, "seconds": 2}[column.quantity]
    return f"{value * column.scale:,.{digits}f}"
