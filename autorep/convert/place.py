"""Puts gates at their places: in place of activation modules, and into forwards that are traced for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from autorep.convert.check import FIX
from autorep.convert.hooks import follow_hooks_, has_hooks
from autorep.convert.scan import Call, Scan, arguments_of
from autorep.convert.sites import Place, Site
from autorep.convert.traced_class import bind_forward_
from autorep.convert.traced_forward import TracedForward, trace_forward
from autorep.convert.undo import Origin
from autorep.gates.gated_relu import GatedReLU


def trace_owners(model: nn.Module, example_input: Tensor | tuple[Tensor, ...], seen: Scan, places: list[Place],
                 chosen: list[int]) -> dict[nn.Module, TracedForward]:
    """The traced forward of every module that makes a chosen call which cannot be swapped.

    Raises:
        ValueError: a module cannot be traced.
    """
    paths = {module: path for path, module in model.named_modules()}
    forwards = {}
    run_on = {call.module for i, call in enumerate(seen.calls) if i not in chosen}
    for owner in {places[i].owner: None for i in chosen if places[i].traced}:
        gates = {i: places[i].attribute for i in chosen if places[i].traced and places[i].owner is owner}
        try:
            example = cache(partial(arguments_of, owner, model, example_input))
            forwards[owner] = _trace_owner(owner, example, seen, gates, run_on)
        except ValueError as error:
            where = f"{paths[owner] or 'the model itself'} ({type(owner).__name__})"
            raise ValueError(f"{where} shares an activation module between calls or calls a function such as F.relu, "
                             f"and cannot be traced: {error}. The model was left as it was. {FIX}") from error
    return forwards


def _trace_owner(owner: nn.Module, example: Callable[[], tuple[tuple, dict[str, Any]]], seen: Scan,
                 gates: dict[int, str], run_on: set[nn.Module | None]) -> TracedForward:
    if "forward" in vars(owner):
        raise ValueError("the object has a forward of its own in place of that of its class")
    inlined = {module for i in gates for module in _below(seen.calls[i], owner)}
    if hooked := [type(module).__name__ for module in inlined if has_hooks(module)]:
        raise ValueError(f"{', '.join(hooked)} in it has hooks, which would not fire any more: remove them, and "
                         "register them on the gates after the conversion")
    own = [i for i, call in enumerate(seen.calls) if owner in call.stack and inlined.issuperset(_below(call, owner))]
    replaced = {module for i in gates if (module := seen.calls[i].module) is not None} - run_on
    return trace_forward(owner, example=example, inlined=inlined, replaced=replaced, arguments=seen.arguments[owner],
                         kinds=[seen.calls[i].kind for i in own],
                         gates={own.index(i): name for i, name in gates.items()})


def _below(call: Call, owner: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that were running inside `owner` when the call was made."""
    return call.stack[call.stack.index(owner) + 1:]


def place_gates_(calls: list[Call], places: list[Place], sites: list[Site], gates: dict[int, GatedReLU],
                 forwards: dict[nn.Module, TracedForward]) -> None:
    """Put gate number i, for call number i, at place number i, and the traced forwards on their owners.

    A gate has the hooks of the module that it takes the place of, and their handles go on working.
    """
    left_out = {site.name: site.num for i, site in enumerate(sites) if i not in gates}
    for i, gate in gates.items():
        owner, attribute = places[i].owner, places[i].attribute
        if places[i].traced:
            original, added, mode = None, tuple(forwards[owner].constants), owner.training
        else:
            original, added = getattr(owner, attribute), ()
            mode = original.training
        gate.origin = Origin(original, added, sites[i].name, left_out)
        if calls[i].module is not None:
            follow_hooks_(calls[i].module, gate)
        setattr(owner, attribute, gate.train(mode))
    for owner, traced in forwards.items():
        for name, value in traced.constants.items():
            setattr(owner, name, value)
        bind_forward_(owner, traced.forward)
