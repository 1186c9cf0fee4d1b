"""What Python decides while a forward is traced, and the checks that later calls come to the same decisions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from autorep.convert.factories import traceable_factories
from autorep.models.untouched import untouched

_SHAPES = ("shape", "ndim", "dtype", "device", "is_cuda")
_SHAPE_METHODS = ("size", "dim", "ndimension", "numel", "nelement", "is_floating_point")
_PLAIN = {function.__name__: function for function in (bool, len, operator.index, int, float)}


def require_argument(argument: Any, name: str, traced: Any) -> None:
    """A call in traced forwards, which are valid only for the value of the argument that they were traced with.

    Raises:
        ValueError: another value.
    """
    if isinstance(argument, fx.Proxy):  # traced once more: it becomes a check there
        argument.tracer.create_proxy("call_function", require_argument, (argument, name, traced), {})
        return
    if type(argument) is not type(traced) or argument != traced:
        raise ValueError(f"invalid {name}={argument!r}: the model was converted for {name}={traced!r}; convert it "
                         "with an example that runs it as you do")


def require_decision(value: Any, plain: str, text: str, decided: Any) -> None:
    """As `require_argument`, for what the function of the name `plain` makes of a value."""
    if isinstance(value, fx.Proxy):
        value.tracer.create_proxy("call_function", require_decision, (value, plain, text, decided), {})
        return
    require_argument(_PLAIN[plain](value), f"{plain}({text})", decided)


class _Decides:
    """What Python asks of a proxy beside its truth and its items."""

    def __len__(self: fx.Proxy) -> int:
        return self.tracer.decide(self, len)

    def __index__(self: fx.Proxy) -> int:
        return self.tracer.decide(self, operator.index)

    def __int__(self: fx.Proxy) -> int:
        return self.tracer.decide(self, int)

    def __float__(self: fx.Proxy) -> float:
        return self.tracer.decide(self, float)


class _Proxy(_Decides, fx.Proxy):
    def __getattr__(self, k: str) -> fx.Proxy:
        return _Attribute(self, k)


class _Attribute(_Decides, fx.proxy.Attribute):
    __getattr__ = _Proxy.__getattr__


class _Undecided(BaseException):
    """Ends a trace that needs the value of a node; code under the trace must not catch it."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.node = node


def _is_of_shapes(node: fx.Node) -> bool:
    """Whether it depends on the shapes of tensors alone, or their types."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    if node.target is getattr:
        return node.args[1] in _SHAPES or _is_of_shapes(node.args[0])
    return node.op == "call_function" and bool(node.all_input_nodes) and all(map(_is_of_shapes, node.all_input_nodes))


def _text(value: Any) -> str:
    """A node as an expression, as far as functions and attributes go."""
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.target is getattr:
        return f"{_text(value.args[0])}.{value.args[1]}"
    if value.target is operator.getitem:
        return f"{_text(value.args[0])}[{_text(value.args[1])}]"
    if value.op in ("call_function", "call_method"):
        name = value.target if isinstance(value.target, str) else value.target.__name__
        return f"{name}({', '.join(map(_text, value.args))})"
    return value.name


class DecidingTracer(fx.Tracer):
    """Takes decisions on shapes, and leaves checks of them in the graph.

    Args:
        values: name of a node -> its value, as far as they are known.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self._values = values

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return self.decide(obj, bool)

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        return iter([obj[i] for i in range(len(obj))])

    def decide(self, obj: fx.Proxy, plain: Callable[[Any], Any]) -> Any:
        """A number that Python asks for, which depends on shapes alone; later calls must come to the same one.

        Raises:
            TraceError: it may depend on the numbers in a tensor.
        """
        if not _is_of_shapes(obj.node):
            raise fx.proxy.TraceError(f"it takes a decision on {_text(obj.node)}, which may depend on the images")
        if obj.node.name not in self._values:
            raise _Undecided(obj.node)
        value = plain(self._values[obj.node.name])
        self.create_proxy("call_function", require_decision, (obj, plain.__name__, _text(obj.node), value), {})
        return value


def trace_decided(owner: nn.Module, example: Callable[[], tuple[tuple, dict[str, Any]]],
                  tracer: Callable[[Mapping[str, Any]], DecidingTracer]) -> fx.Graph:
    """The graph of a trace that starts again, with one more value, wherever it meets a decision on shapes.

    Args:
        example: what `owner` is called with.
        tracer: makes a tracer that knows some values.
    """
    values: dict[str, Any] = {}
    before = set(vars(owner))
    while True:
        try:
            with traceable_factories():
                return tracer(values).trace(owner)
        except _Undecided as undecided:
            node = undecided.node
        node.graph.output(node)
        args, kwargs = example()
        with untouched(owner), torch.no_grad():
            values[node.name] = fx.GraphModule(owner, node.graph).eval()(*args, **kwargs)
        for name in set(vars(owner)) - before:
            delattr(owner, name)  # a constant of the trace that ended
