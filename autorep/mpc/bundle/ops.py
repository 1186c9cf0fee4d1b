"""The operations a bundle may hold: attributes, arrays and shape rules. Shapes are of one image, [C, H, W] or [F]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One operation: its result is the tensor `name`, its operands are the tensors named in `inputs`."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    attrs: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class OpKind:
    """What a kind of operation needs.

    Args:
        num_inputs: number of operands; None: any number from one on.
        attrs: names of its attributes.
        shape: of its result.
        arrays: name -> shape of its arrays.
        secret: whether its arrays are the server's weights.
    """

    num_inputs: int | None
    attrs: tuple[str, ...]
    shape: Callable[[Op, list[Shape]], Shape]
    arrays: Callable[[Op, list[Shape], Shape], dict[str, Shape | None]]
    secret: bool = True


def _need(condition: bool, op: Op, reason: str) -> None:
    if not condition:
        raise ValueError(f"operation {op.name!r} ({op.kind}): {reason}")


def window_shape(op: Op, shape: Shape) -> Shape:
    """[C, H, W] -> [C, H', W'] of a sliding window; padding is (top, bottom, left, right)."""
    _need(len(shape) == 3, op, f"needs [C, H, W] and got {list(shape)}")
    kernel, stride, padding = (op.attrs[k] for k in ("kernel", "stride", "padding"))
    dilation = op.attrs.get("dilation", (1, 1))
    _need(min(*kernel, *stride, *dilation) >= 1 and min(padding) >= 0, op, "kernel, stride, dilation must be positive")
    padded = (shape[1] + padding[0] + padding[1], shape[2] + padding[2] + padding[3])
    out = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(padded, kernel, stride, dilation, strict=True))
    _need(min(out) >= 1, op, f"the window is larger than the input {list(shape)}")
    return (shape[0], *out)


def _conv_shape(op: Op, shapes: list[Shape]) -> Shape:
    out_channels, groups = op.attrs["out_channels"][0], op.attrs["groups"][0]
    spatial = window_shape(op, shapes[0])[1:]
    _need(groups >= 1 and out_channels >= 1 and shapes[0][0] % groups == 0 and out_channels % groups == 0, op,
          f"{groups} groups do not divide {shapes[0][0]} and {out_channels} channels")
    return (out_channels, *spatial)


def _conv_arrays(op: Op, shapes: list[Shape], out: Shape) -> dict[str, Shape | None]:
    return {"weight": (out[0], shapes[0][0] // op.attrs["groups"][0], *op.attrs["kernel"]), "bias": (out[0],)}


def _linear_shape(op: Op, shapes: list[Shape]) -> Shape:
    _need(len(shapes[0]) == 1, op, f"needs [F] and got {list(shapes[0])}")
    return op.attrs["out_features"]


def _same_shapes(op: Op, shapes: list[Shape]) -> Shape:
    _need(len(set(shapes)) == 1, op, f"operands differ in shape: {[list(s) for s in shapes]}")
    return shapes[0]


def _product_shape(op: Op, shapes: list[Shape]) -> Shape:
    """Two operands of one shape, or one of them [C, 1, 1], which then multiplies every pixel."""
    first, second = sorted(shapes, key=prod, reverse=True)
    _need(second in (first, (first[0], *[1] * (len(first) - 1))), op,
          f"operands {[list(s) for s in shapes]} are neither of one shape nor one of them [C, 1, 1]")
    return first


def _unflatten_shape(op: Op, shapes: list[Shape]) -> Shape:
    _need(len(shapes[0]) == 1, op, f"needs [F] and got {list(shapes[0])}")
    return (*shapes[0], 1, 1)


def _pick_shape(op: Op, shapes: list[Shape]) -> Shape:
    channels = op.attrs["channels"]
    _need(max(channels) < shapes[0][0], op, f"channel {max(channels)} of {shapes[0][0]}")
    return (len(channels), *shapes[0][1:])


def _rearranged_shape(op: Op, shapes: list[Shape]) -> Shape:
    _need(len(op.attrs["shape"]) <= 4, op, f"shape {list(op.attrs['shape'])} has more than 4 dimensions")
    return op.attrs["shape"]


def _concat_shape(op: Op, shapes: list[Shape]) -> Shape:
    _need(len({s[1:] for s in shapes}) == 1, op, f"operands differ beyond channels: {[list(s) for s in shapes]}")
    return (sum(s[0] for s in shapes), *shapes[0][1:])


def _polynomial_arrays(op: Op, shapes: list[Shape], out: Shape) -> dict[str, Shape | None]:
    return {"coefficients": (out[0], op.attrs["degree"][0] + 1)}


def _gate_arrays(op: Op, shapes: list[Shape], out: Shape) -> dict[str, Shape | None]:
    return {"mask": out, **_polynomial_arrays(op, shapes, out)}


def _no_arrays(op: Op, shapes: list[Shape], out: Shape) -> dict[str, Shape | None]:
    return {}


def _channel_arrays(op: Op, shapes: list[Shape], out: Shape) -> dict[str, Shape | None]:
    return {"scale": (out[0],), "shift": (out[0],)}


_WINDOW = ("kernel", "stride", "padding")
KINDS: dict[str, OpKind] = {
    "conv": OpKind(1, (*_WINDOW, "dilation", "groups", "out_channels"), _conv_shape, _conv_arrays),
    "linear": OpKind(1, ("out_features",), _linear_shape,
                     lambda op, shapes, out: {"weight": (out[0], shapes[0][0]), "bias": out}),
    "affine": OpKind(1, (), _same_shapes, _channel_arrays),
    "gate": OpKind(1, ("degree",), _same_shapes, _gate_arrays, secret=False),
    # What was no ReLU, and so is none in any masking: a polynomial of each channel.
    "polynomial": OpKind(1, ("degree",), _same_shapes, _polynomial_arrays, secret=False),
    "add": OpKind(2, (), _same_shapes, _no_arrays),
    "sub": OpKind(2, (), _same_shapes, _no_arrays),
    "mul": OpKind(2, (), _product_shape, _no_arrays),
    "pick": OpKind(1, ("channels",), _pick_shape, _no_arrays),
    # The element of the operand at each position of the result, counted over one image; -1: zero.
    "rearrange": OpKind(1, ("shape",), _rearranged_shape, lambda op, shapes, out: {"positions": out}, secret=False),
    "concat": OpKind(None, (), _concat_shape, _no_arrays),
    "avg_pool": OpKind(1, _WINDOW, lambda op, shapes: window_shape(op, shapes[0]), _no_arrays),
    "max_pool": OpKind(1, _WINDOW, lambda op, shapes: window_shape(op, shapes[0]), _no_arrays),
    "unflatten": OpKind(1, (), _unflatten_shape, _no_arrays),
    "flatten": OpKind(1, (), lambda op, shapes: (prod(shapes[0]),), _no_arrays),
}
# None: any length from one on.
ATTR_LENGTH = {"channels": None, "shape": None, "kernel": 2, "stride": 2, "padding": 4, "dilation": 2, "groups": 1,
               "out_channels": 1, "out_features": 1, "degree": 1}


def infer_shapes(ops: tuple[Op, ...], input_name: str, input_shape: Shape) -> dict[str, Shape]:
    """Tensor name -> shape of one image, in order of computation.

    Raises:
        ValueError: an unknown kind, missing or extra attributes, an operand that is not computed yet, a name that is
            used twice, or shapes that do not fit.
    """
    shapes = {input_name: input_shape}
    for op in ops:
        _need(op.kind in KINDS, op, f"unknown kind; known are {', '.join(KINDS)}")
        kind = KINDS[op.kind]
        _need(op.name not in shapes, op, "this name is taken")
        missing = [name for name in op.inputs if name not in shapes]
        _need(not missing, op, f"operands {missing} are not computed before it")
        enough = len(op.inputs) >= 1 if kind.num_inputs is None else len(op.inputs) == kind.num_inputs
        _need(enough, op, f"has {len(op.inputs)} operands")
        _need(set(op.attrs) == set(kind.attrs), op, f"attributes {sorted(op.attrs)}, expected {sorted(kind.attrs)}")
        for key, values in op.attrs.items():
            length = ATTR_LENGTH[key] or max(1, len(values))
            _need(len(values) == length and all(type(v) is int and 0 <= v < 2**20 for v in values), op,
                  f"attribute {key}={list(values)} is not {length} whole numbers below 2^20")
        shapes[op.name] = kind.shape(op, [shapes[name] for name in op.inputs])
        _need(0 < prod(shapes[op.name]) < 2**31, op, f"result {list(shapes[op.name])} is empty or too large")
    return shapes


def array_shapes(ops: tuple[Op, ...], shapes: dict[str, Shape], secret: bool) -> dict[str, Shape]:
    """"op/array" -> shape of every weight (secret) or of every mask and coefficient array (public)."""
    found = {}
    for op in ops:
        if KINDS[op.kind].secret == secret:
            arrays = KINDS[op.kind].arrays(op, [shapes[n] for n in op.inputs], shapes[op.name])
            found.update({f"{op.name}/{key}": shape for key, shape in arrays.items()})
    return found
