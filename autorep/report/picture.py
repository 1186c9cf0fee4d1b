"""A plot as it leaves matplotlib: PNG and SVG, the same bytes for the same data."""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

DPI = 160


class Omitted(Exception):
    """What was given cannot show this; the text says why, for the page."""


@dataclass(frozen=True)
class Picture:
    """A finished plot. `name` is its file name without suffix, `width` in inches."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes
    width: float


def canvas(width: float, height: float) -> Figure:
    """An empty figure [inches] that lays itself out without overlaps; it belongs to no global state."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def finish(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """Draw a figure by the Agg and SVG back ends."""
    with matplotlib.rc_context({"svg.hashsalt": name}):  # else element names would differ at every call
        png = _draw(figure, "png")
        figure.set_layout_engine("none")  # laid out by now
        return Picture(name, title, caption, png, _draw(figure, "svg"), figure.get_figwidth())


def _draw(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def thousands(value: float, _position: int = 0) -> str:
    """1500 -> "1.5K", for axes that count ReLUs or steps."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}K" if value >= 1e3 else f"{value:g}"


def log_axis_of_relus(axes) -> None:
    """A logarithmic x axis of ReLU counts, labelled 1K, 2K, 5K, 10K."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.minorticks_off()
    axes.set_xlabel("ReLUs kept per image")


def tidy(axes) -> None:
    """A light grid behind the data and no frame where there is no axis."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(axes) -> None:
    """A legend in one line above the axes, where it covers nothing."""
    axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=4)
