"""The search over time: ReLUs kept, flips of the masks, and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import FuncFormatter

from autorep.report.picture import Omitted, Picture, canvas, finish, legend_above, thousands, tidy
from autorep.report.runs import Run
from autorep.report.styles import BLACK, GREY, Style

_QUANTILES = ("score/q05", "score/q25", "score/q50", "score/q75", "score/q95")


def flips_over_time(run: Run, style: Style) -> Picture:
    """ReLUs kept with their current budget, if there is one, and flips per step with the fewest that would do.

    Raises:
        Omitted: there are no metrics of a search.
    """
    budget = run.config.budget
    target = ("relu_target",) if budget is not None and budget.relu_budget is not None else ()
    rows = _rows_with(run, ("step", "relu_kept", "flips", *target))
    if not rows:
        raise Omitted("Flips over time: metrics.jsonl is missing or holds no row of a search.")
    steps, kept, flips = (np.array([row[key] for row in rows], dtype=float) for key in ("step", "relu_kept", "flips"))
    edges, kept = np.concatenate([[0], steps]), np.concatenate([[_kept_at_start(run)], kept])
    figure = canvas(7.0, 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(edges, kept, color=style.colour, linewidth=2, label="kept")
    for name in target:
        above.plot(steps, [row[name] for row in rows], color=BLACK, linestyle="--", linewidth=1, label="current budget")
    above.set_ylabel("ReLUs per image")
    above.yaxis.set_major_formatter(FuncFormatter(thousands))
    below.stairs(flips / np.diff(edges), edges, baseline=None, color=style.colour, linewidth=2, label="flips")
    below.stairs(np.abs(np.diff(kept)) / np.diff(edges), edges, baseline=None, color=BLACK, linestyle="--", linewidth=1,
                 label="change in ReLUs kept")
    below.set_ylabel("ReLUs per step")
    below.set_xlabel("training step")
    for axes in (above, below):
        tidy(axes)
        axes.set_ylim(bottom=0)
        legend_above(axes)
    return finish(figure, "flips", "The search: ReLUs kept and mask flips", _flip_caption(run, flips, kept))


def _rows_with(run: Run, names: Sequence[str]) -> list[dict[str, Any]]:
    """The logged rows that have a number for every name."""
    return [row for row in run.metrics if all(isinstance(row.get(name), (int, float)) for name in names)]


def _kept_at_start(run: Run) -> float:
    """All ReLUs; NaN if unknown: without a checkpoint, or in a search that started from another run's masks."""
    total = sum(gate.num_total for gate in run.gates.values())
    return np.nan if run.config.checkpoint_path or not total else total


def _flip_caption(run: Run, flips: np.ndarray, kept: np.ndarray) -> str:
    threshold = run.config.gate.threshold
    told = f"{flips.sum():,.0f} flips in total"
    fewer = kept[0] - kept[-1]
    if fewer > 0:
        told += (f" to drop {fewer:,.0f} ReLUs: {flips.sum() / fewer:.2f} flips for each "
                 "(1 if no ReLU ever came back)")
    if run.config.budget.price is not None:
        return (f"{told}. The masks are chosen anew whenever the allowed price falls. Then ReLUs change places, at the "
                "same price.")
    plain = " (plain gate)" if threshold == 0 else ""
    return (f"{told}. Hysteresis threshold {threshold:g}{plain}. Where flips exceed the change, ReLUs were dropped and "
            "came back.")


def scores(run: Run, style: Style) -> Picture:
    """Scores of kept and dropped ReLUs in the last checkpoint, and their quantiles over time if they were recorded.

    Raises:
        Omitted: there are no gates.
    """
    if not run.gates:
        raise Omitted("Scores: there is no checkpoint.")
    rows = _rows_with(run, ("step", *_QUANTILES))
    figure = canvas(7.0, 6.0 if rows else 3.4)
    panels = figure.subplots(2 if rows else 1, 1, squeeze=False)[:, 0]
    _final_scores(panels[0], run, style)
    if rows:
        _scores_over_time(panels[1], rows, style)
    over_time = "" if rows else " Scores over time were not recorded."
    return finish(figure, "scores", "Scores of the gates", f"Step {run.step:,}.{over_time} Dotted: the hysteresis "
                  f"threshold. {_how_masks_move(run)}")


def _how_masks_move(run: Run) -> str:
    if run.config.budget.price is not None:
        return ("At the same price, a dropped ReLU takes the place of a kept one whose score is lower by more than "
                "twice the threshold.")
    return ("A ReLU is dropped below the lower one (unless too much of the budget would be unused) and comes back "
            "above the upper one.")


def _final_scores(axes, run: Run, style: Style) -> None:
    score = torch.cat([g.score.detach().flatten() for g in run.gates.values()]).numpy()
    mask = torch.cat([g.mask.flatten() for g in run.gates.values()]).numpy()
    edges = np.linspace(score.min(), score.max() + 1e-6, 81)
    axes.hist(score[~mask], edges, color=GREY, label="dropped", log=True)
    axes.hist(score[mask], edges, color=style.colour, alpha=0.8, label="kept", log=True)
    for sign in (-1, 1):
        axes.axvline(sign * run.config.gate.threshold, color=BLACK, linestyle=":", linewidth=1)
    axes.set_xlabel("score")
    axes.set_ylabel("ReLUs per bin (log scale)")
    legend_above(axes)
    tidy(axes)


def _scores_over_time(axes, rows: list[dict], style: Style) -> None:
    steps = [row["step"] for row in rows]
    q05, q25, q50, q75, q95 = ([row[name] for row in rows] for name in _QUANTILES)
    axes.fill_between(steps, q05, q95, color=style.colour, alpha=0.2, linewidth=0, label="5 % to 95 %")
    axes.fill_between(steps, q25, q75, color=style.colour, alpha=0.4, linewidth=0, label="25 % to 75 %")
    axes.plot(steps, q50, color=style.colour, linewidth=2, label="median")
    axes.set_xlabel("training step")
    axes.set_ylabel("score")
    legend_above(axes)
    tidy(axes)
