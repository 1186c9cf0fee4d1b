"""Which layers and channels of a network are plotted."""

from __future__ import annotations

from autorep.gates.gated_relu import GatedReLU
from autorep.report.picture import Omitted


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices of `range(count)`, evenly spread, including both ends."""
    if count <= wanted:
        return list(range(count))
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def spatial_layers(gates: dict[str, GatedReLU]) -> dict[str, GatedReLU]:
    """The gates whose mask has a value per pixel [C, H, W], not only per unit.

    Raises:
        Omitted: there is no such gate.
    """
    found = {name: gate for name, gate in gates.items() if gate.mask.dim() == 3}
    if not found:
        raise Omitted("Masks and activations: there is no checkpoint with gates over pixels.")
    return found


def chosen_layers(gates: dict[str, GatedReLU]) -> dict[str, GatedReLU]:
    """The first, the middle and the last of the spatial layers."""
    items = list(spatial_layers(gates).items())
    return dict(items[i] for i in spread(len(items), 3))


def by_kept(gate: GatedReLU) -> list[int]:
    """Channels by decreasing number of kept ReLUs; ties in the order of the network."""
    return gate.mask.flatten(1).sum(1).sort(descending=True, stable=True).indices.tolist()
