"""The arrays of each step as ring elements: the server's secret ones and the public ones."""

from __future__ import annotations

import functools
from math import prod

import numpy as np

from autorep.mpc.bundle.graph import Arrays
from autorep.mpc.bundle.ops import Shape
from autorep.mpc.bundle.windows import out_size
from autorep.mpc.ring.fixed_point import FixedPoint, encode
from autorep.mpc.ring.lowering import Program, Step

_BLOCK = 2**20  # multiplications; see `conv_blocks`


def conv_form(step: Step, opens_operands: bool) -> str:
    """How a convolution becomes a matrix product.

    "columns": weights times the unrolled input, in which a pixel occurs once per tap. "taps": all taps times the padded
    input, shifted and added afterwards. Every pixel enters the product only once, which is cheaper under an engine that
    opens operands (`opens_operands`), where the product is priced by the size of its operands.
    """
    op, (_, height, width) = step.op, step.in_shapes[0]
    top, bottom, left, right = op.attrs["padding"]
    padded = (height + top + bottom, width + left + right)
    unrolled = prod(out_size(op, *padded)) * prod(op.attrs["kernel"])
    return "taps" if opens_operands and prod(padded) < unrolled else "columns"


def conv_blocks(step: Step, opens_operands: bool) -> int:
    """How many matrix products a convolution with groups is.

    Every product is an operation of the engine and a round, whose time is that of about `_BLOCK` multiplications. So
    groups are multiplied together, as one block-diagonal matrix, as long as that has no more of them: the thousand
    groups of a depthwise convolution become a few blocks. The bytes of SEMI2K stay the same.
    """
    groups = step.op.attrs["groups"][0]
    return _num_blocks(groups, conv_multiplications(step, opens_operands) // groups, _BLOCK)


@functools.cache  # every estimate asks for it several times a layer
def _num_blocks(groups: int, of_one: int, most: int) -> int:
    return next(groups // together for together in range(groups, 0, -1)
                if groups % together == 0 and (together == 1 or together**2 * of_one <= most))


def conv_multiplications(step: Step, opens_operands: bool) -> int:
    """Multiplications of a convolution's matrix products, if every group had its own."""
    op, (channels, height, width) = step.op, step.in_shapes[0]
    top, bottom, left, right = op.attrs["padding"]
    padded = (height + top + bottom, width + left + right)
    columns = padded if conv_form(step, opens_operands) == "taps" else out_size(op, *padded)
    return step.out_shape[0] * prod(op.attrs["kernel"]) * channels // op.attrs["groups"][0] * prod(columns)


def secret_parameters(step: Step, weights: Arrays, fixed: FixedPoint, opens_operands: bool) -> Arrays:
    """The server's ring elements of a step: biases, and weights in the form that the matrix product needs."""
    op, name = step.op, step.op.name
    if op.kind not in ("conv", "linear", "affine"):
        return {}
    weight_key, bias_key = ("scale", "shift") if op.kind == "affine" else ("weight", "bias")
    weight, bias = (weights[f"{name}/{key}"].astype(np.float64) for key in (weight_key, bias_key))
    if step.fold_scale is not None:
        weight = weight * step.fold_scale.reshape(-1, *[1] * (weight.ndim - 1))
        bias = bias * step.fold_scale + step.fold_shift
    weight = weight * step.input_scale
    parameters = {"bias": encode(bias, fixed.product_bits, f"{name}/{bias_key}")}
    ring = encode(weight, fixed.truncation_bits, f"{name}/{weight_key}")
    if op.kind != "conv":
        return {**parameters, "weight": ring}
    num_blocks, form = conv_blocks(step, opens_operands), conv_form(step, opens_operands)
    for b, block in enumerate(ring.reshape(num_blocks, -1, *ring.shape[1:])):
        parameters[f"weight{b}"] = _as_matrix(_block_diagonal(block, op.attrs["groups"][0] // num_blocks), form)
    return parameters


def _block_diagonal(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weights [C', C/groups, kh, kw] of a convolution with groups as those of one without, [C', C, kh, kw]."""
    rows, columns = len(weight) // groups, weight.shape[1]
    full = np.zeros((len(weight), columns * groups, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        own = slice(g * rows, (g + 1) * rows)
        full[own, g * columns:(g + 1) * columns] = weight[own]
    return full


def _as_matrix(weight: np.ndarray, form: str) -> np.ndarray:
    """[C', C, kh, kw] as [taps*C', C] ("taps") or [C', taps*C] ("columns").

    Two taps a and b, C' = C = 2; a01 maps input channel 1 to output channel 0:

        taps    a00 a01        columns    a00 a01 b00 b01
                a10 a11                   a10 a11 b10 b11
                b00 b01
                b10 b11
    """
    if form == "taps":
        return np.ascontiguousarray(weight.transpose(2, 3, 0, 1).reshape(-1, weight.shape[1]))
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1).reshape(len(weight), -1))


def secret_shapes(program: Program, opens_operands: bool) -> dict[str, Shape]:
    """"step/parameter" -> shape of what `secret_parameters` makes. The client knows it without the weights."""
    shapes: dict[str, Shape] = {}
    for step in program.steps:
        own = _own_secret_shapes(step, opens_operands)
        shapes.update({f"{step.op.name}/{key}": shape for key, shape in own.items()})
    return shapes


def _own_secret_shapes(step: Step, opens_operands: bool) -> dict[str, Shape]:
    channels = step.out_shape[:1]
    if step.op.kind == "affine":
        return {"bias": channels, "weight": channels}
    if step.op.kind == "linear":
        return {"bias": channels, "weight": (*channels, *step.in_shapes[0])}
    if step.op.kind != "conv":
        return {}
    num_blocks, taps = conv_blocks(step, opens_operands), prod(step.op.attrs["kernel"])
    width_in, width_out = step.in_shapes[0][0] // num_blocks, channels[0] // num_blocks
    matrix = (taps * width_out, width_in) if conv_form(step, opens_operands) == "taps" else (width_out, taps * width_in)
    return {"bias": channels, **{f"weight{b}": matrix for b in range(num_blocks)}}


def public_parameters(step: Step, fixed: FixedPoint) -> Arrays:
    """The ring elements of a step that all parties know: coefficients, the divisor of a pool."""
    if step.op.kind == "avg_pool" and step.divide:
        return {"divisor": encode(np.array([1 / prod(step.op.attrs["kernel"])]), fixed.truncation_bits, step.op.name)}
    plan = step.gate
    if plan is None:
        return {}
    arrays = {}
    for degree in plan.degrees:
        for power, column in enumerate(plan.coefficients[degree].T):
            bits = _coefficient_bits(power, degree, fixed)
            arrays[f"c{power}_{degree}"] = encode(column, bits, f"{step.op.name} coefficient c{power}")
    if len(plan.constant):
        arrays["constant"] = encode(plan.constant_value, fixed.fraction_bits, f"{step.op.name} constant")
        # Zero is an argument because a compiler would turn x * 0 into a public value, which is no share.
        arrays["zero"] = np.zeros(1, np.int64)
    return arrays


def _coefficient_bits(power: int, degree: int, fixed: FixedPoint) -> int:
    if power == 0:
        return fixed.product_bits
    return fixed.coefficient_bits if power == degree >= 2 else fixed.truncation_bits
