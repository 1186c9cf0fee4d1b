"""A sigmoid as polynomials: what weights channels (squeeze and excitation) without a comparison."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from autorep.gates.gated_relu import GatedReLU
from autorep.gates.kernels import gated_relu

DEGREE = 2
# The least-squares fit to a sigmoid under N(1, 1). Under N(0, 1) it would be a line, which has the price of one.
_START = (0.5188, 0.2306, -0.0263)


class PolynomialSigmoid(nn.Module):
    """y = c_2 x^2 + c_1 x + c_0 per channel in place of a sigmoid, plain or hard.

    DaPa fits it to what it replaced, as it fits gates; in training mode it has their range. It is no ReLU.

    Parameter `coefficients` [C, D].

    Args:
        original: the module that it replaces.
        shape: of one image's input, [C, 1, 1] or [C].
        dtype: of the coefficients, float32 or float64.
    """

    kind, degree = "Sigmoid", DEGREE

    def __init__(self, original: nn.Module, shape: tuple[int, ...], *, device: torch.device | str | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # it is no part of the network any more
        self.coefficients = nn.Parameter(torch.tensor(_START, dtype=dtype, device=device).repeat(shape[0], 1))
        self.register_buffer("mask", torch.zeros(shape, dtype=torch.bool, device=device), persistent=False)
        self.register_buffer("range_3C", None, persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (models call activations with input=x)
        return gated_relu(input, self.mask, self.coefficients, None, self.range_3C if self.training else None)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.mask.shape))}, degree={DEGREE}"


Fitted = GatedReLU | PolynomialSigmoid


def iter_fitted(model: nn.Module) -> Iterator[tuple[str, Fitted]]:
    """(qualified name, module) for all that has polynomials to fit, in the order of `named_modules`."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Fitted))
