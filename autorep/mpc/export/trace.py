"""From a torch model to operations: torch.fx traces it, and an image of positions goes through the traced network."""

from __future__ import annotations

from itertools import chain, count
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep.gates.gated_relu import GatedReLU
from autorep.models.untouched import evaluating
from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.bundle.ops import KINDS, Op, Shape
from autorep.mpc.export.converters import Call, Operation, affine_of, convert, drops_at_random, is_arithmetic, moves
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
    """Runs the traced network on positions in place of values, and writes down the operation behind every tensor.

    The result of an operation holds at each element that element's own position: 0, 1, 2, ... Whatever merely moves
    or chooses elements (a view, a chunk, a shuffle) then runs as it is, and its result says where each element comes
    from. It becomes an operation when a computation reads it. A shuffle of 4 channels with 2 pixels each:

        in the model              positions                              operations
        relu                      [[0, 1], [2, 3], [4, 5], [6, 7]]       relu
        view, transpose, view     [[0, 1], [4, 5], [2, 3], [6, 7]]       none yet
        conv                      [[0, 1], [2, 3], ...], its own         pick channels (0, 2, 1, 3) of relu; conv
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, example: Tensor) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.extra_traceback = False  # of torch.fx; our errors name the module
        self.ops: list[Op] = []
        self.arrays: Arrays = {}
        self.shapes: dict[str, Shape] = {"input": tuple(example.shape[1:])}
        self.gate_names: dict[str, str] = {}
        self._example = example
        # For every node that depends on the image: the tensor whose elements its positions count.
        self._sources: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        operands = [a for a in _nodes((n.args, n.kwargs)) if a in self._sources]
        if n.op == "placeholder":
            self._sources[n] = "input"
            return self._positions(self._example.shape)
        if n.op == "output":
            if n.args[0] not in self._sources or not isinstance(self.env[n.args[0]], Tensor):
                raise ValueError("a forward that returns anything but one tensor that depends on the image cannot be "
                                 "exported")
            return self._tensor(n.args[0])
        target = self.fetch_attr(n.target) if n.op == "call_module" else n.target
        moved = [a for a in _nodes(n.args[:1] or n.kwargs) if a in self._sources]
        if not operands or (moves(target) and not moved):  # of the image at most the shape
            return super().run_node(n)  # parameters, and what is computed from them alone
        if drops_at_random(target, n.args, n.kwargs):
            raise ValueError(f"{n.name}: a dropout that is active in evaluation cannot be exported: with "
                             "training=self.training it can")
        return self._move(n, operands) if moves(target) else self._compute(n, target, operands)

    def _move(self, node: fx.Node, operands: list[fx.Node]) -> Any:
        self._sources[node] = self._sources[operands[0]]
        if node.target == "expand_as":
            return self.env[operands[0]]  # It stays small, because a product expands its operands by itself.
        return super().run_node(node)

    def _compute(self, node: fx.Node, target: Any, operands: list[fx.Node]) -> Any:
        if not all(isinstance(self.env[a], Tensor) for a in operands):
            raise ValueError(f"{node.name}: a tuple of tensors cannot be exported: each of its items can, by its index")
        args, kwargs = self._like_images(node.args), self._like_images(node.kwargs)
        result = getattr(self, node.op)(node.target, args, kwargs)
        if not _holds_tensors(result):
            return result  # a shape, for example
        if len(operands) == 1 and is_arithmetic(target):
            found = affine_of(node.name, [self._at(node, float(k)) for k in range(4)])
        else:
            found = convert(Call(node.name, target, [tuple(self.env[a].shape) for a in operands], tuple(result.shape),
                                 args, kwargs))
        if not found:
            self._sources[node] = self._sources[operands[0]]
            return self.env[operands[0]].expand(result.shape)
        name, inputs = self._free_name(node.name.removeprefix("model_")), tuple(self._tensor(a) for a in operands)
        for i, operation in enumerate(found[:-1]):
            inputs = (self._add(f"{name}.{i}", operation, inputs),)
        self._sources[node] = self._add(name, found[-1], inputs)
        if isinstance(target, GatedReLU):
            self.gate_names[name] = str(node.target).removeprefix("model.")
        # Counted in the shape of torch's result: a mean drops height and width, the pool in its place keeps them.
        return self._positions(result.shape)

    def _like_images(self, argument: Any) -> Any:
        """An argument by its value, positions as numbers of the image's type: only their shape matters here."""
        def value(node: fx.Node) -> Any:
            return self.env[node].to(self._example.dtype) if node in self._sources else self.env[node]
        return fx.node.map_arg(argument, value)

    def _at(self, node: fx.Node, value: float) -> Tensor:
        """The result of a function of the image and of constants where all of the image is this value, in float64."""
        def operand(each: fx.Node) -> Any:
            found = self.env[each]
            if each in self._sources:
                return torch.full(found.shape, value, dtype=torch.float64, device=found.device)
            return found.double() if isinstance(found, Tensor) and found.is_floating_point() else found
        return getattr(self, node.op)(node.target, *fx.node.map_arg((node.args, node.kwargs), operand))

    def _free_name(self, name: str) -> str:
        """The name itself, or with a number where a tensor has it: `input`, or a `relu` beside a `model_relu`."""
        return next(free for free in chain([name], (f"{name}_{i}" for i in count(1))) if free not in self.shapes)

    def _add(self, name: str, operation: Operation, inputs: tuple[str, ...]) -> str:
        """Write an operation down; returns its name."""
        kind = KINDS[operation.kind]
        if kind.num_inputs not in (None, len(inputs)):
            raise ValueError(f"{name}: {operation.kind} of {len(inputs)} tensors that depend on the image cannot be "
                             f"exported: of {kind.num_inputs} it can")
        op = Op(name, operation.kind, inputs, operation.attrs)
        self.shapes[name] = kind.shape(op, [self.shapes[n] for n in inputs])
        self.ops.append(op)
        self.arrays.update({f"{name}/{key}": value for key, value in operation.arrays.items()})
        return name

    def _tensor(self, node: fx.Node) -> str:
        """The name of the tensor that a node holds, after the operations that put its elements in their places.

        Raises:
            ValueError: they are neither whole channels nor flattened.
        """
        source, positions = self._sources[node], self.env[node]
        before, after = self.shapes[source], tuple(positions.shape[1:])
        if len(after) == 1 < len(before):
            source = self._once(f"{source}.flat", Operation("flatten"), source)
        if len(before) == 1 and after[1:] == (1, 1):
            source = self._once(f"{source}.pixel", Operation("unflatten"), source)
        before = self.shapes[source]
        channels = positions[0].reshape(*after[:1], -1)[..., 0] // prod(before[1:])
        if not after or not torch.equal(self._positions((1, *before))[:, channels], positions):
            raise ValueError(f"{node.name}: rearranging {list(before)} to {list(after)} cannot be exported: choosing "
                             "channels and flattening can")
        chosen = tuple(channels.tolist())
        if chosen == tuple(range(before[0])):
            return source
        return self._once(f"{node.name.removeprefix('model_')}.pick", Operation("pick", {"channels": chosen}), source)

    def _positions(self, shape: Any) -> Tensor:
        """The elements of one image, numbered in order, int64 [1, ...], on the device of the model."""
        return torch.arange(prod(shape[1:]), device=self._example.device).reshape(1, *shape[1:])

    def _once(self, name: str, operation: Operation, source: str) -> str:
        return name if name in self.shapes else self._add(name, operation, (source,))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_holds_tensors, value)))


