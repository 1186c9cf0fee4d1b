"""Every call of an activation that one forward pass of a model makes."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._ops import OpOverload
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from autorep.convert.activations import compares, function_kind, function_name, is_activation, is_zero, module_kind
from autorep.convert.hooks import watching_all
from autorep.gates.gated_relu import GatedReLU
from autorep.models.untouched import untouched

_OF_SHAPE = ("zeros_like", "full_like", "new_zeros", "new_full")
_LIKE_ANOTHER = ("to", "type_as", "expand_as", "view_as", "reshape_as")
_PRODUCTS = ("mul", "__mul__", "__rmul__", "multiply")


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
    """What one forward pass shows.

    Attributes:
        calls: of activations, in order.
        runs: how often each module ran.
        comparisons: the module and the function of what compares elements and is no activation by name.
        arguments: what each module got that is not a tensor; of lists and tuples of tensors the length.
    """

    calls: list[Call] = field(default_factory=list)
    runs: Counter[nn.Module] = field(default_factory=Counter)
    arguments: dict[nn.Module, dict[str, Any]] = field(default_factory=dict)
    comparisons: list[tuple[nn.Module, str]] = field(default_factory=list)


def scan(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Scan:
    """Run the model once in evaluation mode and record its activations; the model stays as it was.

    Raises:
        ValueError: a module hides its activations or has no weights yet, or the example is none.
    """
    for name, module in model.named_modules():
        if (hindrance := _hindrance(module)) is not None:
            raise ValueError(f"{name or 'the model'} {hindrance}")
    recorder = _Recorder()
    with untouched(model), recorder.watching(model), recorder, _Operations(recorder.see), watching_all():
        run_in_eval(model, example_input)
    return recorder.scan


def _hindrance(module: nn.Module) -> str | None:
    """Why the activations of a module cannot be converted now, and what to do; or None."""
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        return ("is compiled by torch.compile, which hides its activations; convert the model first (MODEL._orig_mod "
                "where torch.compile(MODEL) made a new one), then compile it")
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by torch.jit, which hides its activations; convert the Python model before torch.jit.script"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "is a lazy module without weights; run the model once, then convert it"
    if any(tensor.is_meta for tensor in module.parameters(recurse=False)):
        return "is on the meta device, where nothing is computed; convert it on the device that it runs on"
    return None


def run_in_eval(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Any:
    """The output in evaluation mode, without gradients. Call it inside `untouched`: the model stays in that mode.

    Raises:
        ValueError: the example is no tensor and no tuple with more than numbers, or not what the forward takes, or the
            model has no evaluation mode.
    """
    inputs = (example_input,) if isinstance(example_input, Tensor) else example_input
    if not isinstance(inputs, (tuple, list)) or all(isinstance(x, (int, float)) for x in inputs):
        raise ValueError(f"invalid example_input of type {type(example_input).__name__}: expected a tensor, one batch "
                         "[N, C, H, W], or the tuple of all that the forward takes")
    try:
        inspect.signature(model.forward).bind(*inputs)
    except TypeError as error:
        raise ValueError(f"invalid example_input of {len(inputs)} items: the forward of {type(model).__name__} does "
                         f"not take them ({error}); of a batch with labels give the images alone") from error
    try:
        model.eval()
    except NotImplementedError as error:
        raise ValueError(f"the model refuses evaluation mode ({error}), as those of torch.export do; convert the "
                         "Python model before torch.export") from error
    with torch.no_grad():
        # The model gets clones, because its first layer may be an inplace activation.
        return model(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))


def arguments_of(module: nn.Module, model: nn.Module,
                 example_input: Tensor | tuple[Tensor, ...]) -> tuple[tuple, dict[str, Any]]:
    """What a module is called with when the model, which stays as it was, runs on the example."""
    found = []
    with untouched(model):
        module.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
        run_in_eval(model, example_input)
    return found[0]


def _call(function: Callable, rest: tuple, options: dict[str, Any], x: Tensor) -> Tensor:
    """What a copy of the model calls too: a copy of a `partial` holds copies of the parameters in `rest`."""
    return function(x, *rest, **options)


class _Operations(TorchDispatchMode):
    """Shows the operations that calls come down to. Those of a script it calls, so that a function mode sees them."""

    def __init__(self, see: Callable[[OpOverload], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self._see(func)
        return func(*args, **(kwargs or {}))


class _Recorder(TorchFunctionMode):
    """Sees calls of modules through hooks, and calls of functions as a torch function mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scan = Scan()
        self._stack: list[nn.Module] = []
        self._unnamed = ""  # the function that runs, if it is no activation by name
        self._constant = WeakTensorKeyDictionary()  # parameters, and what is computed of them alone
        # Address -> storage that holds something else since; kept, so that no other takes its address.
        self._written: dict[int, UntypedStorage] = {}
        self._computed = WeakTensorKeyDictionary()  # of the input: its numbers may differ for another one

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within the block the modules of `model` are entered and left by name."""
        handles = []
        self._constant.update(dict.fromkeys(model.parameters()))
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
        if kind is not None and not self._are_constant(_tensors((args, kwargs))):
            self._record(kind, module, module.forward, kind.lower(), (*args, *kwargs.values()), output)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        constant, kind = self._are_constant(tensors), function_kind(func, args, kwargs, self._is_zero)
        versions = [_version(tensor) for tensor in tensors]
        erases = self._erases(func, args)
        name = function_name(func)
        self._unnamed = "" if constant or kind is not None else name
        try:
            output = func(*args, **kwargs)
        finally:
            self._unnamed = ""
        if constant:
            self._constant.update(dict.fromkeys(_tensors(output)))
            return output
        written = [tensor.untyped_storage() for tensor, version in zip(tensors, versions, strict=True)
                   if version != _version(tensor)]
        self._written.update((storage.data_ptr(), storage) for storage in written)
        if tensors and not erases:
            self._computed.update(dict.fromkeys(_tensors(output)))
        if kind is not None:
            options = {name: value for name, value in kwargs.items() if name != "input"}
            rest = args[1:]  # without the activations, which the function must not keep alive
            self._record(kind, None, partial(_call, func, rest, options), name, (*args, *kwargs.values()), output)
        elif self._stack and compares(func, (*args, *kwargs.values()), output):
            self.scan.comparisons.append((self._stack[-1], name))
        return output

    def see(self, operation: OpOverload) -> None:
        """Note an activation inside a function that is none by name."""
        if self._unnamed and self._watches() and is_activation(operation):
            self.scan.comparisons.append((self._stack[-1], self._unnamed))

    def _watches(self) -> bool:
        """Whether a module runs that is no activation itself."""
        return bool(self._stack) and not any(isinstance(m, GatedReLU) or module_kind(m) for m in self._stack)

    def _are_constant(self, tensors: list[Tensor]) -> bool:
        """Whether these are parameters, or computed of them alone, and nothing else was written into them."""
        return bool(tensors) and all(
            tensor in self._constant and tensor.untyped_storage().data_ptr() not in self._written for tensor in tensors)

    def _erases(self, func: Callable, args: tuple) -> bool:
        """Whether a call makes numbers that do not depend on those of its tensors."""
        name = getattr(func, "__name__", "")
        if name in _LIKE_ANOTHER:
            return bool(args) and self._is_zero(args[0])
        return name in _OF_SHAPE or (name in _PRODUCTS and any(map(self._is_zero, args)))

    def _is_zero(self, value: Any) -> bool:
        """Whether it is zero whatever the input: activations of the example may happen to be."""
        return is_zero(value) and not (isinstance(value, Tensor) and value in self._computed)

    def _record(self, kind: str, module: nn.Module | None, function: Callable[[Tensor], Tensor], label: str,
                inputs: tuple, output: Tensor) -> None:
        if self._watches():
            self.scan.calls.append(Call(
                kind, module, function, label, tuple(self._stack), tuple(output.shape[1:]),
                inplace=any(output is x for x in inputs), device=output.device, dtype=output.dtype))


def _version(tensor: Tensor) -> int:
    """How often it was written into, as far as torch counts."""
    return 0 if tensor.is_inference() else tensor._version


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


def _plain_arguments(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments that Python may branch on: None, bool, text, and numbers that the caller left at their default.

    A number that the caller passes may be a size, which changes from call to call. Lists and tuples of tensors are
    there with None for each tensor.
    """
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    passed = set(bound.arguments)
    bound.apply_defaults()
    plain = {name: value for name, value in bound.arguments.items()
             if value is None or isinstance(value, (bool, str))
             or (isinstance(value, (int, float)) and name not in passed)}
    return plain | {name: type(value)([None] * len(value)) for name, value in bound.arguments.items()
                    if type(value) in (list, tuple) and all(isinstance(each, Tensor) for each in value)}
