"""From a torch model to operations: torch.fx traces it, one image shows the shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep.gates.gated_relu import GatedReLU
from autorep.models.untouched import evaluating
from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.bundle.ops import KINDS, Op, Shape
from autorep.mpc.export.converters import converter
from autorep.mpc.export.fold import fold_batch_norms


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, GatedReLU) or super().is_leaf_module(module, qualified_name)


class _Root(nn.Module):
    """Holds the model one level down: torch.fx ignores a forward that was set on the root object itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _Builder(fx.Interpreter):
    """Runs the traced network on an image and writes down the operation behind every tensor.

    What only moves elements is followed by their numbers, and becomes an operation where something computes with it.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.ops: list[Op] = []
        self.arrays: Arrays = {}
        self.shapes: dict[str, Shape] = {}
        self.gate_names: dict[str, str] = {}
        # Of every value that depends on the image: the tensor that it comes from, and the numbers of the elements of
        # that tensor in it, [1, ...], or a tuple of such.
        self.moved: dict[fx.Node, tuple[str, Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            self.shapes["input"] = tuple(result.shape[1:])
            self.moved[n] = ("input", _numbers(result.shape))
        elif n.op == "output":
            if n.args[0] not in self.moved:
                raise ValueError("a forward that returns anything but one tensor that depends on the image cannot be "
                                 "exported")
            self._tensor(n.args[0])
        elif _holds_tensors(result):
            self._record(n, result)
        return result

    def _record(self, node: fx.Node, result: Any) -> None:
        operands = [a for a in _nodes((node.args, node.kwargs)) if a in self.moved]
        if not operands:
            return  # parameters, and what is computed from them alone
        target = self.fetch_attr(node.target) if node.op == "call_module" else node.target
        convert = converter(node.op, target)
        if convert is None:
            what = type(target).__name__ if node.op == "call_module" else getattr(target, "__name__", target)
            raise ValueError(f"{node.name}: {what} cannot be exported: private inference knows convolution, linear, "
                             "batch norm, ReLU and gates, sums, products, concatenation, pooling, and moving elements")
        shapes = [tuple(getattr(self.env[a], "shape", ())) for a in operands]
        args, kwargs = [self._plain(a) for a in node.args], {k: self._plain(v) for k, v in node.kwargs.items()}
        found = convert(target, shapes, tuple(getattr(result, "shape", ())), args, kwargs)
        if callable(found):
            source, numbers = self.moved[operands[0]]
            self.moved[node] = (source, found(numbers))
            return
        name, inputs = node.name.removeprefix("model_"), tuple(self._tensor(a) for a in operands)
        *before, (kind, attrs, arrays) = found if isinstance(found, list) else [found]
        for i, operation in enumerate(before):
            inputs = (self._add(f"{name}.{i}", operation[0], inputs, *operation[1:]),)
        self._add(name, kind, inputs, attrs, arrays)
        # A mean over height and width drops them, the pool that stands for it does not.
        self.moved[node] = (name, _numbers(result.shape))
        if isinstance(target, GatedReLU):
            self.gate_names[name] = str(node.target).removeprefix("model.")

    def _plain(self, argument: Any) -> Any:
        """An argument by its value; None where it depends on the image."""
        if any(a in self.moved for a in _nodes(argument)):
            return None
        return fx.node.map_arg(argument, lambda a: self.env[a])

    def _add(self, name: str, kind: str, inputs: tuple[str, ...], attrs: dict, arrays: Arrays) -> str:
        """Write an operation down; returns its name."""
        op = Op(name, kind, inputs, attrs)
        self.shapes[name] = KINDS[kind].shape(op, [self.shapes[n] for n in inputs])
        self.ops.append(op)
        self.arrays.update({f"{name}/{key}": value for key, value in arrays.items()})
        return name

    def _tensor(self, node: fx.Node) -> str:
        """The name of the tensor that a node holds, after the operations that put its elements in their places.

        Raises:
            ValueError: they are neither whole channels nor flattened.
        """
        source, numbers = self.moved[node]
        before, after = self.shapes[source], tuple(numbers.shape[1:])
        if len(after) == 1 < len(before):
            source = self._once(f"{source}.flat", "flatten", source, {})
        if len(before) == 1 and after[1:] == (1, 1):
            source = self._once(f"{source}.pixel", "unflatten", source, {})
        before = self.shapes[source]
        channels = numbers.reshape(*after[:1], -1)[:, 0] * before[0] // _size(before)
        whole = _numbers((1, *before))[0][channels]
        if whole.shape != after or not torch.equal(whole, numbers[0]):
            raise ValueError(f"{node.name}: rearranging {list(before)} to {list(after)} cannot be exported: choosing "
                             "channels and flattening can")
        chosen = tuple(channels.tolist())
        if chosen == tuple(range(before[0])):
            return source
        return self._once(f"{node.name.removeprefix('model_')}.pick", "pick", source, {"channels": chosen})

    def _once(self, name: str, kind: str, source: str, attrs: dict) -> str:
        return name if name in self.shapes else self._add(name, kind, (source,), attrs, {})


def _numbers(shape: Any) -> Tensor:
    """The elements of one image, numbered: [1, ...]."""
    return torch.arange(_size(shape[1:])).reshape(1, *shape[1:])


def _size(shape: Any) -> int:
    return int(torch.Size(shape).numel())


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_holds_tensors, value)))


def _nodes(argument: Any) -> list[fx.Node]:
    """The nodes in an argument, however nested."""
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return found


def trace_model(model: nn.Module, example: Tensor) -> tuple[tuple[Op, ...], Arrays, Arrays, dict[str, str]]:
    """Operations, weights, public arrays, and gate operation -> its qualified name. The model is left as it was.

    Raises:
        ValueError: torch.fx cannot trace the model, or it computes something that no operation stands for.
    """
    with evaluating(model), torch.no_grad():
        try:
            tracer = _Tracer()
            graph = tracer.trace(_Root(model))
        except Exception as error:  # whatever foreign code raises when it meets a proxy instead of a tensor
            raise ValueError(f"this model cannot be traced by torch.fx: {type(error).__name__}: {error}") from error
        builder = _Builder(tracer.root, graph)
        builder.run(example[:1])
    ops, arrays = fold_batch_norms(builder.ops, builder.arrays)
    gates = {op.name for op in ops if op.kind == "gate"}
    public = {k: v for k, v in arrays.items() if k.split("/")[0] in gates}
    secret = {k: v for k, v in arrays.items() if k not in public}
    return tuple(ops), secret, public, builder.gate_names
