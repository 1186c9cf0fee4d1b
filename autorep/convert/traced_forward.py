"""A module's forward with gates in place of calls: traced by torch.fx, children as leaves."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep.convert.activations import function_kind, is_zero, module_kind, operand
from autorep.convert.decisions import DecidingTracer, require_argument, trace_decided
from autorep.convert.hooks import hook_numbers, warn_of_hooks
from autorep.convert.traced_class import Unregistered
from autorep.models.untouched import untouched


@dataclass(frozen=True)
class TracedForward:
    """A forward to bind to the traced module, and the tensors that it needs there as attributes."""

    forward: Callable
    constants: dict[str, Tensor]


def trace_forward(owner: nn.Module, *, example: Callable[[], tuple[tuple, dict[str, Any]]],
                  inlined: Collection[nn.Module], replaced: Collection[nn.Module], arguments: Mapping[str, Any],
                  kinds: Sequence[str], gates: Mapping[int, str]) -> TracedForward:
    """The forward of `owner` in which call number i of an activation is a call of the submodule `gates[i]`.

    It branches on `self.training` only: every other decision in Python is made once, while tracing, and a call with
    other arguments, or shapes that decide otherwise, or after other attributes were set raises ValueError.

    Args:
        example: what `owner` is called with; it is asked for where shapes decide.
        inlined: modules under `owner` to trace into, because they run several times and each run has its own gates.
        replaced: activation modules all of whose calls become gates; a hook that they or those inlined get later never
            fires, which gives a warning.
        arguments: those that are not tensors, which later calls must pass again; of lists and tuples of tensors their
            length.
        kinds: the kind of every activation that one run of `owner` computes itself, in order.

    Raises:
        ValueError: what runs cannot be traced faithfully.
    """
    before = set(vars(owner))
    with untouched(owner), torch.enable_grad():
        # Trace both before compiling either, so that their constants get different names.
        with _plain_reads((owner, *inlined)) as read:
            graphs = [_trace(owner.train(training), inlined, arguments, example) for training in (True, False)]
        constants = {name: value for name, value in vars(owner).items() if name not in before}
        modes = zip(("training", "evaluation"), graphs, strict=True)
        in_training, in_eval = (_compile(owner, mode, graph, kinds, gates) for mode, graph in modes)
    paths = {module: path for path, module in owner.named_modules()}
    attributes = [(paths[module], name, value) for (module, name), value in read.items()]
    idle = {paths[module]: hook_numbers(module) for module in (*inlined, *replaced)}
    forward = _either(type(owner).forward, type(in_training).forward, type(in_eval).forward, attributes, idle)
    return TracedForward(forward, constants)


def _either(original: Callable, in_training: Callable, in_eval: Callable,
            attributes: list[tuple[str, str, Any]], idle: Mapping[str, frozenset[int]]) -> Callable:
    @wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for path, name, traced in attributes:
            _require_attribute(self.get_submodule(path), name, traced)
        warn_of_hooks(self, idle)
        return (in_training if self.training else in_eval)(self, *args, **kwargs)

    return forward


def _require_attribute(module: nn.Module, name: str, traced: Any) -> None:
    found = getattr(module, name)
    same_type = type(found) is type(traced) or {type(found), type(traced)} == {int, float}
    if found is not traced and not (same_type and (found == traced or (found != found and traced != traced))):
        raise ValueError(f"invalid {type(module).__name__}.{name}={found!r}: the model was converted with {traced!r}; "
                         "revert_gates_, set it, and convert again")


@contextmanager
def _plain_reads(modules: Sequence[nn.Module]) -> Iterator[dict[tuple[nn.Module, str], Any]]:
    """Filled within the block: (module, attribute) -> its value, for what Python may branch on and code has read."""
    own = vars(nn.Module())
    read = {}

    def recording(cls: type) -> type:
        def __getattribute__(self: nn.Module, name: str) -> Any:
            value = cls.__getattribute__(self, name)
            plain = value is None or isinstance(value, (bool, int, float, str))
            if plain and name not in own and name in object.__getattribute__(self, "__dict__"):
                read[self, name] = value
            return value

        return type(cls.__name__, (Unregistered, cls), {"__getattribute__": __getattribute__,
                                                        "__module__": cls.__module__})

    classes = [type(module) for module in modules]
    try:
        for module, cls in zip(modules, classes, strict=True):
            module.__class__ = recording(cls)
        yield read
    finally:
        for module, cls in zip(modules, classes, strict=True):
            module.__class__ = cls


class _Tracer(DecidingTracer):
    def __init__(self, inlined: Collection[nn.Module], arguments: Mapping[str, Any],
                 values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._inlined = set(inlined)
        self._arguments = arguments
        self._modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._inlined

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        root_fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        return root_fn, [args[0], *map(self._fix_argument, args[1:])]

    def _fix_argument(self, argument: fx.Proxy) -> Any:
        name = argument.node.target
        if name not in self._arguments:
            return argument
        traced = self._arguments[name]
        if isinstance(traced, (list, tuple)):  # of tensors: Python may run through them and count them
            length = self.create_proxy("call_function", len, (argument,), {})
            self.create_proxy("call_function", require_argument, (length, f"len({name})", len(traced)), {})
            return type(traced)(argument[i] for i in range(len(traced)))
        self.create_proxy("call_function", require_argument, (argument, name, traced), {})
        return traced

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise RuntimeError("a block that switches gradients or autocast would be lost")
        return super().create_node(*args, **kwargs)


def _modes() -> tuple:
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def _trace(owner: nn.Module, inlined: Collection[nn.Module], arguments: Mapping[str, Any],
           example: Callable[[], tuple[tuple, dict[str, Any]]]) -> fx.Graph:
    attributes = [dict(vars(module)) for module in (owner, *inlined)]
    generators = torch.get_rng_state(), random.getstate()
    try:
        graph = trace_decided(owner, example, partial(_Tracer, inlined, arguments))
    except Exception as error:  # whatever foreign code raises when it meets a proxy instead of a tensor
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not torch.equal(generators[0], torch.get_rng_state()) or generators[1] != random.getstate():
        raise ValueError("its forward draws random numbers, and the traced one would repeat the same ones forever")
    for module, saved in zip((owner, *inlined), attributes, strict=True):
        for name, value in vars(module).items():
            if not name.startswith("_tensor_constant") and (name not in saved or saved[name] is not value):
                raise ValueError(f"its forward sets the attribute {name!r}, and the traced one would not")
    return graph


def _compile(owner: nn.Module, mode: str, graph: fx.Graph, kinds: Sequence[str],
             gates: Mapping[int, str]) -> fx.GraphModule:
    constants = _constants(owner, graph)
    found = [(node, kind) for node in graph.nodes if node not in constants and (kind := _kind(owner, node)) is not None]
    if [kind for _, kind in found] != list(kinds):
        raise ValueError(f"it computes {list(kinds)} when it runs in evaluation mode, but {[k for _, k in found]} when "
                         f"traced in {mode} mode")
    for i, name in gates.items():
        node = found[i][0]
        with graph.inserting_before(node):
            gate = graph.call_module(name, (_operand(owner, node),))
        node.replace_all_uses_with(gate)
        graph.erase_node(node)
    root = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            # The gates do not exist yet. Only the compiled function is used, and it looks its modules up by name.
            root[node.target] = nn.Identity() if node.target in gates.values() else _attribute(owner, node.target)
    return fx.GraphModule(root, graph)


def _constants(owner: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """Parameters, and what is computed of them alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            is_constant = isinstance(_attribute(owner, node.target), nn.Parameter)
        else:
            is_constant = bool(inputs) and found.issuperset(inputs)
        if is_constant:
            found.add(node)
    return found


