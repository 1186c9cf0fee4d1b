"""Converting any model: gates in place of its ReLUs, in place, verified, and exactly reversible."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import GateConfig
from autorep.convert.activations import RELU
from autorep.convert.check import (
    FIX,
    outputs_of,
    outputs_with_gates,
    relies_on_inplace,
    reproducible,
    same_outputs,
    with_content,
)
from autorep.convert.place import place_gates_, trace_owners
from autorep.convert.report import ConversionReport
from autorep.convert.scan import Call, scan
from autorep.convert.sigmoids import replace_sigmoids_
from autorep.convert.sites import Site, locate, name_comparisons, name_sites
from autorep.convert.undo import undo_
from autorep.gates.gated_relu import GatedReLU, iter_gates

FilterFn = Callable[[nn.Module | None, str], bool]
_DEFAULT = GateConfig()


@torch.inference_mode(False)  # parameters that are made inside it never train
def convert_relus_(model: nn.Module, example_input: Tensor | tuple[Tensor, ...], config: GateConfig = _DEFAULT,
                   filter_fn: FilterFn | None = None) -> ConversionReport:
    """Put a gate in the place of every ReLU that the model computes in evaluation mode; all of them start kept.

    A distinct activation module is swapped. Calls that share a module, and calls of functions, each get a gate of their
    own on the module that makes them, whose forward is traced: what it decides on shapes is decided by the example, and
    a call that would decide otherwise raises ValueError. With `config.sigmoid` modules that are sigmoids are
    replaced too, after all checks. The model stays the same object with the same parameter names; apart from those
    sigmoids it reproduces its output bit for bit (checked on the example) until a mask moves. If anything
    fails, the model and the random-number generators are as before; otherwise only the initial scores are drawn.

    Args:
        example_input: one batch [N, C, H, W], or the tuple of the forward's tensors. It fixes the resolution.
        filter_fn: called with the activation module (None for a function) and the qualified name of the site, as
            `find_sites` gives it; only sites for which it is true are converted. The parameters of an activation
            (PReLU) do not train until it is restored.

    Raises:
        ValueError: gates are there already, there is nothing to convert, a site is not ReLU and `config.kept` is None,
            a module cannot be traced, or the model is compiled, lazy, on the meta device or already wrapped.
    """
    _require_no_gates(model)
    _require_no_wrapper(model)
    example_input = with_content(example_input)
    seen = scan(model, example_input)
    places = locate(model, seen)
    sites = name_sites(model, seen.calls, places)
    if not sites:
        raise ValueError(_nothing(name_comparisons(model, seen)))
    chosen = _choose(seen.calls, sites, config, filter_fn)
    forwards = trace_owners(model, example_input, seen, places, chosen)
    with _undone_on_failure(model):
        gates = {i: _make_gate(seen.calls[i], config) for i in chosen}
        reference = [outputs_of(model, example_input) for _ in range(2)]
        place_gates_(seen.calls, places, sites, gates, forwards)
        _verify_(model, example_input, {gate: seen.calls[i] for i, gate in gates.items()}, *reference)
        if config.sigmoid is not None:
            replace_sigmoids_(model, example_input, config.sigmoid)
    return ConversionReport(model, tuple(replace(site, converted=i in gates) for i, site in enumerate(sites)),
                            name_comparisons(model, seen))


def left_out(model: nn.Module) -> dict[str, int]:
    """Activations per image at the sites that filter_fn left as they were, of a model or of parts converted alone."""
    origins = ((name, gate.origin) for name, gate in iter_gates(model) if gate.origin is not None)
    return {_prefix(name, origin.site) + site: num for name, origin in origins for site, num in origin.left_out.items()}


def _prefix(name: str, site: str) -> str:
    """What is in front of the names of a converted model within another, where they are the same from there on."""
    return name.removesuffix(site) if site and name.endswith(site) else ""  # no site: a pickle of an earlier version


def revert_gates_(model: nn.Module) -> nn.Module:
    """Take all gates out again and restore the model as it was, the same module objects included; returns it.

    Raises:
        ValueError: the model has no gates.
    """
    require_gates(model)
    undo_(model)
    return model


def freeze_gates_(model: nn.Module) -> nn.Module:
    """Stop mask updates: no mask moves any more, save by a projection. Coefficients still train. Returns the model.

    Raises:
        ValueError: the model has no gates.
    """
    require_gates(model)
    for _, gate in iter_gates(model):
        gate.freeze_()
    return model


def require_gates(model: nn.Module) -> None:
    """Raises ValueError where a model has none."""
    if next(iter_gates(model), None) is None:
        raise ValueError(f"this {type(model).__name__} has no gates; call convert_relus_(model, example_input) first")


def _require_no_gates(model: nn.Module) -> None:
    if next(iter_gates(model), None) is not None:
        raise ValueError("this model has gates already; call revert_gates_(model) first, or use it as it is")


def _require_no_wrapper(model: nn.Module) -> None:
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise ValueError("this model is wrapped in DistributedDataParallel, which would not average the gradients of "
                         "the gates; convert the model inside it (MODEL.module) first, then wrap it")


def _nothing(comparisons: tuple[str, ...]) -> str:
    if not comparisons:
        return "this model computes no activation on the example, ReLU or other, so there is nothing to convert"
    return ("no call of this model on the example is an activation by name, so there is nothing to convert, but it "
            f"compares elements at {', '.join(comparisons)}: write those that are activations as nn.ReLU modules")


def _choose(calls: list[Call], sites: list[Site], config: GateConfig, filter_fn: FilterFn | None) -> list[int]:
    """Indices of the sites to convert."""
    chosen = [i for i, (call, site) in enumerate(zip(calls, sites, strict=True))
              if filter_fn is None or filter_fn(call.module, site.name)]
    if not chosen:
        raise ValueError(f"filter_fn leaves out all {len(sites)} sites: {', '.join(s.name for s in sites)}")
    other = [sites[i] for i in chosen if sites[i].kind != RELU]
    if other and config.kept is None:
        listed = ", ".join(f"{site.name} ({site.kind})" for site in other)
        raise ValueError(f"{len(other)} of {len(chosen)} sites are not ReLU: {listed}. Choose: GateConfig(kept='relu') "
                         "makes every kept pixel of them compute ReLU, which changes the model (fine-tune it), "
                         "kept='original' what it computes now, which has no price in private inference, or "
                         "leave them as they are with filter_fn=lambda module, name: ...")
    flat = [sites[i].name for i in chosen if not sites[i].shape]
    if flat:
        raise ValueError(f"no channels at {', '.join(flat)}: a gate takes activations [N, C, ...]. {FIX}")
    return chosen


def _make_gate(call: Call, config: GateConfig) -> GatedReLU:
    dtype = torch.float64 if call.dtype == torch.float64 else torch.float32
    original = None if call.kind == RELU else call.function
    return GatedReLU(call.shape, config, device=call.device, dtype=dtype, original=original, kind=call.kind)


@contextmanager
def _undone_on_failure(model: nn.Module) -> Iterator[None]:
    generator = torch.get_rng_state()
    try:
        yield
    except BaseException:
        undo_(model)
        torch.set_rng_state(generator)  # the scores of the gates were drawn from it
        raise


def _verify_(model: nn.Module, example_input: Any, calls: dict[GatedReLU, Call], reference: list[Tensor],
             again: list[Tensor]) -> None:
    """Make gates inplace where the model relies on it, and compare its outputs with two from before.

    Only what is the same in these two is compared; a warning where that leaves out an array.

    Raises:
        ValueError: an output differs, or none of them is finite.
    """
    if not any(bool(each.isfinite().any()) for each in reference):
        raise ValueError("no output on the example is a finite number, so the conversion could not be verified: give "
                         "real images as the example")
    compared = reproducible(reference, again)
    noisy = [i for i, each in enumerate(reference) if i not in compared and each.numel() > 1 and each.isfinite().any()]
    if noisy or not compared:
        warnings.warn(f"two runs of the model on the example differ in {len(noisy)} of its {len(reference)} outputs, "
                      "whose conversion could not be verified", stacklevel=4)
    inplace = [gate for gate, call in calls.items() if call.inplace]
    if inplace and relies_on_inplace(model, example_input, inplace):
        for gate in inplace:
            gate.inplace = True
    outputs = outputs_with_gates(model, example_input, calls)
    if len(outputs) != len(reference) or not same_outputs([reference[i] for i in compared],
                                                          [outputs[i] for i in compared]):
        raise ValueError("with every ReLU kept the converted model does not reproduce the output of the model, "
                         f"which was therefore left as it was. {FIX}")
