"""How many ReLUs a network computes per image, by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autorep.convert.sites import find_sites
from autorep.convert.swap import left_out
from autorep.gates.gated_relu import iter_gates


@dataclass(frozen=True)
class ReLUCount:
    """ReLUs per image: `kept`, `total`, and `layers` as name -> (kept, total)."""

    kept: int
    total: int
    layers: dict[str, tuple[int, int]]

    @property
    def layers_with_relu(self) -> int:
        """Layers that hold a ReLU."""
        return sum(kept > 0 for kept, _ in self.layers.values())

    def __str__(self) -> str:
        width = max(map(len, [*self.layers, "total"]))
        rows = [f"{name:<{width}} {kept:>10,} / {total:>10,}" for name, (kept, total) in self.layers.items()]
        return "\n".join([*rows, f"{'total':<{width}} {self.kept:>10,} / {self.total:>10,}"])


def count_relus(model: nn.Module, example_input: Tensor | None = None) -> ReLUCount:
    """ReLUs per image, kept and in all.

    Args:
        model: with gates; activations that its conversion left out count as kept. Or without gates, then every
            activation that conversion would find counts as kept (`find_sites` tells ReLU from other kinds), also where
            code around it drops pixels, as relu(x) * keep + (1 - keep) * x does; a bundle counts what is left of it.
        example_input: [N, C, H, W]; only a model without gates needs it, and those of `build_model` know their own.

    Raises:
        ValueError: a model without gates and without an example input.
        RuntimeError: the masks are averages of masks.
    """
    if gates := dict(iter_gates(model)):
        for gate in gates.values():
            gate.require_own_mask()
        kept = torch.stack([gate.mask.sum() for gate in gates.values()]).tolist()
        layers = {name: (num, gate.num_total) for (name, gate), num in zip(gates.items(), kept, strict=True)}
        layers |= {name: (num, num) for name, num in left_out(model).items()}
    else:
        layers = {site.name: (site.num, site.num) for site in find_sites(model, _example(model, example_input))}
    return ReLUCount(sum(k for k, _ in layers.values()), sum(t for _, t in layers.values()), layers)


def _example(model: nn.Module, example_input: Tensor | None) -> Tensor:
    if example_input is not None:
        return example_input
    if not hasattr(model, "input_shape"):
        raise ValueError("this model has no gates, so its ReLUs are counted on an example: "
                         "count_relus(model, torch.zeros(1, channels, height, width))")
    parameter = next(model.parameters())
    return torch.zeros(1, *model.input_shape, device=parameter.device, dtype=parameter.dtype)
