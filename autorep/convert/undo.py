"""The way back from a converted model. The gates carry it: the modules of the model get no attribute for it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from autorep.convert.sigmoids import restore_sigmoids_
from autorep.convert.traced_class import unbind_forward_
from autorep.gates.gated_relu import GatedReLU


@dataclass
class Origin:
    """What a gate took the place of.

    Attributes:
        replaced: the activation module; None for the gate of a call in a traced forward.
        added: names of the constants of the traced forward, which the gate's owner got too.
        site: the gate's qualified name in the model that was converted, which may have become part of another.
        left_out: site -> activations per image, for all sites of that model that its conversion left out.
    """

    replaced: nn.Module | None = None
    added: tuple[str, ...] = ()
    site: str = ""
    left_out: dict[str, int] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> Origin:
        return Origin(copy.deepcopy(self.replaced, memo), self.added, self.site, self.left_out)


def undo_(model: nn.Module) -> None:
    """Put back what was replaced, sigmoids too. Gates without an origin stay: no conversion made them."""
    restore_sigmoids_(model)
    for owner in list(model.modules()):
        for name, gate in list(owner._modules.items()):
            if isinstance(gate, GatedReLU) and gate.origin is not None:
                _take_out_(owner, name, gate)


def _take_out_(owner: nn.Module, name: str, gate: GatedReLU) -> None:
    if gate.origin.replaced is not None:
        setattr(owner, name, gate.origin.replaced.train(gate.training))
        return
    delattr(owner, name)
    for added in gate.origin.added:  # all gates of an owner name the same attributes
        vars(owner).pop(added, None)
    unbind_forward_(owner)
