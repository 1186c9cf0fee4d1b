"""Sigmoids that weight channels (squeeze and excitation) as hard sigmoids, which private inference can compute."""

from __future__ import annotations

from torch import nn

_NAMES = ("Sigmoid", "SigmoidJit")  # timm has classes of its own


class HardenedSigmoid(nn.Hardsigmoid):
    """relu6(x + 3) / 6 in place of a sigmoid: two comparisons for each of its elements.

    Attributes:
        replaced: the module that was there.
    """

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "replaced", replaced)  # it is no part of the network any more


def harden_sigmoids_(model: nn.Module) -> int:
    """Put hard sigmoids in the place of all modules that are sigmoids; returns how many.

    Calls of functions stay as they are.
    """
    found = [(owner, name, child) for owner in model.modules() for name, child in owner._modules.items()
             if type(child).__name__ in _NAMES]
    for owner, name, child in found:
        setattr(owner, name, HardenedSigmoid(child).train(child.training))
    return len(found)


def soften_sigmoids_(model: nn.Module) -> None:
    """The inverse of `harden_sigmoids_`."""
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):
            if isinstance(child, HardenedSigmoid):
                setattr(owner, name, child.replaced.train(child.training))
