"""The numbers in what a model returns, wherever they are in it."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# A model may be part of its output; the others hold no tensors.
_PLAIN = (str, bytes, type, nn.Module, io.IOBase, logging.Logger)


def tensors_in(output: Any) -> list[Tensor]:
    """Copies of all tensors, arrays and fractions in an output: in containers, attributes of objects, and closures.

    Raises:
        ValueError: there is none, so that nothing could be compared, or an iterator, which a look would use up.
    """
    found = [dense.clone() for tensor in _tensors(output, set()) for dense in _dense(tensor)]
    if not found:
        raise ValueError(f"no tensor was found in what the forward returns ({type(output).__name__}), so the "
                         "conversion could not be verified: return a tensor, or tensors in a tuple, a dict or an "
                         "object's attributes")
    return found


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, float):
            yield torch.tensor(leaf, dtype=torch.float64)
        elif isinstance(leaf, (np.ndarray, np.generic)):
            if np.issubdtype(leaf.dtype, np.number):
                yield torch.tensor(np.asarray(leaf))
        elif isinstance(leaf, _PLAIN):
            continue
        elif isinstance(leaf, Iterator):
            raise ValueError(f"the forward returns an iterator ({type(leaf).__name__}), which a look would use up, so "
                             "the conversion could not be verified: return a list")
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            for each in _held(leaf):
                yield from _tensors(each, seen)


def _held(value: Any) -> list[Any]:
    """What an object holds: attributes, items, and what a function has closed over or is bound to."""
    held = list(getattr(value, "__dict__", {}).values())
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            held.append(getattr(value, f"_{cls.__name__.lstrip('_')}{name}" if private else name, None))
    if isinstance(value, Mapping):
        held += value.values()
    elif isinstance(value, Iterable):
        held += value
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # of a variable that has no value yet
                held.append(cell.cell_contents)
    elif isinstance(value, types.MethodType):
        held.append(value.__self__)
    elif isinstance(value, functools.partial):
        held += [value.func, value.args, value.keywords]
    return held


def _dense(tensor: Tensor) -> Iterable[Tensor]:
    if tensor.is_nested:
        return tensor.unbind()
    return [tensor if tensor.layout == torch.strided else tensor.to_dense()]
