"""The page: all tables and plots in one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from autorep.report.picture import Picture
from autorep.report.tables import Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
       max-width: 75rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .9rem; font-variant-numeric: tabular-nums; }
.title { margin: 1.8rem 0 0; font-weight: bold; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; vertical-align: bottom; }
thead th { border-bottom: 2px solid #888; min-width: 4.5rem; }
td { white-space: nowrap; } .text { text-align: left; } .figure { text-align: right; }
figure { margin: 0; } figcaption { color: #444; font-size: .9rem; max-width: 50rem; }
img { display: block; width: 100%; }
.omitted { color: #444; } code, p { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: text, tables, plots, and the reasons for plots that are left out."""

    title: str
    text: str
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    omitted: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Title and tables as Markdown."""
        return "\n\n".join([f"## {self.title}", *(f"{t.title}.\n\n{t.markdown()}" for t in self.tables)])


def render(sections: Sequence[Section]) -> str:
    """The page as HTML with inlined images; it loads nothing from elsewhere."""
    body = "\n".join(_section(section) for section in sections)
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>autorep: results</title>\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Results</h1>\n{body}\n</body>\n</html>\n")


def _section(section: Section) -> str:
    text = f"<p>{html.escape(section.text)}</p>" if section.text else ""
    omitted = "".join(f"<li>{html.escape(reason)}</li>" for reason in section.omitted)
    return "\n".join([f"<section>\n<h2>{html.escape(section.title)}</h2>", text,
                      *map(_figure, section.pictures), *(table.html() for table in section.tables),
                      f'<div class="omitted"><p>Not shown:</p><ul>{omitted}</ul></div>' if omitted else "",
                      "</section>"])


def _figure(picture: Picture) -> str:
    """A plot that scrolls sideways on a narrow screen, so that it stays readable."""
    data = base64.b64encode(picture.png).decode()
    width = f"min-width: {75 * picture.width:.0f}px; max-width: {115 * picture.width:.0f}px"
    title = html.escape(picture.title)
    return (f'<figure><h3>{title}</h3><div class="scroll"><img style="{width}" alt="{title}" '
            f'src="data:image/png;base64,{data}"></div><figcaption>{html.escape(picture.caption)}</figcaption></figure>')
