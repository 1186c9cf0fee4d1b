"""From a torch model to operations: torch.fx traces it, and an image of positions goes through the traced network."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.transforms import Normalize, v2

from autorep.convert.factories import traceable_factories
from autorep.gates.polynomial_sigmoid import Fitted
from autorep.models.untouched import evaluating
from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.bundle.ops import KINDS, Op
from autorep.mpc.export.builder import Builder
from autorep.mpc.export.effects import Effects
from autorep.mpc.export.fold import fold_batch_norms


def _recorded(function: Callable) -> Callable:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        name = function.__name__.removeprefix("i")  # that of x = x + y, for the operations of a bundle
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=name)

    return record


class _Proxy(fx.Proxy):
    """Records `x += y` as a call that writes into x, which it is; torch.fx would record x = x + y."""

    __iadd__, __isub__, __imul__, __itruediv__, __ipow__ = map(_recorded, (
        operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow))

    def __len__(self) -> int:
        value = self.tracer.value(self.node)
        return len(value) if isinstance(value, tuple) else super().__len__()


class _Tracer(fx.Tracer):
    """Traces for an example: what depends on its shape alone is decided for it."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example = example
        self._running = False  # on the example, and not tracing

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        # The transforms of v2 would be traced as nothing: they pass on whatever is no tensor, as a proxy is none.
        return isinstance(module, (Fitted, Normalize, v2.Transform)) or super().is_leaf_module(module, qualified_name)

    def to_bool(self, proxy: fx.Proxy) -> bool:
        """The truth of a condition on shapes, as it is for the example."""
        return bool(self.value(proxy.node)) if _is_of_shape(proxy.node) else super().to_bool(proxy)

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        """The items of a tuple, such as a shape or what `chunk` returns; a tensor's would be images."""
        value = self.value(obj.node)
        return iter([obj[i] for i in range(len(value))]) if isinstance(value, tuple) else super().iter(obj)

    def value(self, node: fx.Node) -> Any:
        """What a node is for the example."""
        so_far = fx.Interpreter(self.root, garbage_collect_values=False, graph=self.graph)
        self._running = True
        try:
            so_far.run(self._example.clone())  # whose first layer may be an inplace activation
        finally:
            self._running = False
        return so_far.env[node]

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(module, forward, args, kwargs)

    def getattr(self, name: str, value: Any, cache: dict[str, fx.Proxy]) -> Any:
        return value if self._running else super().getattr(name, value, cache)

    @property
    def place(self) -> str:
        """The module in which an error stopped the trace."""
        path, kind = next(reversed(self.module_stack.values()), ("", None))
        path = path.removeprefix("model").removeprefix(".")
        return f"{path} ({kind.__name__})" if path else "this model"


def _is_of_shape(node: fx.Node) -> bool:
    """Whether a node depends on no more of the image than its shape."""
    if node.target in ("size", "dim") or (node.target is getattr and node.args[1] in ("shape", "ndim")):
        return True
    return node.op in ("call_function", "call_method") and all(map(_is_of_shape, node.all_input_nodes))


class _Root(nn.Module):
    """Holds the model one level down: torch.fx ignores a forward that was set on the root object itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@dataclass(frozen=True)
class Traced:
    """A network as operations.

    Args:
        weights, public: its arrays.
        gate_names: operation of a gate or polynomial -> qualified name of its module.
        left_out: log_softmax or softmax, where the model ends with one, which leaves the order of its logits; or None.
    """

    ops: tuple[Op, ...]
    weights: Arrays
    public: Arrays
    gate_names: dict[str, str]
    left_out: str | None


def trace_model(model: nn.Module, example: Tensor) -> Traced:
    """The operations of a model, which is left as it was.

    Args:
        example: images [N, C, H, W], for the shape, type and device of one.

    Raises:
        ValueError: torch.fx cannot trace the model, or the model computes something that is no operation of a bundle.
    """
    with evaluating(model), torch.inference_mode(False), torch.no_grad():  # torch counts no writes in inference mode
        tracer = _Tracer(example[:1])
        try:
            with traceable_factories():
                graph = tracer.trace(_Root(_inside_wrappers(model)))
        except Exception as error:  # foreign code may raise anything when it gets a proxy in place of a tensor
            raise ValueError(f"{tracer.place} cannot be traced by torch.fx: {type(error).__name__}: "
                             f"{' '.join(str(error).split())}") from error
        effects = Effects(tracer.root, graph)
        effects.run(example[:1].clone())
        builder = Builder(tracer.root, graph, example[:1], effects.dtypes)
        result = builder.run(example[:1])
    if not builder.written.ops:
        raise ValueError("a model whose result is the image itself cannot be exported: it computes nothing")
    ops, arrays = fold_batch_norms(*_needed(builder.written.ops, builder.written.arrays, result))
    known = {op.name for op in ops if not KINDS[op.kind].secret}
    public = {k: v for k, v in arrays.items() if k.split("/")[0] in known}
    secret = {k: v for k, v in arrays.items() if k not in public}
    names = {op.name for op in ops}
    return Traced(tuple(ops), secret, public, {k: v for k, v in builder.gate_names.items() if k in names},
                  builder.left_out)


def _inside_wrappers(model: nn.Module) -> nn.Module:
    """The model that torch.compile, DataParallel or DistributedDataParallel has wrapped."""
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def _needed(ops: list[Op], arrays: Arrays, result: str) -> tuple[list[Op], Arrays]:
    """The operations that the result depends on."""
    needed = {result}
    for op in reversed(ops):
        if op.name in needed:
            needed.update(op.inputs)
    return ([op for op in ops if op.name in needed],
            {key: value for key, value in arrays.items() if key.split("/")[0] in needed})
