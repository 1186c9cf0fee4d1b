"""The operations that are written down, and elements of their tensors put in place by further ones."""

from __future__ import annotations

from itertools import accumulate, chain, count
from math import prod

import numpy as np
from torch import Tensor

from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.bundle.ops import KINDS, Op, Shape
from autorep.mpc.export.operation import Operation, rearranged


class Written:
    """Operations in order of computation, their arrays ("op/array"), and the shape of every tensor of one image."""

    def __init__(self, input_shape: Shape) -> None:
        self.ops: list[Op] = []
        self.arrays: Arrays = {}
        self.shapes: dict[str, Shape] = {"input": input_shape}
        self._moved: dict[tuple, str] = {}  # a tensor and what moves its elements -> the tensor that holds them moved

    def free_name(self, name: str) -> str:
        """The name itself, or with a number where a tensor has it: `input`, or a `relu` beside a `model_relu`."""
        return next(free for free in chain([name], (f"{name}_{i}" for i in count(1))) if free not in self.shapes)

    def add(self, name: str, operation: Operation, inputs: tuple[str, ...]) -> str:
        """Write an operation down; returns its name. Raises ValueError if it takes another number of inputs."""
        kind = KINDS[operation.kind]
        if kind.num_inputs not in (None, len(inputs)):
            raise ValueError(f"{operation.kind} of {len(inputs)} tensors that depend on the image cannot be exported: "
                             f"of {kind.num_inputs} it can")
        op = Op(name, operation.kind, inputs, operation.attrs)
        self.shapes[name] = kind.shape(op, [self.shapes[n] for n in inputs])
        self.ops.append(op)
        self.arrays.update({f"{name}/{key}": value for key, value in operation.arrays.items()})
        return name

    def in_place(self, source: str, positions: Tensor, name: str) -> str:
        """The tensor that holds elements of `source`, after the operations that put them in place.

        Args:
            positions: [1, C, ...], those of each element in `source`, counted from 1; 0: zero.
            name: what the elements are called.

        Raises:
            ValueError: they are not those of one image.
        """
        before, after = self.shapes[source], tuple(positions.shape[1:])
        if len(positions) != 1 or not after:
            raise ValueError(f"rearranging {list(before)} to {list(after)} cannot be exported: the first dimension has "
                             "to count images, and another one their channels or features")
        if len(after) == 1:
            source = self._flat(source)
        if len(before) == 1 and after[1:] == (1, 1):
            source = self._once(f"{source}.pixel", Operation("unflatten"), source)
        before = self.shapes[source]
        positions = positions[0].long().cpu().numpy() - 1
        channels = positions.reshape(after[0], -1)[:, 0] // prod(before[1:])
        whole = np.arange(prod(before)).reshape(before)
        if after[1:] != before[1:] or channels.min() < 0 or not np.array_equal(whole[channels], positions):
            return self._once(f"{name}.moved", rearranged(positions), source)
        if tuple(channels) == tuple(range(before[0])):
            return source
        return self._once(f"{name}.pick", Operation("pick", {"channels": tuple(channels.tolist())}), source)

    def concatenated(self, tensors: list[str], name: str) -> tuple[str, dict[str, int]]:
        """A tensor that holds all elements of these, and where those of each begin, counted from 0."""
        tensors = list(dict.fromkeys(tensors))
        sizes = [prod(self.shapes[each]) for each in tensors]
        parts = tensors
        if len({self.shapes[each][1:] for each in tensors}) > 1:
            parts = [self._flat(each) for each in tensors]
        whole = self.add(self.free_name(name), Operation("concat"), tuple(parts))
        return whole, dict(zip(tensors, accumulate([0, *sizes]), strict=False))

    def _flat(self, source: str) -> str:
        return source if len(self.shapes[source]) == 1 else self._once(f"{source}.flat", Operation("flatten"), source)

    def _once(self, name: str, operation: Operation, source: str) -> str:
        """The tensor that an operation on `source` gives: one for all that are equal."""
        arrays = ((values.shape, values.tobytes()) for values in operation.arrays.values())
        key = (source, operation.kind, *operation.attrs.items(), *arrays)
        if key not in self._moved:
            self._moved[key] = self.add(self.free_name(name), operation, (source,))
        return self._moved[key]
