"""Where the kept ReLUs are: per layer, per pixel, and in single channels."""

from __future__ import annotations

from math import ceil

import numpy as np
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator

from autorep.gates.gated_relu import GatedReLU
from autorep.report.channels import by_kept, chosen_layers, spatial_layers, spread
from autorep.report.picture import Omitted, Picture, canvas, finish, thousands, tidy
from autorep.report.runs import Run
from autorep.report.styles import Style

_COLUMNS, _CHANNELS = 5, 6


def relus_per_layer(run: Run, style: Style) -> Picture:
    """Kept and all ReLUs of every layer as bars, and the share that is kept.

    Raises:
        Omitted: there are no gates.
    """
    gates = run.gates
    if not gates:
        raise Omitted("ReLUs per layer: there is no checkpoint.")
    names = list(gates)
    kept, total = [g.num_kept for g in gates.values()], [g.num_total for g in gates.values()]
    share = [100 * k / t for k, t in zip(kept, total, strict=True)]
    figure = canvas(10.0, 1.4 + 0.27 * len(names))
    counts, shares = figure.subplots(1, 2, sharey=True)
    counts.barh(names, total, color="0.85", label="all")
    counts.barh(names, kept, color=style.colour, label="kept")
    counts.set_xlabel("ReLUs per image")
    counts.xaxis.set_major_formatter(FuncFormatter(thousands))
    shares.barh(names, share, color=style.colour)
    for i, (k, t, s) in enumerate(zip(kept, total, share, strict=True)):
        shares.annotate(f"{k:,} of {t:,}", (s, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    shares.set_xlim(0, max(share) * 1.35 or 1)
    shares.set_xlabel("kept ReLUs of the layer [%]")
    counts.set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    for axes in (counts, shares):
        tidy(axes)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    figure.legend(*counts.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    emptied = sum(k == 0 for k in kept)
    return finish(figure, "layers", "ReLUs kept per layer", f"Step {run.step:,}; layers in the order of the network, "
                  f"{emptied} of {len(names)} without a ReLU.")


def mean_masks(run: Run) -> Picture:
    """For every layer, the share of channels that keep their ReLU at a pixel.

    Raises:
        Omitted: there are no gates over pixels.
    """
    gates = spatial_layers(run.gates)
    high = max(float(_mean_mask(gate).max()) for gate in gates.values()) or 1.0
    rows = ceil(len(gates) / _COLUMNS)
    columns = min(len(gates), _COLUMNS)
    figure = canvas(10.0, 0.9 + 2.15 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, gate) in zip(grid, gates.items(), strict=False):
        image = draw_mean_mask(axes, gate, high)
        axes.set_title(name, fontsize=8)
    for axes in grid[len(gates):]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("row [pixels]", fontsize=8)
    for axes in grid[columns * (rows - 1):len(gates)]:
        axes.set_xlabel("column [pixels]", fontsize=8)
    figure.colorbar(image, ax=grid.tolist(), location="bottom", shrink=0.5, aspect=40, pad=0.02,
                    label="channels that keep their ReLU at the pixel [%]")
    return finish(figure, "masks_mean", "Masks, mean over channels", "One picture per layer; all share one colour "
                  "scale.")


def draw_mean_mask(axes, gate: GatedReLU, high: float | None = None) -> AxesImage:
    """Draw the share of channels [percent] that keep their ReLU at a pixel, in colours from 0 to `high`."""
    image = axes.imshow(_mean_mask(gate), cmap="cividis", vmin=0, vmax=high, interpolation="nearest")
    _pixel_axes(axes)
    return image


def _mean_mask(gate: GatedReLU) -> np.ndarray:
    return 100 * gate.mask.float().mean(0).numpy()


def channel_masks(run: Run) -> Picture:
    """Single channels of three layers, by decreasing number of kept ReLUs.

    Raises:
        Omitted: there are no gates over pixels.
    """
    layers = chosen_layers(run.gates)
    picked = {name: [by_kept(gate)[i] for i in spread(len(gate.mask), _CHANNELS)] for name, gate in layers.items()}
    figure = canvas(10.0, 0.5 + 1.9 * len(layers))
    grid = figure.subplots(len(layers), max(map(len, picked.values())), squeeze=False)
    for row, (name, gate) in zip(grid, layers.items(), strict=True):
        for axes, channel in zip(row, picked[name], strict=False):
            mask_HW = gate.mask[channel]
            axes.imshow(mask_HW.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"channel {channel}: {int(mask_HW.sum())}/{mask_HW.numel()}", fontsize=8)
            _pixel_axes(axes)
        for axes in row[len(picked[name]):]:
            axes.set_visible(False)
        row[0].set_ylabel(f"{name}\nrow [pixels]", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("column [pixels]", fontsize=8)
    return finish(figure, "masks_channels", "Masks of single channels", "White: the ReLU is kept. Black: it is "
                  "replaced. From the channel of a layer with the most kept ReLUs to the one with the fewest.")


def _pixel_axes(axes) -> None:
    axes.tick_params(labelsize=7, length=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=3, integer=True))
