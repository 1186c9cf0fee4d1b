"""The gate in plain tensor arithmetic: the definition that faster kernels are measured against, and their fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from autorep.gates.hysteresis import softplus
from autorep.gates.layout import in_layout_of, is_channels_last, mask_in_order_of, ordered, restored
from autorep.gates.polynomial import compute_dtype, derivative, evaluate, per_channel


def forward(x: Tensor, mask: Tensor, coefficients: Tensor, range_3C: Tensor | None = None) -> Tensor:
    """y = mask ? relu(x) : polynomial(x); shapes as in `gated_relu_reference`, strides as those of relu(x)."""
    y = torch.where(mask_in_order_of(x, mask), torch.relu(x), evaluate(within(x, range_3C), coefficients).to(x.dtype))
    return in_layout_of(x, y)


def grad_x(grad_y: Tensor, x: Tensor, mask: Tensor, coefficients: Tensor, range_3C: Tensor | None = None) -> Tensor:
    """d loss / dx, with shape, dtype and strides of relu(x); kept pixels have the gradient of ReLU.

    Dropped pixels beyond the range, if one is given, are pulled back instead: `pull_back`.
    """
    inside = within(x, range_3C)
    dropped = grad_y.to(compute_dtype(x)) * evaluate(inside, derivative(coefficients))
    if range_3C is not None:
        dropped = torch.where(inside == x, dropped, pull_back(x - inside, range_3C))
    grad = torch.where(mask_in_order_of(x, mask), torch.ops.aten.threshold_backward(grad_y, x, 0), dropped.to(x.dtype))
    return in_layout_of(x, grad)


def within(x: Tensor, range_3C: Tensor | None) -> Tensor:
    """x in `compute_dtype`, and within the range of its channel where there is one."""
    x = x.to(compute_dtype(x))
    if range_3C is None:
        return x
    low, high, _ = (per_channel(values.to(x.dtype), x) for values in range_3C)
    return torch.minimum(torch.maximum(x, low), high)


def pull_back(excess: Tensor, range_3C: Tensor) -> Tensor:
    """The gradient of the penalty pull / 2 * excess^2 on activations beyond their range (Baruch et al. 2022), which
    grows until the excess is half the width of the range."""
    low, high, pull = (per_channel(values.to(excess.dtype), excess) for values in range_3C)
    half = (high - low) / 2
    return pull * torch.minimum(torch.maximum(excess, -half), half)


def grad_score(grad_y: Tensor, x: Tensor, coefficients: Tensor, score: Tensor,
               range_3C: Tensor | None = None) -> Tensor:
    """d loss / d score [C, ...], straight through: softplus(score) * sum over the batch of grad * (relu(x) - p(x))."""
    grad_gate = (grad_y.to(compute_dtype(x)) * (torch.relu(x) - evaluate(within(x, range_3C), coefficients))).sum(0)
    return softplus(score) * grad_gate.to(score.dtype)


def grad_coefficients(grad_y: Tensor, x: Tensor, mask: Tensor, coefficients: Tensor,
                      range_3C: Tensor | None = None) -> Tensor:
    """d loss / d coefficients [C, D]: the sum of grad * x^k over the batch and the dropped pixels of a channel."""
    power, inside = grad_y.to(compute_dtype(x)), within(x, range_3C)
    sums = [power.sum(0)]
    for _ in range(coefficients.shape[1] - 1):
        power = power * inside
        sums.append(power.sum(0))
    # The mask is the same for every image, so it is applied to the sums over images, which are stacked in memory order.
    last = is_channels_last(x)
    of_pixels = torch.where(ordered(mask, last, 0), 0, torch.stack([ordered(s, last, 0) for s in sums]))
    of_pixels = restored(of_pixels, last)  # [D, C, ...]
    return of_pixels[..., None].flatten(2).sum(2).t().contiguous().to(coefficients.dtype)


def gradients(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    """What an autograd function of (x, mask, coefficients, score, range_3C) returns from its backward pass."""
    x, mask, coefficients, score, range_3C = ctx.saved_tensors
    mask = mask_in_order_of(x, mask)
    need_x, _, need_coefficients, need_score, _ = ctx.needs_input_grad
    return (grad_x(grad_y, x, mask, coefficients, range_3C) if need_x else None,
            None,
            grad_coefficients(grad_y, x, mask, coefficients, range_3C) if need_coefficients else None,
            grad_score(grad_y, x, coefficients, score, range_3C) if need_score else None,
            None)


class _GatedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mask: Tensor, coefficients: Tensor, score: Tensor | None,
                range_3C: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, mask, coefficients, score, range_3C)
        return forward(x, mask, coefficients, range_3C)

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        return gradients(ctx, grad_y)


def gated_relu_reference(x: Tensor, mask: Tensor, coefficients: Tensor, score: Tensor | None = None,
                         range_3C: Tensor | None = None) -> Tensor:
    """y = mask ? relu(x) : polynomial(x), with the gradient of the mask passed straight to the score (paper section 3).

    Args:
        x: activations [N, C, ...], fp16, bf16, fp32 or fp64. Polynomials compute in fp32 (fp64 for fp64).
        mask: kept ReLUs, bool [C, ...].
        coefficients: [C, D], constant first.
        score: [C, ...]; it receives softplus(score) * sum_N grad * (relu(x) - p(x)), as `straight_through` defines.
        range_3C: [3, C], lowest, highest and pull of each channel: the polynomials of dropped pixels see no values
            beyond, and those are pulled back.

    Returns:
        y, shape and dtype of x.
    """
    return _GatedReLU.apply(x, mask, coefficients, score, range_3C)
