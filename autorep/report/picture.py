"""Finished plots as PNG and SVG; the same data give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Collection
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator
from PIL import Image

DPI = 160


class Omitted(Exception):
    """A plot that the given data cannot show; the message is the reason that the page prints."""


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
    """An empty figure [inches] that avoids overlaps and does not touch matplotlib's global state."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def finish(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """Draw a figure with the Agg and SVG back ends."""
    with matplotlib.rc_context({"svg.hashsalt": name}):  # without it, element names would differ at every call
        png = _with_palette(_draw(figure, "png"))
        figure.set_layout_engine("none")  # the layout is final now
        return Picture(name, title, caption, png, _draw(figure, "svg"), figure.get_figwidth())


def _draw(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _with_palette(png: bytes) -> bytes:
    """The same PNG with a palette of 256 colours, which takes about a third of the bytes."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def as_written(text: str) -> str:
    """`text` for a label: matplotlib would read a formula between two $, and hide a label that begins with _."""
    return f"{' ' * text.startswith('_')}{text}".replace("$", r"\$")


def thousands(value: float, _position: int = 0) -> str:
    """1500 -> "1.5K", for axes that count ReLUs or steps."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}K" if value >= 1e3 else f"{value:g}"


def log_axis_of_relus(axes, counts: Collection[float]) -> None:
    """A logarithmic x axis of ReLU counts, labelled 1K, 2K, 5K, 10K; with a linear part if one of the counts is 0."""
    positive = [count for count in counts if count > 0]
    if len(positive) == len(counts):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        first = math.floor(math.log10(min(positive, default=1)))
        axes.set_xscale("symlog", linthresh=10**first, linscale=0.3)
        axes.xaxis.set_major_locator(FixedLocator([0, *(n * 10**k for k in range(first, 10) for n in (1, 2, 5))]))
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.minorticks_off()
    axes.set_xlabel("ReLUs kept per image")


def tidy(axes) -> None:
    """A light grid behind the data, and no frame at the top and the right."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(axes) -> None:
    """A one-line legend above the axes, where it covers nothing."""
    axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, ncols=4)