def _attribute(owner: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(owner)


def _kind(owner: nn.Module, node: fx.Node) -> str | None:
    if node.op == "call_module":
        return module_kind(owner.get_submodule(node.target))
    if node.op not in ("call_function", "call_method"):
        return None
    return function_kind(_function(node), node.args, node.kwargs, partial(_is_zero, owner))


def _operand(owner: nn.Module, node: fx.Node) -> fx.Node:
    if node.op == "call_module":
        return node.args[0] if node.args else next(iter(node.kwargs.values()))
    return operand(_function(node), node.args, node.kwargs, partial(_is_zero, owner))


def _function(node: fx.Node) -> Callable | None:
    return getattr(Tensor, node.target, None) if node.op == "call_method" else node.target


def _is_zero(owner: nn.Module, value: Any) -> bool:
    """Whether an argument is zero whatever the input of the graph."""
    if not isinstance(value, fx.Node):
        return is_zero(value)
    if value.op == "get_attr":
        return is_zero(_attribute(owner, value.target))
    if value.target in _PRODUCTS:
        return any(_is_zero(owner, factor) for factor in value.args)
    if value.target in _FULL:
        return is_zero(value.kwargs["fill_value"] if "fill_value" in value.kwargs else value.args[-1])
    return value.target in _ZEROS or (value.target in _SAME and _is_zero(owner, value.args[0]))


_ZEROS = (torch.zeros, torch.zeros_like, "new_zeros")
_FULL = (torch.full, torch.full_like, "new_full")
_PRODUCTS = (operator.mul, torch.mul, "mul")
_SAME = ("to", "type_as", "expand_as", "expand", "view", "clone", "detach")
