"""Published accuracy at a ReLU budget, from papers and their authors' scripts."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class PublishedPoint:
    """One published figure: test top-1 [percent] at `relus` kept ReLUs per image."""

    method: str
    replacement: str
    dataset: str
    arch: str
    relus: int
    top1: float
    source: str


def published_points(dataset: str, arch: str) -> list[PublishedPoint]:
    """The published points for a data set and a network, by method and increasing budget; may be empty."""
    text = resources.files("autorep.report").joinpath("published.csv").read_text(encoding="utf-8")
    points = [PublishedPoint(**{**cells, "relus": int(cells["relus"]), "top1": float(cells["top1"])})
              for cells in csv.DictReader(text.splitlines())]
    chosen = [p for p in points if (p.dataset, p.arch) == (dataset, arch)]
    return sorted(chosen, key=lambda p: (p.replacement, p.method, p.relus))
