"""Forward and backward of "ReLU here, polynomial there". Only x and the bool mask are kept for the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from autorep.gates.polynomial import compute_dtype, derivative, evaluate


class _GatedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, coefficients: Tensor, gate: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, mask, coefficients)
        return torch.where(mask, torch.relu(x), evaluate(x, coefficients).to(x.dtype))

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        x, mask, coefficients = ctx.saved_tensors
        need_x, _, need_coefficients, need_gate = ctx.needs_input_grad
        grad_x = grad_coefficients = grad_gate = None
        grad = grad_y.to(compute_dtype(x))
        if need_x:
            dropped = (grad * evaluate(x, derivative(coefficients))).to(x.dtype)
            grad_x = torch.where(mask, torch.where(x > 0, grad_y, 0), dropped)
        if need_coefficients:
            grad_coefficients = _grad_coefficients(x, torch.where(mask, 0, grad), coefficients)
        if need_gate:
            difference = torch.relu(x) - evaluate(x, coefficients)
            grad_gate = (grad * difference).sum(0)
        return grad_x, None, grad_coefficients, grad_gate


def _grad_coefficients(x: Tensor, grad_dropped: Tensor, coefficients: Tensor) -> Tensor:
    """[C, D]: the sum of grad * x^k over the batch and the dropped pixels of a channel."""
    x = x.to(grad_dropped.dtype)
    over = [d for d in range(x.dim()) if d != 1]
    power, sums = grad_dropped, []
    for _ in range(coefficients.shape[1]):
        sums.append(power.sum(over))
        power = power * x
    return torch.stack(sums, 1).to(coefficients.dtype)


def gated_relu(x: Tensor, mask: Tensor, coefficients: Tensor, gate: Tensor | None = None) -> Tensor:
    """y = mask ? relu(x) : polynomial(x), with the gradient of the mask routed to `gate`.

    Args:
        x: activations [N, C, ...], fp16, bf16, fp32 or fp64. Polynomials compute in fp32 (fp64 for fp64).
        mask: kept ReLUs, bool [C, ...].
        coefficients: [C, D], constant first.
        gate: the mask as a float tensor [C, ...] made by `straight_through`; it receives sum_N grad * (relu(x) - p(x)).

    Returns:
        y, shape and dtype of x.
    """
    return _GatedReLU.apply(x, mask, coefficients, gate)
