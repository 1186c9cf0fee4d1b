"""Inputs of the gate kernels, and what is compared."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from autorep.gates.kernels import gated_relu
from autorep.gates.reference import gated_relu_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float64: torch.int64}
SHAPES = st.tuples(st.integers(0, 6), st.integers(1, 20)).flatmap(
    lambda nc: st.lists(st.integers(1, 7), max_size=3).map(lambda rest: (*nc, *rest)))


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def problem(shape, degree, dtype, last=False, seed=0):
    """x, mask, coefficients, score, grad_y at random."""
    make = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, grad_y = (torch.randn(shape, generator=make, dtype=torch.float64).to(dtype) for _ in range(2))
    mask = torch.rand(shape[1:], generator=make) < 0.5
    coefficients = torch.randn(shape[1], degree + 1, generator=make, dtype=torch.float64).to(wide)
    if last:
        x, grad_y = channels_last(x), channels_last(grad_y)
    score = torch.randn(shape[1:], generator=make, dtype=torch.float64).to(wide)
    return x, mask, coefficients, score, grad_y


def passes(function, x, mask, coefficients, score, grad_y):
    """y and the gradients of x, coefficients and score."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, coefficients, score)]
    y = function(leaves[0], mask, *leaves[1:])
    y.backward(grad_y)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def same_bits(a, b):
    """Equal bit for bit, but that any NaN equals any other: torch.relu changes their payload in some lanes only."""
    a, b = (torch.where(t.isnan(), torch.nan, t).contiguous().view(BITS[t.dtype]) for t in (a, b))
    return torch.equal(a, b)


def assert_equals_reference(arguments):
    for actual, expected in zip(passes(gated_relu, *arguments), passes(gated_relu_reference, *arguments), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
