"""The gate under torch.func (grad, vmap, jvp, jacobians) and forward-mode derivatives, in plain tensor arithmetic.

Apart from the reference, because torch.compile refuses an autograd function that has a forward mode.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from autorep.gates import reference
from autorep.gates.hysteresis import softplus
from autorep.gates.polynomial import derivative, evaluate


def is_transformed() -> bool:
    """Whether a transform of torch.func or a level of forward-mode derivatives is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _along(inputs: tuple, along_x: Tensor | None, along_coefficients: Tensor | None,
           along_score: Tensor | None) -> Tensor:
    """The directional derivative of y, for a direction of x, of the coefficients and of the score.

    The gradients of the reference are its transpose, but for the pull of a range, which is no derivative of y.
    """
    x, mask, coefficients, score, range_3C = inputs
    inside = reference.within(x, range_3C)
    total = torch.zeros_like(inside)
    if along_x is not None:
        direction = along_x.to(inside.dtype)
        dropped = torch.where(inside == x, direction * evaluate(inside, derivative(coefficients)), 0)
        total = total + torch.where(mask, torch.where(x > 0, direction, 0), dropped)
    if along_coefficients is not None:
        total = total + torch.where(mask, 0, evaluate(inside, along_coefficients))
    if along_score is not None:
        total = total + softplus(score) * along_score * (torch.relu(x) - evaluate(inside, coefficients))
    return total.to(x.dtype)


class _GatedReLU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, coefficients: Tensor, score: Tensor | None,
                range_3C: Tensor | None) -> Tensor:
        return reference.forward(x, mask, coefficients, range_3C)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return reference.gradients(ctx, grad_y)

    @staticmethod
    def jvp(ctx, along_x: Tensor | None, along_mask: None, along_coefficients: Tensor | None,
            along_score: Tensor | None, along_range: None) -> Tensor:
        return _along(ctx.saved_tensors, along_x, along_coefficients, along_score)


# `gated_relu_reference`, with the same arguments, all of them given, results and gradients, for where `is_transformed`.
gated_relu_transformed = _GatedReLU.apply
