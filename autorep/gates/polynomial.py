"""Evaluation of per-channel polynomials. D = degree + 1; coefficients are [C, D], constant first."""

from __future__ import annotations

import torch
from torch import Tensor


def per_channel(values_C: Tensor, x: Tensor) -> Tensor:
    """[C] as [C, 1, ...], ready to broadcast against x [N, C, ...]."""
    return values_C.reshape(-1, *[1] * (x.dim() - 2))


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, float32 for all other types: in fp16 x^2 would overflow at 256."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def evaluate(x: Tensor, coefficients_CD: Tensor) -> Tensor:
    """The polynomial of each channel by Horner's rule, in `compute_dtype(x)`.

    Args:
        x: activations [N, C, ...].
        coefficients_CD: [C, D], constant first.

    Returns:
        [N, C, ...] in float32 (float64 for float64 input).
    """
    x = x.to(compute_dtype(x))
    columns = coefficients_CD.to(x.dtype).unbind(1)
    y = per_channel(columns[-1], x).expand_as(x)
    for column in reversed(columns[:-1]):
        y = torch.addcmul(per_channel(column, x), y, x)  # one kernel on a GPU where y * x + column would be two
    return y


def derivative(coefficients_CD: Tensor) -> Tensor:
    """Coefficients [C, max(D - 1, 1)] of the derivative."""
    if coefficients_CD.shape[1] == 1:
        return torch.zeros_like(coefficients_CD)
    order = torch.arange(1, coefficients_CD.shape[1], device=coefficients_CD.device, dtype=coefficients_CD.dtype)
    return coefficients_CD[:, 1:] * order
