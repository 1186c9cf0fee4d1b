"""One style per method, the same in every plot, in the colour-blind-safe palette of Okabe and Ito."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from autorep.report.methods import BASELINE, method_label

BLACK, GREY = "#000000", "#999999"
_BLUE, _ORANGE, _GREEN, _VERMILLION, _PURPLE, _SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"


class Style(NamedTuple):
    """How the points and the line of a method are drawn."""

    colour: str
    marker: str
    dashes: str


def assign_styles(labels: Iterable[str]) -> dict[str, Style]:
    """Label -> style. Act types have fixed styles, other settings get the next free one; a reused colour has
    another marker and line."""
    fixed = {
        BASELINE: Style(BLACK, "s", "-"),
        method_label("ReLU_masked", 1): Style(_SKY, "o", "-"),
        method_label("ReLU_masked_relay", 1): Style(_BLUE, "o", "-"),
        method_label("ReLU_masked_dapa_relay", 1): Style(_ORANGE, "o", "-"),
        method_label("ReLU_masked_dapa_relay", 2): Style(_GREEN, "o", "-"),
        method_label("ReLU_masked_autopoly_relay", 1): Style(_VERMILLION, "o", "-"),
        method_label("ReLU_masked_autopoly_relay", 2): Style(_PURPLE, "o", "-"),
    }
    colours = (_BLUE, _ORANGE, _GREEN, _VERMILLION, _PURPLE, _SKY)
    looks = (("D", "-"), ("^", "--"), ("v", "-."), ("P", ":"), ("X", "-"))
    others = [label for label in dict.fromkeys(labels) if label not in fixed]
    return fixed | {label: Style(colours[i % len(colours)], *looks[i // len(colours) % len(looks)])
                    for i, label in enumerate(others)}


def published_markers(methods: Iterable[str]) -> dict[str, str]:
    """Published method -> marker. Published points are hollow and grey, unlike those measured here."""
    return dict(zip(sorted(set(methods)), "sD^vPX*h" * 4, strict=False))
