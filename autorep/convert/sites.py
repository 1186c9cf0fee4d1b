"""The sites of a model's activations: their names, and where their gates go."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from autorep.convert.activations import module_kind
from autorep.convert.scan import Call, Scan, scan


@dataclass(frozen=True)
class Site:
    """One place where activations are computed. `shape` is that of one image, [C, H, W] or [C]."""

    name: str
    kind: str
    shape: tuple[int, ...]
    converted: bool = False

    @property
    def num(self) -> int:
        """Activations per image."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Place:
    """Where the gate of a call goes: attribute `attribute` of `owner`, whose forward must be traced if `traced`."""

    owner: nn.Module
    attribute: str
    traced: bool


def find_sites(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> list[Site]:
    """The activations that the model computes in evaluation mode, in order, without changing the model.

    Calls inside a gate do not count: in a converted model the sites are those that the conversion left out.

    Args:
        example_input: one batch [N, C, H, W], or the tuple of the forward's tensors.
    """
    seen = scan(model, example_input)
    return name_sites(model, seen.calls, locate(model, seen))


def locate(model: nn.Module, seen: Scan) -> list[Place]:
    """Where the gate of every call of the scan belongs.

    A module that is registered once and runs once is swapped, and so is each position of a Sequential that runs once.
    Any other gate goes to the innermost running module that runs once, under a name that is free there.
    """
    parents = defaultdict(list)
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            parents[child].append((parent, attribute))
    positions: dict[nn.Module, Iterator[str]] = {}
    taken: set[tuple[nn.Module, str]] = set()
    return [_locate(call, seen.runs, parents, positions, taken) for call in seen.calls]


def _locate(call: Call, runs: Counter[nn.Module], parents: dict, positions: dict, taken: set) -> Place:
    caller = call.stack[-1]
    is_sequential = getattr(caller.forward, "__func__", None) is nn.Sequential.forward
    if call.module is not None and runs[caller] == 1 and is_sequential:
        activations = (name for name, child in caller._modules.items() if module_kind(child))
        return Place(caller, next(positions.setdefault(caller, activations)), traced=False)
    if call.module is not None and runs[call.module] == 1 and len(parents[call.module]) == 1:
        return Place(*parents[call.module][0], traced=False)
    owner = next((module for module in reversed(call.stack) if runs[module] == 1), call.stack[0])
    attribute = _free_name(owner, call, taken)
    taken.add((owner, attribute))
    return Place(owner, attribute, traced=True)


def _free_name(owner: nn.Module, call: Call, taken: set[tuple[nn.Module, str]]) -> str:
    paths = {module: path for path, module in owner.named_modules()}
    path = paths.get(call.module) or f"{paths.get(call.stack[-1], '')}.{call.label}".lstrip(".")
    base = name = path.replace(".", "_")
    number = 0
    while hasattr(owner, name) or (owner, name) in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def name_comparisons(model: nn.Module, seen: Scan) -> tuple[str, ...]:
    """What compares elements and is no activation by name, each by the path of its module."""
    paths = {module: path for path, module in model.named_modules()}
    return tuple(dict.fromkeys(f"{paths[module]}.{name}".lstrip(".") for module, name in seen.comparisons))


def name_sites(model: nn.Module, calls: list[Call], places: list[Place]) -> list[Site]:
    """The public view of calls and their places: each site has the name that its gate will have."""
    paths = {module: path for path, module in model.named_modules()}
    names = [f"{paths[place.owner]}.{place.attribute}".lstrip(".") for place in places]
    return [Site(name, call.kind, call.shape) for name, call in zip(names, calls, strict=True)]
