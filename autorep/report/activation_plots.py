"""Inputs of the gates, and the polynomials that replace dropped ReLUs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from autorep.data.loader import make_loaders
from autorep.gates.gated_relu import GatedReLU, input_of
from autorep.gates.polynomial import evaluate
from autorep.report.channels import by_kept, chosen_layers
from autorep.report.picture import Omitted, Picture, canvas, finish, tidy
from autorep.report.runs import Run
from autorep.report.styles import BLACK, Style

_BATCHES, _BATCH_SIZE = 4, 64


def activations(run: Run, style: Style, data_path: str | None) -> Picture:
    """Input distributions of chosen channels, split into kept and dropped pixels, with ReLU and its replacement.

    Args:
        data_path: folder of the data set; None means the folder that the run used.

    Raises:
        Omitted: there are no gates over pixels, or no data.
    """
    layers = chosen_layers(run.gates)
    chosen = {name: [by_kept(gate)[-1], by_kept(gate)[0]][:len(gate.mask)] for name, gate in layers.items()}
    seen = record_channels(run.model, layers, chosen, _images(run, data_path))
    figure = canvas(10.0, 0.7 + 2.9 * len(layers))
    grid = figure.subplots(len(layers), 2, squeeze=False)
    for row, (name, gate) in zip(grid, layers.items(), strict=True):
        for axes, channel in zip(row, chosen[name], strict=False):
            _channel(axes, seen[name, channel], gate, channel, style)
            axes.set_title(f"{name}, channel {channel}: {int(gate.mask[channel].sum())} of "
                           f"{gate.mask[channel].numel()} ReLUs kept", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("input of the gate")
    handles = {label: handle for axes in figure.axes
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return finish(figure, "activations", "Activations and what replaces their ReLU",
                  f"Inputs of the gates on at most {_BATCHES * _BATCH_SIZE} training images, without augmentation. "
                  "Left: the channel of the layer with the most dropped ReLUs; right: the one with the fewest.")


def _images(run: Run, data_path: str | None) -> Iterable[Tensor]:
    data = run.config.data
    try:
        loaders = make_loaders(data.dataset, data_path or data.data_path, _BATCH_SIZE, device="cpu", seed=0,
                               validation_fraction=data.validation_fraction, workers=0)
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise Omitted(f"Activations: the data set cannot be read; give --data_path ({reason})") from error
    return (batch.images.contiguous() for batch in islice(loaders.calibration.batches(0), _BATCHES))


@torch.no_grad()
def record_channels(model: nn.Module, layers: dict[str, GatedReLU], chosen: dict[str, list[int]],
                    batches: Iterable[Tensor]) -> dict[tuple[str, int], Tensor]:
    """(layer, channel) -> the inputs [N, H, W] of its gate. Only the chosen channels are held in memory."""
    seen: dict[tuple[str, int], list[Tensor]] = {(name, c): [] for name, channels in chosen.items() for c in channels}

    def hook_for(name: str):
        def hook(_module, args, kwargs):
            for channel in chosen[name]:
                # A clone, because an inplace gate overwrites it.
                seen[name, channel].append(input_of(args, kwargs)[:, channel].clone())
        return hook

    with ExitStack() as hooks:
        for name, gate in layers.items():
            hooks.callback(gate.register_forward_pre_hook(hook_for(name), with_kwargs=True).remove)
        for images in batches:
            model(images)
    return {key: torch.cat(parts) for key, parts in seen.items()}


def _channel(axes, x_NHW: Tensor, gate: GatedReLU, channel: int, style: Style) -> None:
    low, high = np.quantile(x_NHW.numpy(), [0.001, 0.999])
    edges = np.linspace(min(low, -1e-3), max(high, 1e-3), 61)
    density = axes.twinx()
    mask_HW = gate.mask[channel]
    dropped, kept = x_NHW[:, ~mask_HW].flatten().numpy(), x_NHW[:, mask_HW].flatten().numpy()
    share = 100 / x_NHW.numel()
    density.hist([dropped, kept], edges, stacked=True, weights=[np.full(len(v), share) for v in (dropped, kept)],
                 color=["0.80", "0.55"], label=["inputs, ReLU dropped", "inputs, ReLU kept"])
    density.set_ylabel("inputs per bin [%]", fontsize=8, color="0.4")
    density.tick_params(labelsize=8, colors="0.4")
    density.spines[["top"]].set_visible(False)
    x = torch.linspace(float(edges[0]), float(edges[-1]), 200)
    axes.plot(x, x.relu(), color=BLACK, linestyle="--", linewidth=1.5, label="ReLU")
    polynomial = evaluate(x[:, None, None], gate.coefficients[[channel]].detach())[:, 0, 0]
    axes.plot(x, polynomial, color=style.colour, linewidth=2.5, label="its replacement")
    axes.set_ylabel("output of the gate", fontsize=9)
    tidy(axes)
    axes.grid(visible=False)  # the grid would cover the bars
    axes.set_zorder(density.get_zorder() + 1)  # the curves are drawn over the bars
    axes.patch.set_visible(False)
