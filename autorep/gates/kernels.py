"""Forward and backward of "ReLU here, polynomial there" in one pass each. Only x and the bool mask are kept between."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autorep.gates import native, reference
from autorep.gates.polynomial import compute_dtype


def gated_relu(x: Tensor, mask: Tensor, coefficients: Tensor, gate: Tensor | None = None) -> Tensor:
    """`gated_relu_reference`, fast: the same arguments and results, up to rounding.

    On the CPU each pass is a custom operator in C++, bit for bit the same for any number of threads. Elsewhere it is
    the reference, which `torch.compile` fuses.
    """
    if x.device.type == "cpu":
        return _gated_relu(x, mask, coefficients, gate)
    return reference.gated_relu_reference(x, mask, coefficients, gate)


# ---- memory order: pixels lie as [N, C, ...] or, channels last, as [N, ..., C]


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _ordered(t: Tensor, channels_last: bool) -> Tensor:
    """`t` without gaps in memory order; its dimensions are in that order too."""
    return (t.movedim(1, -1) if channels_last else t).contiguous()


def _restored(t: Tensor, channels_last: bool) -> Tensor:
    """The inverse view of `_ordered`: dimensions as [N, C, ...] again."""
    return t.movedim(-1, 1) if channels_last else t


def _sizes(x: Tensor, channels_last: bool) -> tuple[int, int, int, bool, int]:
    images, channels = x.shape[:2]
    spatial = math.prod(x.shape[2:])
    return images, channels, spatial, channels_last or spatial == 1, torch.get_num_threads()


def _computed(coefficients: Tensor, x: Tensor) -> Tensor:
    return coefficients.to(compute_dtype(x)).contiguous()


# ---- forward


@torch.library.custom_op("autorep::gated_relu", mutates_args=(), device_types="cpu",
                         schema="(Tensor x, Tensor mask, Tensor coefficients, Tensor? gate) -> Tensor")
def _gated_relu(x, mask, coefficients, gate):
    kernel = native.load(x.dtype, coefficients.shape[1])
    if kernel is None or not x.numel():
        return _empty_like(x).copy_(reference.forward(x, mask, coefficients))
    last = _is_channels_last(x)
    rows, mask, computed = _ordered(x, last), mask.contiguous(), _computed(coefficients, x)
    y = torch.empty_like(rows)
    kernel.gated_relu_forward(*map(Tensor.data_ptr, (rows, mask, computed, y)), *_sizes(x, last))
    return _restored(y, last)


@_gated_relu.register_fake
def _(x, mask, coefficients, gate):
    return _empty_like(x)


def _empty_like(x: Tensor) -> Tensor:
    last = _is_channels_last(x)
    return _restored(torch.empty_like(_ordered(x, last)), last)


# ---- backward


@torch.library.custom_op("autorep::gated_relu_backward", mutates_args=(), device_types="cpu",
                         schema="(Tensor grad_y, Tensor x, Tensor mask, Tensor coefficients, bool need_gate, "
                                "bool need_coefficients) -> (Tensor, Tensor, Tensor)")
def _gated_relu_backward(grad_y, x, mask, coefficients, need_gate, need_coefficients):
    kernel = native.load(x.dtype, coefficients.shape[1])
    if kernel is None or not x.numel():
        return _reference_backward(grad_y, x, mask, coefficients, need_gate, need_coefficients)
    last = _is_channels_last(x)
    rows, grad, mask = _ordered(x, last), _ordered(grad_y, last), mask.contiguous()
    computed = _computed(coefficients, x)
    grad_x = torch.empty_like(rows)
    grad_gate = computed.new_empty(mask.shape if need_gate else (0,))
    grad_computed = computed.new_empty(computed.shape if need_coefficients else (0,))
    kernel.gated_relu_backward(*map(Tensor.data_ptr, (rows, grad, mask, computed, grad_x)),
                               grad_gate.data_ptr() if need_gate else None,
                               grad_computed.data_ptr() if need_coefficients else None, *_sizes(x, last))
    return _restored(grad_x, last), grad_gate, grad_computed.to(coefficients.dtype)


@_gated_relu_backward.register_fake
def _(grad_y, x, mask, coefficients, need_gate, need_coefficients):
    return _empty_gradients(x, mask, coefficients, need_gate, need_coefficients)


def _empty_gradients(x: Tensor, mask: Tensor, coefficients: Tensor, need_gate: bool,
                     need_coefficients: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, of the gate [C, ...] and of the coefficients [C, D]; one that nobody needs has no elements."""
    return (_empty_like(x), x.new_empty(mask.shape if need_gate else (0,), dtype=compute_dtype(x)),
            coefficients.new_empty(coefficients.shape if need_coefficients else (0,)))


def _reference_backward(grad_y, x, mask, coefficients, need_gate, need_coefficients):
    grad_x, grad_gate, grad_coefficients = _empty_gradients(x, mask, coefficients, need_gate, need_coefficients)
    grad_x.copy_(reference.grad_x(grad_y, x, mask, coefficients))
    if need_gate:
        grad_gate.copy_(reference.grad_gate(grad_y, x, coefficients))
    if need_coefficients:
        grad_coefficients.copy_(reference.grad_coefficients(grad_y, x, mask, coefficients))
    return grad_x, grad_gate, grad_coefficients


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    x, mask, coefficients, _ = inputs
    ctx.save_for_backward(x, mask, coefficients)


def _differentiate(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    _, _, need_coefficients, need_gate = ctx.needs_input_grad
    grad_x, grad_gate, grad_coefficients = _gated_relu_backward(grad_y, *ctx.saved_tensors, need_gate,
                                                                need_coefficients)
    return grad_x, None, grad_coefficients if need_coefficients else None, grad_gate if need_gate else None


_gated_relu.register_autograd(_differentiate, setup_context=_save)