def _nodes(argument: Any) -> list[fx.Node]:
    """The nodes in an argument, however nested."""
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return found


def trace_model(model: nn.Module, example: Tensor) -> tuple[tuple[Op, ...], Arrays, Arrays, dict[str, str]]:
    """Operations, weights, public arrays, and gate operation -> its qualified name. The model is left as it was.

    Args:
        example: images [N, C, H, W], for the shape, type and device of one.

    Raises:
        ValueError: torch.fx cannot trace the model, or the model computes something that is no operation of a bundle.
    """
    with evaluating(model), torch.no_grad():
        try:
            tracer = _Tracer()
            graph = tracer.trace(_Root(model))
        except Exception as error:  # foreign code may raise anything when it gets a proxy in place of a tensor
            raise ValueError(f"this model cannot be traced by torch.fx: {type(error).__name__}: {error}") from error
        builder = _Builder(tracer.root, graph, example[:1])
        builder.run(example[:1])
    ops, arrays = fold_batch_norms(builder.ops, builder.arrays)
    gates = {op.name for op in ops if op.kind == "gate"}
    public = {k: v for k, v in arrays.items() if k.split("/")[0] in gates}
    secret = {k: v for k, v in arrays.items() if k not in public}
    return tuple(ops), secret, public, builder.gate_names
