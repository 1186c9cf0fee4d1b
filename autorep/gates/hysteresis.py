"""Hysteresis, which moves a mask, and the straight-through estimator of its scores (paper section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def next_mask(mask: Tensor, score: Tensor, threshold: float) -> Tensor:
    """One mask update by hysteresis; pure, and idempotent for fixed scores.

    A kept ReLU is dropped when `score < -threshold`, a dropped one comes back when `score > threshold`; otherwise
    nothing changes, equality included. With threshold 0 it is the plain gate.

    Args:
        mask: which ReLUs are kept, bool or 0/1 float, any shape.
        score: trainable scores, same shape.
        threshold: half width of the hysteresis, 0 or more.

    Returns:
        The new mask, same shape and dtype as `mask`.

    Raises:
        ValueError: shapes differ or the threshold is negative.
    """
    if mask.shape != score.shape:
        raise ValueError(f"invalid mask {list(mask.shape)} and score {list(score.shape)}: expected the same shape")
    if not threshold >= 0:
        raise ValueError(f"invalid threshold={threshold!r}: expected 0 (plain gate) or more")
    kept = mask if mask.dtype == torch.bool else mask > 0.5
    return torch.where(kept, score >= -threshold, score > threshold).to(mask.dtype)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(score: Tensor, mask: Tensor) -> Tensor:
        return mask.to(score.dtype, copy=True)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad_gate: Tensor):
        (score,) = ctx.saved_tensors
        return grad_gate * softplus(score), None


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), any shape.

    On a GPU F.softplus is one kernel; above its threshold it returns x, which at 40 is exact in float64 too. On the CPU
    it takes three times as long as the arithmetic below.
    """
    if x.device.type != "cpu":
        return F.softplus(x, threshold=40.0)
    return x.relu() + (1 + (-x.abs()).exp()).log()


def straight_through(score: Tensor, mask: Tensor) -> Tensor:
    """The mask as a float tensor of the score's dtype, through which the score receives `grad * softplus(score)`."""
    return _StraightThrough.apply(score, mask)
