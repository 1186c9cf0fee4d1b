"""Forward and backward of "ReLU here, polynomial there" in one pass each. The backward pass needs x and the mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from autorep.gates import native, reference
from autorep.gates.layout import in_layout_of, is_channels_last, ordered, restored, strides_of_relu
from autorep.gates.polynomial import compute_dtype
from autorep.gates.transforms import gated_relu_transformed, is_transformed


def gated_relu(x: Tensor, mask: Tensor, coefficients: Tensor, score: Tensor | None = None,
               range_3C: Tensor | None = None) -> Tensor:
    """`gated_relu_reference`, fast: the same arguments and results, up to rounding.

    On the CPU each pass is C++, bit for bit the same for any number of threads: a custom operator for `torch.compile`,
    and without it a plain call, which starts sooner. Elsewhere it is the reference, which `torch.compile` fuses. A
    backward pass that is itself to be differentiated (`create_graph=True`), transforms of torch.func and forward-mode
    derivatives are plain tensor arithmetic too.
    """
    if not torch.compiler.is_compiling() and is_transformed():
        return gated_relu_transformed(x, mask, coefficients, score, range_3C)
    if x.device.type != "cpu":
        return reference.gated_relu_reference(x, mask, coefficients, score, range_3C)
    if torch.compiler.is_compiling():
        return _gated_relu(x, mask, coefficients, score, range_3C)
    return _GatedReLU.apply(x, mask, coefficients, score, range_3C)


def _sizes(x: Tensor, channels_last: bool) -> dict[str, int]:
    spatial = math.prod(x.shape[2:])
    return {"images": x.shape[0], "channels": x.shape[1], "spatial": spatial,
            "channels_last": channels_last or spatial == 1, "threads": torch.get_num_threads()}


def _computed(t: Tensor, x: Tensor) -> Tensor:
    return t.to(compute_dtype(x)).contiguous()


# ---- one pass each


def _forward(x: Tensor, mask: Tensor, coefficients: Tensor, range_3C: Tensor | None) -> Tensor:
    kernel = native.load(x.dtype, coefficients.shape[1])
    if kernel is None or not x.numel():
        return reference.forward(x, mask, coefficients, range_3C)
    last = is_channels_last(x)
    rows, mask, computed = ordered(x, last), mask.contiguous(), _computed(coefficients, x)
    ranges = None if range_3C is None else _computed(range_3C, x)
    y = torch.empty_like(rows)
    kernel.gated_relu_forward(native.Arguments(
        x=rows.data_ptr(), mask=mask.data_ptr(), coefficients_CD=computed.data_ptr(),
        range_3C=None if ranges is None else ranges.data_ptr(), y=y.data_ptr(), **_sizes(x, last)))
    return in_layout_of(x, restored(y, last))


def _backward(grad_y: Tensor, x: Tensor, mask: Tensor, coefficients: Tensor, score: Tensor | None,
              range_3C: Tensor | None, need_coefficients: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the score [C, ...] (no elements without `score`) and of the coefficients [C, D] or none."""
    kernel = native.load(x.dtype, coefficients.shape[1])
    if kernel is None or not x.numel():
        return _reference_backward(grad_y, x, mask, coefficients, score, range_3C, need_coefficients)
    last = is_channels_last(x)
    rows, grad, mask = ordered(x, last), ordered(grad_y, last), mask.contiguous()
    computed = _computed(coefficients, x)
    scores, ranges = (None if t is None else _computed(t, x) for t in (score, range_3C))
    grad_x = torch.empty_like(rows)
    grad_score = computed.new_empty(mask.shape if score is not None else (0,))
    grad_computed = computed.new_empty(computed.shape if need_coefficients else (0,))
    kernel.gated_relu_backward(native.Arguments(
        x=rows.data_ptr(), grad_y=grad.data_ptr(), mask=mask.data_ptr(), coefficients_CD=computed.data_ptr(),
        score=None if score is None else scores.data_ptr(),
        range_3C=None if range_3C is None else ranges.data_ptr(),
        grad_x=grad_x.data_ptr(), grad_score=grad_score.data_ptr(),
        grad_coefficients_CD=grad_computed.data_ptr() if need_coefficients else None, **_sizes(x, last)))
    return (in_layout_of(x, restored(grad_x, last)), grad_score if score is None else grad_score.to(score.dtype),
            grad_computed.to(coefficients.dtype))


