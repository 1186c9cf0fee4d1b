"""Run a model and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module has its own mode again, frozen ones included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside, the model's attributes (training flags too), its buffers and the RNG come back as before.

    Parameters are not saved: run under `torch.no_grad()`, take no optimiser step.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    registered = [dict(module._buffers) for module in modules]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    tensors = chain(model.parameters(), model.buffers())
    with torch.random.fork_rng(devices=sorted({t.device.index for t in tensors if t.is_cuda})):
        try:
            yield
        finally:
            for module, saved, buffers in zip(modules, attributes, registered, strict=True):
                vars(module).clear()
                vars(module).update(saved)
                module._buffers.clear()
                module._buffers.update(buffers)
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)
