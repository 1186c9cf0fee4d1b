"""Runs a traced network on positions in place of values and writes operations down."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autorep.gates.polynomial_sigmoid import Fitted
from autorep.mpc.bundle.ops import KINDS
from autorep.mpc.export.activations import is_clamp, is_relu
from autorep.mpc.export.converters import convert, needs_one_shape
from autorep.mpc.export.moving import KEPT, joins, moves
from autorep.mpc.export.operation import Call, Operation, named
from autorep.mpc.export.place import named_in_errors, place_of
from autorep.mpc.export.pointwise import PROBES, is_pointwise, pointwise_operations
from autorep.mpc.export.written import Written


class Builder(fx.Interpreter):
    """Runs the traced network on positions in place of values, and writes down the operation behind every tensor.

    The result of an operation holds at each element that element's own position: 1, 2, 3, ... Whatever merely moves
    or chooses elements (a view, a chunk, a shuffle) then runs as it is, and its result says where each element comes
    from; 0 is a zero that was padded. It becomes an operation when a computation reads it. A shuffle of 4 channels with
    2 pixels each:

        in the model              positions                              operations
        relu                      [[1, 2], [3, 4], [5, 6], [7, 8]]       relu
        view, transpose, view     [[1, 2], [5, 6], [3, 4], [7, 8]]       none yet
        conv                      [[1, 2], [3, 4], ...], its own         pick channels (0, 2, 1, 3) of relu; conv

    An expression of one element and constants becomes an operation as a whole, if there is one for it: its first parts
    need not be one. They have an error in store, which is raised when anything else reads them.

    Args:
        example: an image [1, C, H, W], for its shape and device.
        dtypes: of every node that holds a tensor.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, example: Tensor,
                 dtypes: Mapping[fx.Node, torch.dtype]) -> None:
        super().__init__(fx.GraphModule(model, graph), garbage_collect_values=False)  # expressions look back
        self.extra_traceback = False  # of torch.fx; our errors name the module
        self.written = Written(tuple(example.shape[1:]))
        self.gate_names: dict[str, str] = {}
        self.left_out: str | None = None  # a softmax at the end
        self._example = example
        self._dtypes = dtypes
        self._numbers = functools.cache(lambda shape: torch.arange(
            1, prod(shape) + 1, dtype=torch.float64, device=example.device).reshape(1, *shape))
        # For every node that depends on the image: the tensor whose elements its positions count, or an error.
        self._sources: dict[fx.Node, str | ValueError] = {}
        # Of expressions: the tensors that they are expressions of, in order of computation.
        self._roots: dict[fx.Node, list[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node and add what it is to the graph. Raises ValueError that names the node."""
        operands = [a for a in _nodes((n.args, n.kwargs)) if a in self._sources]
        if n.op == "placeholder":
            self._sources[n] = "input"
            return self._positions(self._example.shape)
        with named_in_errors(n):
            return self._finish(n.args[0]) if n.op == "output" else self._run(n, operands)

    def _finish(self, node: Any) -> str:
        if isinstance(node, fx.Node) and _is_softmax(node, self._target(node)):
            self.left_out = "log_softmax" if "log" in str(self._target(node)).lower() else "softmax"
            node = node.all_input_nodes[0]
        if node not in self._sources or not isinstance(self.env[node], Tensor):
            raise ValueError("a forward that returns anything but one tensor that depends on the image cannot be "
                             "exported")
        return self._tensor(node, self.env[node])

    def _run(self, node: fx.Node, operands: list[fx.Node]) -> Any:
        target = self._target(node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: None if a in operands else self.env[a])
        moved = [a for a in _nodes(node.args[:1] or node.kwargs) if a in self._sources]
        moving = bool(operands) and moves(target, args, kwargs)
        if not operands or target in _OF_SHAPES or (moving and not moved):  # of the image at most its shape and type
            return getattr(self, node.op)(node.target, self._like_images(node.args), self._like_images(node.kwargs))
        if moving:
            return self._move(node, operands)
        if joins(target, args, kwargs):
            return self._join(node, operands)
        return self._compute(node, target, operands)

    def _target(self, node: fx.Node) -> Any:
        return self.fetch_attr(node.target) if node.op == "call_module" else node.target

    def _move(self, node: fx.Node, operands: list[fx.Node]) -> Any:
        self._sources[node] = self._source(operands[0])
        if node.target in KEPT:
            if not self._dtypes[node].is_floating_point:
                raise ValueError(f"rounding to {self._dtypes[node]} cannot be exported: numbers stay floating-point")
            return self.env[operands[0]]
        return super().run_node(node)

    def _join(self, node: fx.Node, operands: list[fx.Node]) -> Tensor:
        """Elements of several tensors side by side, in whatever dimension, are elements of their concatenation."""
        if len({str(self._sources[a]) for a in operands}) == 1:
            return self._move(node, operands)
        held = {a: self._tensor(a, self.env[a]) for a in operands}
        whole, begins = self.written.concatenated(list(held.values()), _name(node))
        positions = {a: self._numbers(self.env[a].shape[1:]) + begins[name] for a, name in held.items()}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: positions.get(a, self.env[a]))
        self._sources[node] = whole
        return getattr(self, node.op)(node.target, args, kwargs)

    def _compute(self, node: fx.Node, target: Any, operands: list[fx.Node]) -> Any:
        if not all(isinstance(self.env[a], Tensor) for a in operands):
            raise ValueError("a tuple of tensors cannot be exported: each of its items can, by its index")
        args, kwargs = self._like_images(node.args), self._like_images(node.kwargs)
        result = getattr(self, node.op)(node.target, args, kwargs)
        if not _holds_tensors(result):
            return result  # a shape, for example
        if not isinstance(result, Tensor):
            raise ValueError("a result of several tensors, such as values beside their positions, cannot be exported: "
                             "that of amax in place of max can")
        roots = self._roots[node] = self._common_roots(target, operands, result)
        try:
            expressed = self._expressed(node, roots, operands)
            if expressed is None:
                for operand in operands:
                    self._source(operand)
            in_order = operands[::-1] if target is torch.rsub else operands
            read, found = expressed or (in_order, convert(Call(
                target, [tuple(self.env[a].shape) for a in operands], tuple(result.shape), args, kwargs)))
        except ValueError as error:
            if not roots and not _is_softmax(node, target):
                raise
            for root in roots:  # with a comparison of its own, so after all that may read one which is there
                if bent := pointwise_operations({x: self._at(node, root, x) for x in PROBES}, bent=True):
                    return self._write(node, target, [root], bent, result)
            self._sources[node] = ValueError(f"{place_of(node)}{error}")
            return self._positions(result.shape)
        return self._write(node, target, read, found, result)

    def _expressed(self, node: fx.Node, roots: list[fx.Node],
                   operands: list[fx.Node]) -> tuple[list[fx.Node], list[Operation]] | None:
        """An expression as one operation of the earliest of its roots that it is one of."""
        if not roots or (is_relu(self._target(node)) and self._is_written(operands[0])):
            return None  # a plain ReLU needs no look at its values
        for root in roots:
            found = pointwise_operations({x: self._at(node, root, x) for x in PROBES})
            if found is not None:
                return [root], found
        if len(operands) == 1 and not is_clamp(self._target(node)):
            raise ValueError("an expression of one element and constants cannot be exported unless it is ReLU at some "
                             "pixels and a polynomial of degree 2 or less at the others, or has two slopes that meet "
                             "at zero")
        return None

    def _write(self, node: fx.Node, target: Any, operands: list[fx.Node], found: list[Operation],
               result: Tensor) -> Tensor:
        source, positions, given = self._source(operands[0]), self.env[operands[0]], ()
        name = self.written.free_name(_name(node))
        names = iter([*(f"{name}.{i}" for i in range(sum(each.kind != "rearrange" for each in found) - 1)), name])
        for operation in found:
            if operation.kind == "rearrange" and len(operands) == 1:
                positions = _chosen(positions, operation.arrays["positions"])
                continue
            if given:  # where an operation takes two, the second is what the first operation read last
                inputs = self.written.in_place(source, positions, name), *given[-1:]
                inputs = inputs[:KINDS[operation.kind].num_inputs]
            elif len(operands) > 1:
                inputs = self._inputs(operation, operands, result.shape)
            else:
                inputs = (self.written.in_place(source, positions, _name(operands[0])),)
            given = given or inputs
            source = self.written.add(next(names), operation, inputs)
            positions = self._numbers(self.written.shapes[source])
        if not found:
            positions = positions.expand(result.shape)
        if len(result) != 1 or positions.numel() != result.numel():
            raise ValueError(f"a result of {list(result.shape)} from {list(positions.shape)} cannot be exported: the "
                             "first dimension has to count images, and no constant may repeat one")
        if isinstance(target, Fitted):
            self.gate_names[name] = str(node.target).removeprefix("model.")
        self._sources[node] = source
        return positions.reshape(result.shape)  # a mean drops height and width, its pool keeps them

    def _inputs(self, operation: Operation, operands: list[fx.Node], shape: torch.Size) -> tuple[str, ...]:
        """The tensors of its operands, expanded to the shape of its result where an operation does not do so itself."""
        positions = [self.env[a] for a in operands]
        if operation.kind == "mul":
            positions = _not_expanded(positions, shape)
        if needs_one_shape(operation, [each.shape for each in positions]):
            positions = [each.expand(shape) for each in positions]
        return tuple(map(self._tensor, operands, positions))

    def _common_roots(self, target: Any, operands: list[fx.Node], result: Tensor) -> list[fx.Node]:
        """What a call is an expression of: tensors from one element of which it computes each of its elements."""
        if not is_pointwise(target):
            return []
        first, *others = ([*self._roots.get(a, ()), *[a] * self._is_written(a)] for a in operands)
        return [root for root in first if self.env[root].shape == result.shape and all(root in o for o in others)]

    def _is_written(self, node: fx.Node) -> bool:
        return isinstance(self._sources[node], str)

    def _like_images(self, argument: Any) -> Any:
        """An argument by its value, positions as numbers of their tensor's type: only their shape matters here."""
        def value(node: fx.Node) -> Any:
            return self.env[node].to(self._dtypes[node], copy=True) if node in self._sources else self.env[node]
        return fx.node.map_arg(argument, value)

    def _at(self, node: fx.Node, root: fx.Node, value: float) -> np.ndarray:
        """An expression where each element of its root is this value, float64 [C, ...]."""
        known = {root: torch.full(self.env[root].shape, value, dtype=torch.float64, device=self._example.device)}

        def of(each: fx.Node) -> Any:
            if each in known:
                return known[each].clone()  # from what writes into its operand
            if each is node or each in self._sources:
                known[each] = getattr(self, each.op)(each.target, *fx.node.map_arg((each.args, each.kwargs), of))
                return known[each].clone()
            constant = self.env[each]
            is_real = isinstance(constant, Tensor) and constant.is_floating_point()
            return constant.double() if is_real else constant

        return of(node).double()[0].cpu().numpy()

    def _source(self, node: fx.Node) -> str:
        """The tensor whose elements the positions of a node count.

        Raises:
            ValueError: it is a part of an expression for which there is no operation.
        """
        source = self._sources[node]
        if isinstance(source, ValueError):
            raise source
        return source

    def _tensor(self, node: fx.Node, positions: Tensor) -> str:
        """The name of the tensor that holds elements of a node's tensor, after the operations that put them in place.

        Raises:
            ValueError: they are elements of other images, or of no single tensor.
        """
        return self.written.in_place(self._source(node), positions, _name(node))

    def _positions(self, shape: Any) -> Tensor:
        """The elements of one image, numbered from 1, float64 [1, ...], which padding and upsampling take too."""
        return self._numbers(tuple(shape[1:]))


def _not_expanded(positions: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """Factors without the pixels that one of them repeats: a product expands [C, 1, 1] by itself, at no price."""
    repeated = [each.dim() == 4 and torch.equal(each, each[:, :, :1, :1].expand(each.shape)) for each in positions]
    if repeated.count(False) != 1 or positions[repeated.index(False)].shape != shape:
        return positions
    return [each[:, :, :1, :1] if repeats else each for each, repeats in zip(positions, repeated, strict=True)]


_OF_SHAPES = (torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full", "new_tensor",
              "size", "dim")
_SOFTMAX = (nn.Softmax, nn.LogSoftmax)
_SOFTMAX_CALLS = (F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, torch.special.softmax,
                  torch.special.log_softmax, "softmax", "log_softmax")


def _is_softmax(node: fx.Node, target: Any) -> bool:
    """Whether a node is a softmax over classes, which leaves their order as it is."""
    if not isinstance(target, _SOFTMAX) and target not in _SOFTMAX_CALLS:
        return False
    dim = target.dim if isinstance(target, nn.Module) else named(node.args, node.kwargs, "input", "dim").get("dim")
    return dim in (1, -1, None)  # None is 1, of [N, classes]


def _chosen(positions: Tensor, places: np.ndarray) -> Tensor:
    """The positions [1, ...] of the elements in these places, which are counted from 0; -1: zero."""
    places = torch.from_numpy(places).to(positions.device)
    return torch.where(places < 0, 0, positions.flatten()[places])[None]


def _name(node: fx.Node) -> str:
    return node.name.removeprefix("model_")


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_holds_tensors, value)))


def _nodes(argument: Any) -> list[fx.Node]:
    """The nodes in an argument, however nested."""
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return found
