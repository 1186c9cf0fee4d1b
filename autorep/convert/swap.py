"""Converting any model: gates in place of its ReLUs, in place, verified, and exactly reversible."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import GateConfig
from autorep.convert.activations import RELU
from autorep.convert.check import FIX, outputs_of, outputs_with_gates, same_outputs
from autorep.convert.sites import Call, Place, Scan, Site, locate, name_sites, scan
from autorep.convert.traced_forward import TracedForward, trace_forward
from autorep.convert.undo import undo_, undo_record
from autorep.gates.gated_relu import GatedReLU, iter_gates

FilterFn = Callable[[nn.Module | None, str], bool]
_DEFAULT = GateConfig()
_LEFT_OUT = "_left_out"


@dataclass(frozen=True)
class ConversionReport:
    """The converted model and all its sites, converted or not; prints as a table."""

    model: nn.Module
    sites: tuple[Site, ...]

    def __str__(self) -> str:
        rows = [("site", "kind", "shape", "per image", "converted")]
        rows += [(s.name, s.kind, "x".join(map(str, s.shape)), f"{s.num:,}",
                  "yes" if s.converted else "no: left out by filter_fn") for s in self.sites]
        converted = sum(s.num for s in self.sites if s.converted)
        rows.append(("total", f"{len(self.sites)} sites", "", f"{sum(s.num for s in self.sites):,}", f"{converted:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:>{widths[2]}}  {num:>{widths[3]}}  {status}"
            for name, kind, shape, num, status in rows)


def convert_relus_(model: nn.Module, example_input: Tensor | tuple[Tensor, ...], config: GateConfig = _DEFAULT,
                   filter_fn: FilterFn | None = None) -> ConversionReport:
    """Put a gate in the place of every ReLU that the model computes in evaluation mode; all of them start kept.

    A distinct activation module is swapped. Calls that share a module, and calls of functions, each get a gate of their
    own on the module that makes them, whose forward is traced. The model stays the same object with the same parameter
    names; it reproduces its output bit for bit (checked on the example) until a mask moves. If anything fails, the
    model is as before.

    Args:
        example_input: one batch [N, C, H, W], or the tuple of the forward's tensors. It fixes the resolution.
        filter_fn: called with the activation module (None for a function) and the qualified name of the site, as
            `find_sites` gives it; only sites for which it is true are converted. An activation's own parameters
            (PReLU) rest until it is restored.

    Raises:
        ValueError: gates are there already, there is nothing to convert, a site is not ReLU and `config.kept` is None,
            or a module cannot be traced.
    """
    if next(iter_gates(model), None) is not None:
        raise ValueError("this model has gates already: call revert_gates_(model) first, or use it as it is")
    seen = scan(model, example_input)
    places = locate(model, seen)
    sites = name_sites(model, seen.calls, places)
    chosen = _choose(seen.calls, sites, config, filter_fn)
    forwards = _trace_owners(model, seen, places, chosen)
    gates = {i: _make_gate(seen.calls[i], config) for i in chosen}
    reference, again = (outputs_of(model, example_input) for _ in range(2))
    try:
        _apply_(places, gates, forwards)
        _emulate_inplace_(model, example_input, [gate for i, gate in gates.items() if seen.calls[i].inplace])
        outputs = outputs_with_gates(model, example_input, {gate: seen.calls[i] for i, gate in gates.items()})
        if same_outputs(reference, again) and not same_outputs(reference, outputs):
            raise ValueError("with every ReLU kept the converted model does not reproduce the output of the model, "
                             f"which was therefore left as it was. {FIX}")
    except BaseException:
        undo_(model)
        raise
    if left_out := {site.name: site.num for i, site in enumerate(sites) if i not in gates}:
        setattr(model, _LEFT_OUT, left_out)
        undo_record(model).added.append(_LEFT_OUT)
    return ConversionReport(model, tuple(replace(site, converted=i in gates) for i, site in enumerate(sites)))


def left_out(model: nn.Module) -> dict[str, int]:
    """Activations per image at the sites of a converted model that its filter_fn left as they were."""
    return dict(vars(model).get(_LEFT_OUT, {}))


def revert_gates_(model: nn.Module) -> nn.Module:
    """Take all gates out again and restore the model as it was, the same module objects included; returns it.

    Raises:
        ValueError: the model has no gates.
    """
    _require_gates(model)
    undo_(model)
    return model


def freeze_gates_(model: nn.Module) -> nn.Module:
    """Stop every mask from moving; coefficients still train. Returns the model.

    Raises:
        ValueError: the model has no gates.
    """
    _require_gates(model)
    for _, gate in iter_gates(model):
        gate.freeze_()
    return model


def _require_gates(model: nn.Module) -> None:
    if next(iter_gates(model), None) is None:
        raise ValueError(f"this {type(model).__name__} has no gates: call convert_relus_(model, example_input) first")


def _choose(calls: list[Call], sites: list[Site], config: GateConfig, filter_fn: FilterFn | None) -> list[int]:
    """Indices of the sites to convert."""
    if not sites:
        raise ValueError("this model computes no activation on the example, ReLU or other, so there is nothing to "
                         "convert (torch.clamp and the like are not recognised: use nn.ReLU)")
    chosen = [i for i, (call, site) in enumerate(zip(calls, sites, strict=True))
              if filter_fn is None or filter_fn(call.module, site.name)]
    if not chosen:
        raise ValueError(f"filter_fn leaves out all {len(sites)} sites: {', '.join(s.name for s in sites)}")
    other = [sites[i] for i in chosen if sites[i].kind != RELU]
    if other and config.kept is None:
        listed = ", ".join(f"{site.name} ({site.kind})" for site in other)
        raise ValueError(f"{len(other)} of {len(chosen)} sites are not ReLU: {listed}. Choose: GateConfig(kept='relu') "
                         "makes every kept pixel of them compute ReLU, which changes the model (fine-tune it), or "
                         "leave them as they are with filter_fn=lambda module, name: ...")
    flat = [sites[i].name for i in chosen if not sites[i].shape]
    if flat:
        raise ValueError(f"no channels at {', '.join(flat)}: a gate takes activations [N, C, ...]. {FIX}")
    return chosen


def _trace_owners(model: nn.Module, seen: Scan, places: list[Place],
                  chosen: list[int]) -> dict[nn.Module, TracedForward]:
    paths = {module: path for path, module in model.named_modules()}
    forwards = {}
    for owner in {places[i].owner: None for i in chosen if places[i].traced}:
        gates = {i: places[i].attribute for i in chosen if places[i].traced and places[i].owner is owner}
        below = [_below(seen.calls[i], owner) for i in gates]
        inlined = {module for stack in below for module in stack}
        own = [i for i, call in enumerate(seen.calls)
               if owner in call.stack and inlined.issuperset(_below(call, owner))]
        try:
            if "forward" in vars(owner):
                raise ValueError("the object has a forward of its own in place of that of its class")
            forwards[owner] = trace_forward(
                owner, inlined=inlined, arguments=seen.arguments[owner], kinds=[seen.calls[i].kind for i in own],
                gates={own.index(i): name for i, name in gates.items()})
        except ValueError as error:
            where = f"{paths[owner] or 'the model itself'} ({type(owner).__name__})"
            raise ValueError(f"{where} shares an activation module between calls or calls a function such as F.relu, "
                             f"and cannot be traced: {error}. The model was left as it was. {FIX}") from error
    return forwards


def _below(call: Call, owner: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that were running inside `owner` when the call was made."""
    return call.stack[call.stack.index(owner) + 1:]


