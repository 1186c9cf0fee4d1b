"""From a trained torch network to a bundle. The only file of this package that imports torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autorep import checkpoint
from autorep.config import from_json
from autorep.data.augment import normalise
from autorep.data.datasets import dataset_info, read_arrays
from autorep.gates.gated_relu import GatedReLU
from autorep.mpc.bundle import Arrays, Graph, Samples, save_bundle
from autorep.mpc.fixed_point import RangeProblem, check_ranges
from autorep.mpc.fold import fold_batch_norms
from autorep.mpc.interpreter import logits_float, record_ranges
from autorep.mpc.ops import Op
from autorep.mpc.ring import FixedPoint

LARGEST_ERROR = 1e-4  # of the interpreter against torch, relative to the largest logit
_PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout1d)


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
    """Runs the traced network on an image and writes down the operation behind every tensor."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.ops: list[Op] = []
        self.arrays: Arrays = {}
        self.names: dict[fx.Node, str] = {}
        self.gate_names: dict[str, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            self.names[n] = "input"
        elif n.op != "output" and isinstance(result, Tensor):
            self._record(n, result)
        return result

    def _record(self, node: fx.Node, result: Tensor) -> None:
        operands = [a for a in _flat(node.args) if isinstance(a, fx.Node) and a in self.names]
        shapes = [tuple(self.env[a].shape) for a in operands]
        target = self.fetch_attr(node.target) if node.op == "call_module" else node.target
        convert = _converter(node.op, target)
        if convert is None or not operands:
            what = type(target).__name__ if node.op == "call_module" else getattr(target, "__name__", target)
            raise ValueError(f"{node.name}: {what} cannot be exported: private inference knows convolution, linear, "
                             "batch norm, ReLU and gates, sums, products, concatenation, pooling and flatten")
        keywords = {k: v for k, v in node.kwargs.items() if not isinstance(v, fx.Node)}
        plain = [None if _has_node(a) else a for a in node.args]
        found = convert(target, shapes, tuple(result.shape), plain, keywords)
        if found is None:
            self.names[node] = self.names[operands[0]]
            return
        kind, attrs, arrays = found
        name = node.name.removeprefix("model_")
        self.ops.append(Op(name, kind, tuple(self.names[a] for a in operands), attrs))
        self.arrays.update({f"{name}/{key}": value for key, value in arrays.items()})
        self.names[node] = name
        if isinstance(target, GatedReLU):
            self.gate_names[name] = str(node.target).removeprefix("model.")


def _flat(args: Any) -> list:
    return [b for a in args for b in (_flat(a) if isinstance(a, (list, tuple)) else [a])]


def _has_node(argument: Any) -> bool:
    return any(isinstance(a, fx.Node) for a in _flat([argument]))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv(m: nn.Conv2d, shapes, out, args, kwargs):
    if m.padding_mode != "zeros":
        raise ValueError(f"convolution with padding_mode={m.padding_mode!r} cannot be exported: zeros can")
    if isinstance(m.padding, str):
        total = [d * (k - 1) if m.padding == "same" else 0 for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        padding = (m.padding[0], m.padding[0], m.padding[1], m.padding[1])
    attrs = {"kernel": m.kernel_size, "stride": m.stride, "padding": padding, "dilation": m.dilation,
             "groups": (m.groups,), "out_channels": (m.out_channels,)}
    bias = _array(m.bias) if m.bias is not None else np.zeros(m.out_channels)
    return "conv", attrs, {"weight": _array(m.weight), "bias": bias}


def _linear(m: nn.Linear, shapes, out, args, kwargs):
    bias = _array(m.bias) if m.bias is not None else np.zeros(m.out_features)
    return "linear", {"out_features": (m.out_features,)}, {"weight": _array(m.weight), "bias": bias}


def _batch_norm(m: nn.BatchNorm2d, shapes, out, args, kwargs):
    if m.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be exported")
    scale = 1 / np.sqrt(_array(m.running_var) + m.eps) * (_array(m.weight) if m.affine else 1)
    shift = (_array(m.bias) if m.affine else 0) - _array(m.running_mean) * scale
    return "affine", {}, {"scale": scale, "shift": shift}


def _gate(m: GatedReLU, shapes, out, args, kwargs):
    return "gate", {"degree": (m.config.degree,)}, gate_arrays(m)


def gate_arrays(gate: GatedReLU) -> Arrays:
    """The public arrays of a gate as it is now: mask, bool [C, ...], and coefficients, float64 [C, D]."""
    return {"mask": gate.mask.cpu().numpy().copy(), "coefficients": _array(gate.coefficients)}


def _relu(m: Any, shapes, out, args, kwargs):
    coefficients = np.tile([0.0, 1.0], (out[1], 1))
    return "gate", {"degree": (1,)}, {"mask": np.ones(out[1:], bool), "coefficients": coefficients}


def _pool(kind: str) -> Callable:
    def convert(m: Any, shapes, out, args, kwargs):
        if isinstance(m, nn.Module):
            options = {k: getattr(m, k, None) for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode",
                                                        "count_include_pad", "divisor_override")}
        else:
            options = dict(zip(("kernel_size", "stride", "padding"), args[1:], strict=False)) | kwargs
        kernel = _two(options["kernel_size"])
        stride, before = _two(options.get("stride") or kernel), _two(options.get("padding") or 0)
        dilation = _two(options.get("dilation") or 1)
        ends = [(o - 1) * s + k - n - p for o, s, k, n, p in
                zip(out[2:], stride, kernel, shapes[0][2:], before, strict=True)]
        after = [max(0, end) for end in ends]
        counts_all = (before == (0, 0) and after == [0, 0]) or (options.get("count_include_pad") is True
                                                               and tuple(after) <= before)
        if dilation != (1, 1) or options.get("divisor_override") or (kind == "avg_pool" and not counts_all):
            raise ValueError(f"{kind} with dilation, a divisor, or padding that is not counted cannot be exported")
        padding = (before[0], after[0], before[1], after[1])
        return kind, {"kernel": kernel, "stride": stride, "padding": padding}, {}
    return convert


def _adaptive_pool(m: Any, shapes, out, args, kwargs):
    (height, width), (out_height, out_width) = shapes[0][2:], out[2:]
    if height % out_height or width % out_width:
        raise ValueError(f"adaptive pooling from {height}x{width} to {out_height}x{out_width} cannot be exported")
    window = (height // out_height, width // out_width)
    return "avg_pool", {"kernel": window, "stride": window, "padding": (0, 0, 0, 0)}, {}


def _flatten(m: Any, shapes, out, args, kwargs):
    if len(out) != 2 or out[0] != shapes[0][0]:
        raise ValueError(f"reshaping {list(shapes[0])} to {list(out)} cannot be exported: flattening all but the "
                         "batch can")
    return None if len(shapes[0]) == 2 else ("flatten", {}, {})


def _pair(kind: str) -> Callable:
    def convert(m: Any, shapes, out, args, kwargs):
        if len(shapes) != 2 or shapes[0] != shapes[1] or kwargs:
            raise ValueError(f"{kind} of {[list(s) for s in shapes]} {kwargs or ''} cannot be exported: two tensors of "
                             "one shape can")
        return kind, {}, {}
    return convert


def _concat(m: Any, shapes, out, args, kwargs):
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if dim not in (1, 1 - len(out)):
        raise ValueError(f"concatenation along dimension {dim} cannot be exported: channels can")
    return "concat", {}, {}


def _nothing(m: Any, shapes, out, args, kwargs):
    return None


_MODULES: tuple[tuple[tuple[type, ...], Callable], ...] = (
    ((GatedReLU,), _gate), ((nn.Conv2d,), _conv), ((nn.Linear,), _linear),
    ((nn.BatchNorm2d, nn.BatchNorm1d), _batch_norm),
    ((nn.ReLU,), _relu), ((nn.AvgPool2d,), _pool("avg_pool")), ((nn.MaxPool2d,), _pool("max_pool")),
    ((nn.AdaptiveAvgPool2d,), _adaptive_pool), ((nn.Flatten,), _flatten), (_PASS_THROUGH, _nothing),
)
_CALLS: dict[Any, Callable] = {
    operator.add: _pair("add"), operator.iadd: _pair("add"), torch.add: _pair("add"), "add": _pair("add"),
    "add_": _pair("add"), operator.mul: _pair("mul"), torch.mul: _pair("mul"), "mul": _pair("mul"),
    torch.relu: _relu, F.relu: _relu, "relu": _relu, "relu_": _relu,
    torch.cat: _concat, torch.concat: _concat, torch.flatten: _flatten, "flatten": _flatten, "view": _flatten,
    "reshape": _flatten, torch.reshape: _flatten, F.avg_pool2d: _pool("avg_pool"), F.max_pool2d: _pool("max_pool"),
    F.adaptive_avg_pool2d: _adaptive_pool, F.dropout: _nothing, "contiguous": _nothing,
}


def _converter(op: str, target: Any) -> Callable | None:
    if op == "call_module":
        return next((convert for types, convert in _MODULES if isinstance(target, types)), None)
    return _CALLS.get(target)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


def trace_model(model: nn.Module, example: Tensor) -> tuple[tuple[Op, ...], Arrays, Arrays, dict[str, str]]:
    """Operations, weights, public arrays, and gate operation -> its qualified name. The model is left as it was.

    Raises:
        ValueError: torch.fx cannot trace the model, or it computes something that no operation stands for.
    """
    with _evaluating(model):
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


def export_model(model: nn.Module, images: Tensor, labels: Tensor, folder: str | Path, *,
                 range_images: Tensor | None = None, meta: dict[str, Any] | None = None,
                 fixed: FixedPoint | None = None) -> list[RangeProblem]:
    """Write the bundle of a model and check it: interpreter against torch, recorded ranges against the number format.

    Args:
        images: the client's samples as the model eats them [K, C, H, W]; labels [K], -1 where unknown.
        range_images: more images, over which ranges are recorded besides the samples.

    Returns: tensors that come close to wrapping around, worst first; they deserve a warning.

    Raises:
        ValueError: the model cannot be exported, the interpreter does not reproduce its logits, or a recorded range
            does not fit the number format.
    """
    ops, weights, public, gate_names = trace_model(model, images)
    with _evaluating(model):
        logits = torch.cat([model(part) for part in images.split(64)]).double().numpy()
    graph = Graph("input", tuple(images.shape[1:]), ops, public, {}, {**(meta or {}), "gates": gate_names})
    seen = images if range_images is None else torch.cat([images, range_images])
    graph = replace(graph, ranges=record_ranges(graph, weights, seen.numpy()))
    error = np.abs(logits_float(graph, weights, images.numpy()) - logits).max() / max(1.0, np.abs(logits).max())
    if not error <= LARGEST_ERROR:
        raise ValueError(f"the exported network differs from torch by {error:.2e} of the largest logit: not written")
    problems = sorted(check_ranges(graph, fixed or FixedPoint()), key=lambda p: -p.largest)
    if any(problem.fatal for problem in problems):
        raise ValueError("recorded ranges do not fit the ring: " + "; ".join(str(p) for p in problems if p.fatal))
    samples = Samples(images.float().numpy(), labels.long().numpy(), logits)
    save_bundle(folder, graph, {k: v.astype(np.float32) for k, v in weights.items()}, samples)
    return problems


def export_checkpoint(path: str, folder: str | Path, *, data_path: str | None, num_images: int) -> list[RangeProblem]:
    """The bundle of a checkpoint, with images spread evenly over the test split of its own data set.

    Ranges are recorded on those and on as many images of the training split. Returns and raises as `export_model`.
    """
    payload = checkpoint.load(path)
    data = from_json(payload["config"]).data
    info = dataset_info(data.dataset, data_path or data.data_path)
    splits = read_arrays(info, data_path or data.data_path)
    chosen = {name: split.subset(np.unique(np.linspace(0, len(split) - 1, num_images).astype(int)))
              for name, split in splits.items()}
    test, train = (normalise(torch.from_numpy(chosen[s].images), info.mean, info.std) for s in ("test", "train"))
    meta = {"arch": payload["model_args"]["name"], "dataset": data.dataset, "checkpoint": Path(path).name}
    return export_model(checkpoint.build_from(payload), test, torch.from_numpy(chosen["test"].labels), folder,
                        range_images=train, meta=meta)
