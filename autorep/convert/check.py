"""Whether a converted model still computes what it computed, shown on the example."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autorep.convert.activations import RELU
from autorep.convert.outputs import tensors_in
from autorep.convert.scan import Call, run_in_eval
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.models.untouched import untouched

FIX = ("Make the activation a distinct nn.ReLU module that runs once per forward, or leave it out: "
        "filter_fn=lambda module, name: name not in (...)")


def with_content(example_input: Any) -> Any:
    """The example, with noise in place of images of one number, such as zeros: a model says little about those."""
    if isinstance(example_input, Tensor):
        plain = example_input.is_floating_point() and example_input.numel() > 1 and not example_input.is_meta
        if not plain or bool((example_input != example_input.flatten()[0]).any()):
            return example_input
        noise = torch.rand(example_input.shape, generator=torch.Generator().manual_seed(0))
        return torch.empty_like(example_input).copy_(noise)
    if isinstance(example_input, (tuple, list)) and example_input:
        images = with_content(example_input[0])
        return example_input if images is example_input[0] else (images, *example_input[1:])
    return example_input


def outputs_of(model: nn.Module, example_input: Any,
               forwards: dict[GatedReLU, Callable[[Tensor], Tensor]] | None = None) -> list[Tensor]:
    """The numbers in the output in evaluation mode; `forwards` replace those of some gates.

    Raises:
        ValueError: as `tensors_in`.
    """
    with untouched(model):
        for gate, forward in (forwards or {}).items():
            gate.forward = forward
        return tensors_in(run_in_eval(model, example_input))


def outputs_with_gates(model: nn.Module, example_input: Any, calls: dict[GatedReLU, Call]) -> list[Tensor]:
    """The output where gates compute, but the original activation where kept pixels compute another one.

    Raises:
        ValueError: a gate does not run exactly once.
    """
    runs = dict.fromkeys(calls, 0)

    def counted(gate: GatedReLU, forward: Callable[[Tensor], Tensor], *args: Tensor, **kwargs: Tensor) -> Tensor:
        runs[gate] += 1
        return forward(*args, **kwargs)

    outputs = outputs_of(model, example_input, {
        gate: partial(counted, gate, gate.forward if call.kind == RELU or gate.keeps_original else call.function)
        for gate, call in calls.items()})
    wrong = [name for name, gate in iter_gates(model) if runs[gate] != 1]
    fused = [name for name, module in model.named_modules()
             if isinstance(module, nn.TransformerEncoderLayer) and getattr(module, "activation_relu_or_gelu", 0)
             and any(gate.startswith(f"{name}.") for gate in wrong)]
    if fused:
        raise ValueError(f"{', '.join(fused)}: nn.TransformerEncoderLayer has a fused path in evaluation mode, which "
                         "does not run its activation. Switch it off first, which changes no value: set "
                         "LAYER.activation_relu_or_gelu = 0")
    if wrong:
        raise ValueError(f"the model does not run {', '.join(wrong)} by that name (a reference to the activation in a "
                         f"list or a closure?), so it was left as it was. {FIX}")
    return outputs


def relies_on_inplace(model: nn.Module, example_input: Any, gates: Iterable[GatedReLU]) -> bool:
    """Whether the model uses the input of one of these gates again, after an inplace activation has overwritten it.

    It does if a function that changes every number gives another output inplace than out of place. ReLU itself would
    not show it on positive numbers.
    """
    gates = list(gates)
    out_of_place, inplace = (outputs_of(model, example_input, dict.fromkeys(gates, probe))
                             for probe in (lambda input: input.mul(0.5).add(1), lambda input: input.mul_(0.5).add_(1)))
    return not same_outputs(out_of_place, inplace)


def same_outputs(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether both hold the same numbers; NaN is the same as NaN."""
    return len(first) == len(second) and all(map(_same, first, second))


def reproducible(first: list[Tensor], second: list[Tensor]) -> list[int]:
    """Which outputs are the same in two runs and not NaN or infinite throughout, by number."""
    return [i for i, (a, b) in enumerate(zip(first, second, strict=False)) if _same(a, b) and a.isfinite().any()]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
