"""Where a model computes activations: every call of an activation, seen in one forward pass."""

from __future__ import annotations

import inspect
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autorep.convert.activations import function_kind, module_kind
from autorep.gates.gated_relu import GatedReLU
from autorep.models.untouched import untouched


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


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an activation. `stack` holds the modules whose forward was running, outermost first."""

    kind: str
    module: nn.Module | None
    function: Callable[[Tensor], Tensor]
    label: str
    stack: tuple[nn.Module, ...]
    shape: tuple[int, ...]
    inplace: bool
    device: torch.device
    dtype: torch.dtype


@dataclass
class Scan:
    """What one forward pass showed: the calls in order, how often each module ran, and its arguments that are no
    tensors."""

    calls: list[Call] = field(default_factory=list)
    runs: Counter[nn.Module] = field(default_factory=Counter)
    arguments: dict[nn.Module, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where the gate of a call goes: attribute `attribute` of `owner`, whose forward must be traced if `traced`."""

    owner: nn.Module
    attribute: str
    traced: bool


def find_sites(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> list[Site]:
    """The activations that the model computes in evaluation mode, in order, without changing the model.

    Calls inside a gate do not count: of a converted model these are the sites that were left out.

    Args:
        example_input: one batch [N, C, H, W], or the tuple of the forward's tensors.
    """
    seen = scan(model, example_input)
    return name_sites(model, seen.calls, locate(model, seen))


def run_in_eval(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Any:
    """The output in evaluation mode, without gradients. Call inside `untouched`: the model stays in that mode."""
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    model.eval()
    with torch.no_grad():
        # Clones, because an inplace activation may come first.
        return model(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))


def scan(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Scan:
    """Run the model once, in evaluation mode, and record its activations; the model is left as it was.

    Raises:
        ValueError: a module is compiled by TorchScript.
    """
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise ValueError(f"{scripted[0] or 'the model'} is compiled by torch.jit, which hides its activations: convert "
                         "the Python model, before torch.jit.script")
    recorder = _Recorder()
    with untouched(model), recorder.watching(model), recorder:
        run_in_eval(model, example_input)
    return recorder.scan


class _Recorder(TorchFunctionMode):
    """Sees module calls by hooks and function calls as a torch function mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scan = Scan()
        self._stack: list[nn.Module] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        handles = []
        try:
            for module in model.modules():
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.scan.runs[module] += 1
        self.scan.arguments[module] = _plain_arguments(module, args, kwargs)
        self._stack.append(module)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self._stack.pop()
        kind = module_kind(module)
        if kind is not None:
            self._record(kind, module, module.forward, kind.lower(), (*args, *kwargs.values()), output)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        kind = function_kind(func)
        if kind is not None:
            options = {name: value for name, value in kwargs.items() if name != "input"}
            rest = args[1:]  # the function must not keep the activations alive
            self._record(kind, None, lambda x: func(x, *rest, **options), func.__name__.rstrip("_"),
                         (*args, *kwargs.values()), output)
        return output

    def _record(self, kind: str, module: nn.Module | None, function: Callable[[Tensor], Tensor], label: str,
                inputs: tuple, output: Tensor) -> None:
        inside = any(isinstance(m, GatedReLU) or module_kind(m) for m in self._stack)
        if self._stack and not inside:
            self.scan.calls.append(Call(
                kind, module, function, label, tuple(self._stack), tuple(output.shape[1:]),
                inplace=any(output is x for x in inputs), device=output.device, dtype=output.dtype))


def _plain_arguments(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments that Python may branch on: None, bool, text, and numbers that the caller left at their default. A
    number that is passed may be a size, and change."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    passed = set(bound.arguments)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items()
            if value is None or isinstance(value, (bool, str))
            or (isinstance(value, (int, float)) and name not in passed)}


def locate(model: nn.Module, seen: Scan) -> list[Place]:
    """Where the gate of every call of the scan belongs.

    A module that is registered once and runs once is swapped, and so is each position of a Sequential that runs once.
    Anything else goes to the innermost running module that runs once, under a name that is free there.
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


def name_sites(model: nn.Module, calls: list[Call], places: list[Place]) -> list[Site]:
    """The public view of calls and their places: sites named as their gates will be."""
    paths = {module: path for path, module in model.named_modules()}
    names = [f"{paths[place.owner]}.{place.attribute}".lstrip(".") for place in places]
    return [Site(name, call.kind, call.shape) for name, call in zip(names, calls, strict=True)]