def _empty_gradients(x: Tensor, coefficients: Tensor, score: Tensor | None,
                     need_coefficients: bool) -> tuple[Tensor, Tensor, Tensor]:
    grad_score = x.new_empty(0, dtype=compute_dtype(x)) if score is None else score.new_empty(score.shape)
    grad_coefficients = coefficients.new_empty(coefficients.shape if need_coefficients else (0,))
    return x.new_empty_strided(x.shape, strides_of_relu(x)), grad_score, grad_coefficients


def _reference_backward(grad_y, x, mask, coefficients, score, range_3C, need_coefficients):
    grad_x, grad_score, grad_coefficients = _empty_gradients(x, coefficients, score, need_coefficients)
    grad_x.copy_(reference.grad_x(grad_y, x, mask, coefficients, range_3C))
    if score is not None:
        grad_score.copy_(reference.grad_score(grad_y, x, coefficients, score, range_3C))
    if need_coefficients:
        grad_coefficients.copy_(reference.grad_coefficients(grad_y, x, mask, coefficients, range_3C))
    return grad_x, grad_score, grad_coefficients


# ---- as custom operators


@torch.library.custom_op("autorep::gated_relu", mutates_args=(), device_types="cpu",
                         schema="(Tensor x, Tensor mask, Tensor coefficients, Tensor? score, Tensor? range_3C) "
                                "-> Tensor")
def _gated_relu(x, mask, coefficients, score, range_3C):
    return _forward(x, mask, coefficients, range_3C)


@_gated_relu.register_fake
def _(x, mask, coefficients, score, range_3C):
    return x.new_empty_strided(x.shape, strides_of_relu(x))


@torch.library.custom_op("autorep::gated_relu_backward", mutates_args=(), device_types="cpu",
                         schema="(Tensor grad_y, Tensor x, Tensor mask, Tensor coefficients, Tensor? score, "
                                "Tensor? range_3C, bool need_coefficients) -> (Tensor, Tensor, Tensor)")
def _gated_relu_backward(grad_y, x, mask, coefficients, score, range_3C, need_coefficients):
    return _backward(grad_y, x, mask, coefficients, score, range_3C, need_coefficients)


@_gated_relu_backward.register_fake
def _(grad_y, x, mask, coefficients, score, range_3C, need_coefficients):
    return _empty_gradients(x, coefficients, score, need_coefficients)


# ---- autograd, of both


def _save(ctx, inputs: tuple, output: Tensor | None) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(backward: Callable[..., tuple[Tensor, ...]], ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    _, _, need_coefficients, need_score, _ = ctx.needs_input_grad
    x, mask, coefficients, score, range_3C = ctx.saved_tensors
    grad_x, grad_score, grad_coefficients = backward(grad_y, x, mask, coefficients, score if need_score else None,
                                                     range_3C, need_coefficients)
    return (grad_x, None, grad_coefficients if need_coefficients else None, grad_score if need_score else None, None)


_gated_relu.register_autograd(partial(_gradients, _gated_relu_backward), setup_context=_save)


class _GatedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs: Tensor | None) -> Tensor:  # a `setup_context` would cost more than a small layer's pass
        _save(ctx, inputs, None)
        x, mask, coefficients, _, range_3C = inputs
        return _forward(x, mask, coefficients, range_3C)

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        # With create_graph=True this pass is itself recorded, which the C++ cannot be.
        return _gradients(_reference_backward if torch.is_grad_enabled() else _backward, ctx, grad_y)
