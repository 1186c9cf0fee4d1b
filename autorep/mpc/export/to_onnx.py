"""From a bundle to ONNX, for other engines and tools. Needs the packages onnx and onnxruntime, no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from autorep.machine.files import write_atomically
from autorep.mpc.bundle.files import load_graph, load_samples, load_weights
from autorep.mpc.bundle.graph import Arrays, Graph
from autorep.mpc.bundle.ops import Op

FORMS = ("mask", "gather")
LARGEST_ERROR = 1e-4  # of onnxruntime compared with the reference logits, relative to the largest logit
MAX_BYTES = 2**31 - 2**20  # of one ONNX file, minus some room for what is not weights
_OPSET, _IR_VERSION = 17, 8  # versions old enough for most readers


def export_onnx(bundle: str | Path, path: str | Path, form: str) -> float:
    """Write a bundle as ONNX, provided that onnxruntime gives its reference logits. The file holds the weights.

    Args:
        form: how a layer with kept ReLUs and polynomials is written, see `onnx_model`.

    Returns: largest logit error over the bundle's samples, relative to the largest logit (or to 1, if that is more).

    Raises:
        ValueError: a bad bundle, form or path, too large for one ONNX file, or onnxruntime gives other logits.
    """
    graph, path = load_graph(bundle), Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"invalid out={str(path)!r}: expected a file in a folder that exists")
    samples = load_samples(bundle, graph)
    model = onnx_model(graph, load_weights(bundle, graph), form).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = samples.images.astype(np.float32)
    logits = np.concatenate([session.run(None, {graph.input_name: images[i:i + 32]})[0]
                             for i in range(0, len(images), 32)])
    error = float(np.abs(logits - samples.logits).max() / max(1.0, np.abs(samples.logits).max()))
    if not error <= LARGEST_ERROR:
        raise ValueError(f"onnxruntime differs from the reference logits of {bundle} by {error:.2e} of the largest "
                         f"logit, more than {LARGEST_ERROR:.0e}: {path} is not written; export the checkpoint again")
    write_atomically(path, model)
    return error


def onnx_model(graph: Graph, weights: Arrays, form: str) -> onnx.ModelProto:
    """The network in float32, [N, C, H, W] -> [N, classes] for any N, checked by onnx itself.

    With form "mask" both branches of a mixed gate are computed everywhere and chosen by Where. With "gather" the kept
    pixels are gathered for Relu and the dropped ones for the polynomial, and a permutation puts them back.

    Raises:
        ValueError: an unknown form, pooling that ONNX lacks, or too large for one ONNX file.
    """
    if form not in FORMS:
        raise ValueError(f"invalid form={form!r}: expected one of {', '.join(FORMS)}")
    writer = _Writer(graph, weights, form)
    for op in graph.ops:
        writer.write(op)
    num_bytes = sum(array.nbytes for array in writer.constants.values())
    if num_bytes > MAX_BYTES:
        raise ValueError(f"{num_bytes} bytes of weights and indices are more than the {MAX_BYTES} of one ONNX file: "
                         "use form mask, or a smaller network")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *graph.shapes[name]])
            for name in (graph.input_name, graph.output_name)]
    constants = [numpy_helper.from_array(array, name) for name, array in writer.constants.items()]
    body = helper.make_graph(writer.nodes, "autorep", ends[:1], ends[1:], constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION,
                              producer_name="autorep")
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Collects nodes and constants. Tensors between the nodes of one operation are "operation/what"."""

    def __init__(self, graph: Graph, weights: Arrays, form: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: Arrays = {}
        self._arrays, self._shapes, self._form = {**weights, **graph.public}, graph.shapes, form

    def write(self, op: Op) -> None:
        """Add the nodes of one operation; the last of them gives the tensor of its name."""
        if op.kind == "gate":
            self._gate(op)
        elif op.kind == "polynomial":
            self._polynomial(op.inputs[0], self._channel_columns(op), op.name, f"{op.name}/polynomial")
        elif op.kind == "affine":
            scaled = self._node("Mul", [op.inputs[0], self._column(op, "scale")], f"{op.name}/scaled")
            self._node("Add", [scaled, self._column(op, "shift")], op.name)
        elif op.kind == "pick":
            indices = self._constant(f"{op.name}/indices", np.array(op.attrs["channels"], np.int32))
            self._node("Gather", [op.inputs[0], indices], op.name, axis=1)
        elif op.kind == "rearrange":
            self._rearrange(op)
        elif op.kind == "unflatten":
            self._node("Unsqueeze", [op.inputs[0], self._constant(f"{op.name}/axes", np.array([2, 3]))], op.name)
        elif op.kind in ("conv", "linear"):
            attributes = _window(op) if op.kind == "conv" else {"transB": 1}
            own = [self._constant(f"{op.name}/{key}", self._arrays[f"{op.name}/{key}"]) for key in ("weight", "bias")]
            self._node({"conv": "Conv", "linear": "Gemm"}[op.kind], [*op.inputs, *own], op.name, **attributes)
        else:
            node_type, attributes = _PLAIN[op.kind]
            self._node(node_type, list(op.inputs), op.name, **attributes(op))

    def _rearrange(self, op: Op) -> None:
        positions, name = self._arrays[f"{op.name}/positions"], op.name
        flat = self._node("Flatten", list(op.inputs), f"{name}/flat", axis=1)
        if (positions < 0).any():  # an element more, which is zero
            one = self._constant(f"{name}/pads", np.array([0, 0, 0, 1]))
            flat = self._node("Pad", [flat, one], f"{name}/padded")
            positions = np.where(positions < 0, np.prod(self._shapes[op.inputs[0]]), positions)
        chosen = self._gather(flat, positions.ravel(), f"{name}/chosen")
        self._node("Reshape", [chosen, self._constant(f"{name}/shape", np.array([0, *positions.shape]))], name)

    def _gate(self, op: Op) -> None:
        (x,), mask = op.inputs, self._arrays[f"{op.name}/mask"]
        if mask.all():
            self._node("Relu", [x], op.name)
        elif not mask.any():
            self._polynomial(x, self._channel_columns(op), op.name, f"{op.name}/polynomial")
        elif self._form == "mask":
            relu = self._node("Relu", [x], f"{op.name}/relu")
            y = self._polynomial(x, self._channel_columns(op), f"{op.name}/dropped", f"{op.name}/polynomial")
            self._node("Where", [self._constant(f"{op.name}/mask", mask), relu, y], op.name)
        else:
            self._gathered_gate(op, x, mask)

    def _gathered_gate(self, op: Op, x: str, mask: np.ndarray) -> None:
        """Each pixel computed once. Four pixels, of which 0 and 2 are kept:

            x    0 1 2 3    kept 0 2, others 1 3    both 0 2 1 3    indices that restore the order 0 2 1 3
                            Relu      polynomial
        """
        name, shape = op.name, self._shapes[op.name]
        kept, dropped = np.flatnonzero(mask), np.flatnonzero(~mask)
        flat = self._node("Flatten", [x], f"{name}/flat", axis=1)
        relu = self._node("Relu", [self._gather(flat, kept, f"{name}/kept")], f"{name}/relu")
        channels = dropped // (mask.size // shape[0])
        columns = self._arrays[f"{name}/coefficients"][channels].T
        y = self._polynomial(self._gather(flat, dropped, f"{name}/others"), columns, f"{name}/dropped",
                             f"{name}/polynomial")
        both = self._node("Concat", [relu, y], f"{name}/both", axis=1)
        ordered = self._gather(both, np.argsort(np.concatenate([kept, dropped])), f"{name}/ordered")
        self._node("Reshape", [ordered, self._constant(f"{name}/shape", np.array([0, *shape]))], name)

    def _gather(self, x: str, indices: np.ndarray, name: str) -> str:
        return self._node("Gather", [x, self._constant(f"{name}/indices", indices.astype(np.int32))], name, axis=1)

    def _polynomial(self, x: str, columns: np.ndarray, output: str, prefix: str) -> str:
        """Horner's rule; `columns` [D, ...] are c0, c1, ..., each of which broadcasts with one image of x."""
        *lower, y = (self._constant(f"{prefix}/c{k}", column) for k, column in enumerate(columns))
        if not lower:
            return self._node("Expand", [y, self._node("Shape", [x], f"{prefix}/shape")], output)
        for k, constant in reversed(list(enumerate(lower))):
            product = self._node("Mul", [y, x], f"{prefix}/product{k}")
            y = self._node("Add", [product, constant], output if k == 0 else f"{prefix}/sum{k}")
        return y

    def _channel_columns(self, op: Op) -> np.ndarray:
        coefficients = self._arrays[f"{op.name}/coefficients"].T
        return coefficients.reshape(*coefficients.shape, *[1] * (len(self._shapes[op.name]) - 1))

    def _column(self, op: Op, key: str) -> str:
        values = self._arrays[f"{op.name}/{key}"]
        return self._constant(f"{op.name}/{key}", values.reshape(-1, *[1] * (len(self._shapes[op.name]) - 1)))

    def _constant(self, name: str, values: np.ndarray) -> str:
        single = np.issubdtype(values.dtype, np.floating)
        self.constants[name] = np.ascontiguousarray(values, np.float32 if single else None)
        return name

    def _node(self, node_type: str, inputs: list[str], output: str, **attributes: int | tuple[int, ...]) -> str:
        self.nodes.append(helper.make_node(node_type, inputs, [output], name=output, **attributes))
        return output


def _window(op: Op) -> dict[str, int | tuple[int, ...]]:
    top, bottom, left, right = op.attrs["padding"]
    height, width = op.attrs["kernel"]
    if op.kind != "conv" and not (max(top, bottom) < height and max(left, right) < width):
        raise ValueError(f"operation {op.name!r}: invalid padding {list(op.attrs['padding'])}: expected less than the "
                         f"window {[height, width]} in ONNX")
    found = {"kernel_shape": op.attrs["kernel"], "strides": op.attrs["stride"], "pads": (top, left, bottom, right)}
    if op.kind == "conv":
        found |= {"dilations": op.attrs["dilation"], "group": op.attrs["groups"][0]}
    return found


_PLAIN = {
    "add": ("Add", lambda op: {}),
    "sub": ("Sub", lambda op: {}),
    "mul": ("Mul", lambda op: {}),
    "concat": ("Concat", lambda op: {"axis": 1}),
    "flatten": ("Flatten", lambda op: {"axis": 1}),
    "max_pool": ("MaxPool", _window),
    "avg_pool": ("AveragePool", lambda op: {**_window(op), "count_include_pad": 1}),
}