def _make_gate(call: Call, config: GateConfig) -> GatedReLU:
    dtype = torch.float64 if call.dtype == torch.float64 else torch.float32
    return GatedReLU(call.shape, config, device=call.device, dtype=dtype)


def _apply_(places: list[Place], gates: dict[int, GatedReLU], forwards: dict[nn.Module, TracedForward]) -> None:
    for i, gate in gates.items():
        place = places[i]
        undo = undo_record(place.owner)
        if place.traced:
            setattr(place.owner, place.attribute, gate.train(place.owner.training))
            undo.added.append(place.attribute)
        else:
            original = undo.replaced[place.attribute] = getattr(place.owner, place.attribute)
            setattr(place.owner, place.attribute, gate.train(original.training))
    for owner, traced in forwards.items():
        for name, value in {**traced.constants, "forward": types.MethodType(traced.forward, owner)}.items():
            setattr(owner, name, value)
            undo_record(owner).added.append(name)


def _emulate_inplace_(model: nn.Module, example_input: Any, gates: list[GatedReLU]) -> None:
    """Make gates write into their input where the model relies on it, that is, uses the input of an inplace activation
    again. It does if a function that changes every number gives another output inplace than out of place; ReLU itself
    would not show it on positive numbers."""
    def outputs_with(probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return outputs_of(model, example_input, dict.fromkeys(gates, probe))

    out_of_place = outputs_with(lambda x: x.mul(0.5).add(1))
    if gates and not same_outputs(out_of_place, outputs_with(lambda x: x.mul_(0.5).add_(1))):
        for gate in gates:
            gate.inplace = True
