"""Where the ReLUs are that were kept: per layer, per pixel, and in single channels."""

from __future__ import annotations

from math import ceil

from matplotlib.ticker import FuncFormatter, MaxNLocator

from autorep.report.channels import by_kept, chosen_layers, spatial_layers, spread
from autorep.report.picture import Omitted, Picture, canvas, finish, thousands, tidy
from autorep.report.runs import Run
from autorep.report.styles import Style

_COLUMNS, _CHANNELS = 5, 6


def relus_per_layer(run: Run, style: Style) -> Picture:
    """Bars of kept and of all ReLUs for every layer, and the share that is kept.

    Raises:
        Omitted: no gates to look at.
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
        Omitted: no gates over pixels.
    """
    gates = spatial_layers(run.gates)
    maps = {name: 100 * gate.mask.float().mean(0).numpy() for name, gate in gates.items()}
    high = max(float(m.max()) for m in maps.values()) or 1.0
    rows = ceil(len(maps) / _COLUMNS)
    columns = min(len(maps), _COLUMNS)
    figure = canvas(10.0, 0.9 + 2.15 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, map_HW) in zip(grid, maps.items(), strict=False):
        image = axes.imshow(map_HW, cmap="cividis", vmin=0, vmax=high, interpolation="nearest")
        axes.set_title(name, fontsize=8)
        _pixel_axes(axes)
    for axes in grid[len(maps):]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("row [pixels]", fontsize=8)
    for axes in grid[columns * (rows - 1):len(maps)]:
        axes.set_xlabel("column [pixels]", fontsize=8)
    figure.colorbar(image, ax=grid.tolist(), location="bottom", shrink=0.5, aspect=40, pad=0.02,
                    label="channels that keep their ReLU at the pixel [%]")
    return finish(figure, "masks_mean", "Masks, mean over channels", "One picture a layer, one scale of colours for "
                  "all.")


def channel_masks(run: Run) -> Picture:
    """Single channels of three layers, from the one with most kept ReLUs to the one with fewest.

    Raises:
        Omitted: no gates over pixels.
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
    return finish(figure, "masks_channels", "Masks of single channels", "White: the ReLU is kept. Black: its "
                  "replacement stands there. From the channel with most kept ReLUs of a layer to the one with fewest.")


def _pixel_axes(axes) -> None:
    axes.tick_params(labelsize=7, length=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=3, integer=True))
