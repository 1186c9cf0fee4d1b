"""Sigmoids that weight channels (squeeze and excitation) as what private inference can compute."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autorep.convert.hooks import follow_hooks_
from autorep.convert.scan import run_in_eval
from autorep.gates.gated_relu import input_of
from autorep.gates.polynomial_sigmoid import PolynomialSigmoid
from autorep.models.untouched import untouched

# timm has classes of its own.
_SIGMOID, _SIGMOID_OR_HARD = re.compile(r"Sigmoid(Jit)?"), re.compile(r"(Hard)?[Ss]igmoid(Me|Jit|JitMe)?")


class HardenedSigmoid(nn.Hardsigmoid):
    """relu6(x + 3) / 6 in place of a sigmoid: two comparisons for each of its elements.

    Attributes:
        original: the module that was there.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # it is no part of the network any more


def replace_sigmoids_(model: nn.Module, example_input: Tensor | tuple[Tensor, ...], by: str) -> None:
    """Put hard sigmoids ("hard") or polynomials ("poly") in the place of modules that are sigmoids, with their hooks.

    Polynomials take the place of hard sigmoids too, where these run on the example. Calls of functions stay as they
    are.

    Raises:
        ValueError: by a polynomial, and one module runs on several numbers of channels.
    """
    found = list(_modules_named(model, _SIGMOID if by == "hard" else _SIGMOID_OR_HARD))
    if by == "hard":
        new = [(owner, name, HardenedSigmoid(child)) for owner, name, child in found]
    else:
        inputs = _inputs_of(model, {child for _, _, child in found}, example_input)
        new = [(owner, name, _polynomial(child, inputs[child])) for owner, name, child in found if child in inputs]
    for owner, name, child in new:
        follow_hooks_(child.original, child)
        setattr(owner, name, child.train(child.original.training))


def restore_sigmoids_(model: nn.Module) -> None:
    """The inverse of `replace_sigmoids_`."""
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):
            if isinstance(child, (HardenedSigmoid, PolynomialSigmoid)):
                setattr(owner, name, child.original.train(child.training))


def _modules_named(model: nn.Module, pattern: re.Pattern) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    return ((owner, name, child) for owner in model.modules() for name, child in owner._modules.items()
            if pattern.fullmatch(type(child).__name__))


def _inputs_of(model: nn.Module, modules: set[nn.Module], example_input: Any) -> dict[nn.Module, list[Tensor]]:
    """What each of these modules gets of the example, a tensor for every time that it runs."""
    seen = defaultdict(list)
    with untouched(model):
        for module in modules:
            module.register_forward_pre_hook(
                lambda module, args, kwargs: seen[module].append(input_of(args, kwargs)), with_kwargs=True)
        run_in_eval(model, example_input)
    return seen


def _polynomial(sigmoid: nn.Module, inputs: list[Tensor]) -> PolynomialSigmoid:
    shapes = {tuple(x.shape[1:]) for x in inputs}
    if len(shapes) > 1 or () in shapes:
        raise ValueError(f"a sigmoid that runs on {sorted(shapes)} cannot become polynomials, which are those of one "
                         "number of channels: give each place a module of its own, or choose sigmoid='hard'")
    dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    return PolynomialSigmoid(sigmoid, *shapes, device=inputs[0].device, dtype=dtype)
