"""What a traced network does besides its calls' results: calls write into their operands, and hooks change results."""

from __future__ import annotations

import operator
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from autorep.convert.hooks import has_hooks
from autorep.mpc.export.place import named_in_errors


class Effects(fx.Interpreter):
    """Runs a traced network on an image, and lets whatever reads a tensor after a call wrote into it read the result.

        in the model              graph before                     graph after
        y = conv(x)               y = conv(x)                      y = conv(x)
        F.relu_(y)                z = relu_(y)                     z = relu_(y)
        return y + 1              return add(y, 1)                 return add(z, 1)
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)  # what is freed may share its address
        self.extra_traceback = False  # of torch.fx; our errors name the module
        self._places = {node: i for i, node in enumerate(graph.nodes)}
        self._writes: list[tuple[fx.Node, list[Tensor]]] = []  # a call, and what it wrote into

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node from what its operands hold now.

        Raises:
            ValueError: it fails, reads what was written in part or through a view, or has a hook that changes what it
                computes; the error names the node.
        """
        with named_in_errors(n):
            if self._is_item(n):
                self._places[n] = self._places[n.args[0]]  # it is as old as its tuple
            else:
                for operand in n.all_input_nodes:
                    n.replace_input_with(operand, self._current(operand))
            before = [(tensor, tensor._version) for node in n.all_input_nodes for tensor in _tensors(self.env[node])]
            result = super().run_node(n)
        if written := [tensor for tensor, version in before if tensor._version != version]:
            self._writes.append((n, written))
        return result

    def call_module(self, target: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of a module, which is that of its forward, whatever its hooks observe."""
        module = self.fetch_attr(target)
        if not has_hooks(module):
            return super().call_module(target, args, kwargs)
        given = fx.node.map_aggregate((args, kwargs), lambda a: a.clone() if isinstance(a, Tensor) else a)
        result = super().call_module(target, args, kwargs)
        plain = module.forward(*given[0], **given[1])  # after the hooks, which may set its weights
        if not (isinstance(result, Tensor) and isinstance(plain, Tensor) and _close(result, plain)):
            hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            names = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
            raise ValueError(f"a hook that changes what {type(module).__name__} computes cannot be exported ({names}): "
                             "remove it, or compute what it does in forward")
        return result

    @property
    def dtypes(self) -> dict[fx.Node, torch.dtype]:
        """The type of every tensor that was computed."""
        return {node: value.dtype for node, value in self.env.items() if isinstance(value, Tensor)}

    def _current(self, operand: fx.Node) -> fx.Node:
        """The node that holds what an operand holds after all writes."""
        for call, written in self._writes:
            value, result = self.env[operand], self.env[call]
            is_older = self._places[operand] < self._places[call]
            if is_older and any(_overlap(*pair) for pair in product(_tensors(value), written)):
                if not (isinstance(value, Tensor) and isinstance(result, Tensor) and _same_memory(value, result)):
                    read, wrote = (node.name.removeprefix("model_") for node in (operand, call))
                    raise ValueError(f"reading {read} after {wrote} has written into memory of it cannot be exported: "
                                     f"let {wrote} write into a clone()")
                operand = call
        return operand

    def _is_item(self, node: fx.Node) -> bool:
        return node.target is operator.getitem and isinstance(self.env[node.args[0]], (tuple, list))


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a value whose writes torch counts."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [each for each in values if isinstance(each, Tensor) and not each.is_inference()]


def _close(first: Tensor, second: Tensor) -> bool:
    same_kind = first.shape == second.shape and first.dtype == second.dtype
    return same_kind and torch.allclose(first, second, equal_nan=True)


def _overlap(first: Tensor, second: Tensor) -> bool:
    storages = {each.untyped_storage().data_ptr() for each in (first, second)}
    return len(storages) == 1 and bool(torch.isin(_addresses(first), _addresses(second)).any())


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return torch.equal(_addresses(first), _addresses(second))


def _addresses(tensor: Tensor) -> Tensor:
    """Where each element is, in bytes; of its shape."""
    storage, size = tensor.untyped_storage(), tensor.element_size()
    within = torch.arange(0, storage.nbytes(), size).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return storage.data_ptr() + within
