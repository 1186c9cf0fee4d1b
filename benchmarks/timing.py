"""Alternating measurements, whose ratios are right on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 5) -> dict[str, list[float]]:
    """Time each callable once per round, so that a slow moment of the machine affects all of them.

    Returns:
        name -> [rounds] seconds.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def awaited(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """`run`, which on a GPU also waits for its kernels."""
    def finish() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return finish


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over rounds of numerator / denominator, each pair measured next to each other."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
