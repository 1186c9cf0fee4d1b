"""Run a model and leave it as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn


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
    """Whatever runs inside, the model's state and the random-number generators are as before at the end.

    State means the attributes of every module (training flags and hooks too), what its lists, sets and dicts hold, its
    buffers, and tensors that are plain attributes. Parameters keep no copy: run under `torch.no_grad()` and take no
    optimiser step.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    values = [value for saved in attributes for value in saved.values()]
    containers = [(value, copy.copy(value)) for value in values if isinstance(value, (dict, list, set))]
    tensors = [*model.buffers(), *(value for value in values if isinstance(value, Tensor))]
    contents = [(tensor, tensor.detach().clone()) for tensor in tensors]
    with _generators_kept(model):
        try:
            yield
        finally:
            for module, saved in zip(modules, attributes, strict=True):
                vars(module).clear()
                vars(module).update(saved)
            for container, saved in containers:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(saved)
            with torch.no_grad():
                for tensor, saved in contents:
                    if not torch.equal(tensor, saved):  # a copy to one that a backward pass still needs would break it
                        tensor.copy_(saved)


@contextmanager
def _generators_kept(model: nn.Module) -> Iterator[None]:
    """Restore the generators of Python, numpy, the CPU and the model's GPUs after the block."""
    tensors = chain(model.parameters(), model.buffers())
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (models of others draw from it)
    with torch.random.fork_rng(devices=sorted({t.device.index for t in tensors if t.is_cuda})):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
