"""The gate's arithmetic: closed form, gradients against float64, the fast path against the definition."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DTYPES, SHAPES, assert_equals_reference, channels_last, passes, problem, same_bits

from autorep.gates.kernels import gated_relu
from autorep.gates.polynomial import compute_dtype
from autorep.gates.reference import gated_relu_reference

# ---- the definition


@pytest.mark.parametrize("function", [gated_relu, gated_relu_reference])
def test_closed_form(function):
    x = torch.tensor([[[2.0, 2.0]], [[-1.0, -1.0]]], dtype=torch.float64)                 # [2, 1, 2]
    mask = torch.tensor([[True, False]])
    coefficients = torch.tensor([[0.5, 3.0, -1.0]], dtype=torch.float64)                  # 0.5 + 3x - x^2
    grad_y = torch.tensor([[[1.0, 10.0]], [[100.0, 1000.0]]], dtype=torch.float64)
    y, grad_x, grad_coefficients, grad_score = passes(function, x, mask, coefficients, mask.double(), grad_y)
    assert y.tolist() == [[[2.0, 2.5]], [[0.0, -3.5]]]
    assert grad_x.tolist() == [[[1.0, 10.0 * (3 - 4)]], [[0.0, 1000.0 * (3 + 2)]]]
    assert grad_coefficients.tolist() == [[1010.0, 20.0 - 1000.0, 40.0 + 1000.0]]
    slope = F.softplus(mask.double())
    torch.testing.assert_close(grad_score / slope, torch.tensor([[349.5, 3495.0]], dtype=torch.float64))


@pytest.mark.parametrize("function", [gated_relu, gated_relu_reference])
@pytest.mark.parametrize("degree", range(5))
def test_gradcheck(function, degree):
    x, mask, coefficients, _, _ = problem((3, 4, 2, 3), degree, torch.float64)
    x = torch.where(x.abs() < 0.1, 0.5, x).requires_grad_()  # away from the corner of ReLU
    assert torch.autograd.gradcheck(lambda x, c: function(x, mask, c), (x, coefficients.requires_grad_()))


@pytest.mark.parametrize("function", [gated_relu, gated_relu_reference])
@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_second_derivatives(function, degree, last, scored):
    x, mask, coefficients, score, _ = problem((3, 4, 2, 3), degree, torch.float64, last)
    x = torch.where(x.abs() < 0.1, 0.5, x)
    leaves = [t.requires_grad_() for t in ((x, coefficients, score) if scored else (x, coefficients))]
    assert torch.autograd.gradgradcheck(lambda x, c, s=None: function(x, mask, c, s), leaves)


@pytest.mark.parametrize("function", [gated_relu, gated_relu_reference])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_kept_is_relu_bit_for_bit(function, dtype, last):
    x, mask, coefficients, score, grad_y = problem((5, 6, 4, 5), 2, dtype, last)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-42, -1e-42], dtype=dtype)
    x[0, 0].view(-1)[:7] = special
    x[4, 5].view(-1)[-7:] = special
    ours = x.clone(memory_format=torch.preserve_format).requires_grad_()
    theirs = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(ours, torch.ones_like(mask), coefficients.requires_grad_(), score)
    expected = F.relu(theirs)
    y.backward(grad_y)
    expected.backward(grad_y)
    assert same_bits(y, expected)
    assert same_bits(ours.grad, theirs.grad)
    assert torch.equal(coefficients.grad, torch.zeros_like(coefficients))


@pytest.mark.parametrize("function", [gated_relu, gated_relu_reference])
def test_fp16_squares_beyond_its_range(function):
    x = torch.full((2, 1, 3), 300.0, dtype=torch.float16)  # x^2 = 90000 is not finite in fp16
    mask = torch.zeros(1, 3, dtype=torch.bool)
    y, grad_x, grad_coefficients, _ = passes(function, x, mask, torch.tensor([[0.0, 0.0, 0.5]]), mask.float(),
                                             torch.ones_like(x))
    assert torch.equal(y, torch.full_like(x, 45000.0))
    assert torch.equal(grad_x, torch.full_like(x, 300.0))
    assert grad_coefficients.tolist() == [[6.0, 1800.0, 540000.0]]


# ---- the fast path against the definition


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shape=SHAPES, degree=st.integers(0, 4), last=st.booleans(), seed=st.integers(0, 999))
def test_equals_reference_in_float64(shape, degree, last, seed):
    assert_equals_reference(problem(shape, degree, torch.float64, last, seed))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(67, 70, 9, 9), (33, 3, 70, 70), (3, 2, 5000), (35, 4500), (2, 5000, 2)])
def test_equals_reference_over_several_blocks(shape, last):
    assert_equals_reference(problem(shape, 2, torch.float64, last))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shape=SHAPES, degree=st.integers(1, 2), dtype=st.sampled_from(DTYPES[:3]), last=st.booleans(),
       seed=st.integers(0, 999))
def test_equals_reference_within_rounding(shape, degree, dtype, last, seed):
    arguments = problem(shape, degree, dtype, last, seed)
    mask = arguments[1]
    exact = [t if t is mask else t.double() for t in arguments]
    # With all signs alike nothing cancels: what these passes return bounds every intermediate result.
    size = [t if t is mask else t.double().abs() for t in arguments]
    size[1] = torch.zeros_like(mask)
    y, grad_x, grad_coefficients, _ = passes(gated_relu_reference, *size)
    bounds = (y + size[0], grad_x + size[4], grad_coefficients, (size[4] * (y + size[0])).sum(0) * F.softplus(size[3]))
    precisions = (dtype, dtype, compute_dtype(arguments[0]), compute_dtype(arguments[0]))
    results = zip(passes(gated_relu, *arguments), passes(gated_relu_reference, *exact), bounds, precisions, strict=True)
    for actual, expected, bound, precision in results:
        finfo = torch.finfo(precision)
        assert actual.dtype == precision
        assert ((actual.double() - expected).abs() <= 16 * finfo.eps * bound + finfo.tiny).all()


@pytest.mark.parametrize("last", [False, True])
def test_every_fp16_number_is_read_and_rounded_as_torch_does(last):
    numbers = torch.arange(-2**15, 2**15).to(torch.int16).view(torch.float16).reshape(-1, 4, 8, 8)
    x = channels_last(numbers) if last else numbers
    coefficients = torch.tensor([[0.0, 1.0], [0.0, 0.3], [1e-3, -1.7], [0.1, 2.0]])
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(gated_relu(x, mask, coefficients), gated_relu_reference(x, mask, coefficients),
                               rtol=2**-10, atol=2**-24, equal_nan=True)
    identity = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    torch.testing.assert_close(gated_relu(x, mask, identity), numbers, rtol=0, atol=0, equal_nan=True)


def test_every_bf16_number_is_read_and_rounded_as_torch_does():
    x = torch.arange(-2**15, 2**15).to(torch.int16).view(torch.bfloat16).reshape(-1, 4, 8, 8)
    coefficients = torch.tensor([[0.0, 1.0], [0.0, 0.3], [0.0, -1.7], [0.0, 2.0]])
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    expected = (x.float() * coefficients[:, 1].reshape(-1, 1, 1)).to(x.dtype)
    below_normal = torch.finfo(x.dtype).tiny  # some processors round these to zero
    torch.testing.assert_close(gated_relu(x, mask, coefficients), expected, rtol=0, atol=below_normal, equal_nan=True)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_only_gradients_that_are_needed(needs):
    x, mask, coefficients, score, grad_y = problem((5, 6, 4, 4), 2, torch.float64)
    expected = passes(gated_relu_reference, x, mask, coefficients, score, grad_y)[1:]
    leaves = [t.clone().requires_grad_(need) for t, need in zip((x, coefficients, score), needs, strict=True)]
    y = gated_relu(leaves[0], mask, *leaves[1:])
    assert y.requires_grad == any(needs)
    if any(needs):
        y.backward(grad_y)
    for leaf, need, gradient in zip(leaves, needs, expected, strict=True):
        assert (leaf.grad is not None) == need
        if need:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-12, atol=1e-12)


def test_without_a_score():
    x, mask, coefficients, score, _ = problem((5, 6, 4, 4), 2, torch.float64)
    assert torch.equal(gated_relu(x, mask, coefficients), gated_relu(x, mask, coefficients, score))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(dtype, last):
    arguments = problem((67, 70, 20, 20), 2, dtype, last)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(passes(gated_relu, *arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_of_the_estimator_is_softplus(dtype):
    score = torch.linspace(-80, 40, 5003, dtype=dtype).requires_grad_()
    x = torch.ones(1, len(score), dtype=dtype)
    gated_relu(x, score > 0, torch.zeros(len(score), 2, dtype=dtype), score).sum().backward()
    exact = torch.logaddexp(score.detach().double(), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(score.grad.double(), exact, rtol=64 * torch.finfo(dtype).eps, atol=0)


# ---- memory


REARRANGED = {
    "contiguous": torch.clone,
    "channels_last": channels_last,
    # As convolutions return it: where there is one pixel only, torch takes it for contiguous.
    "convolved": lambda t: torch.empty_like(t, memory_format=torch.channels_last).copy_(t),
    "expanded": lambda t: t[:1, :, :1].expand(t.shape),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "channels_first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
}


@pytest.mark.parametrize("of_gradient", REARRANGED)
@pytest.mark.parametrize("of_input", REARRANGED)
@pytest.mark.parametrize("function", [gated_relu, gated_relu_reference])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 1, 1), (1, 4, 5, 6), (3, 1, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_are_those_of_relu(dtype, shape, function, of_input, of_gradient):
    x, mask, coefficients, score, grad_y = problem(shape, 2, dtype)
    x, grad_y = REARRANGED[of_input](x), REARRANGED[of_gradient](grad_y)
    coefficients, score = coefficients.requires_grad_(), score.requires_grad_()
    x = x.detach().requires_grad_()
    y = function(x, mask, coefficients, score)
    (grad_x,) = torch.autograd.grad(y, x, grad_y, retain_graph=True)
    assert y.stride() == F.relu(x).stride() and grad_x.stride() == F.relu(x).stride()
    y.backward(grad_y)
    assert coefficients.grad.is_contiguous() and score.grad.is_contiguous()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("rearrange", REARRANGED.values(), ids=REARRANGED)
def test_any_memory_format_of_gradient_and_input(rearrange, last):
    x, mask, coefficients, score, grad_y = problem((3, 4, 5, 5), 2, torch.float64, last)
    assert_equals_reference((x, mask, coefficients, score, rearrange(grad_y)))
    inputs = rearrange(x), rearrange(mask.double()[None])[0].bool(), coefficients
    torch.testing.assert_close(gated_relu(*inputs), gated_relu_reference(*inputs), rtol=1e-12, atol=1e-12)


def test_nothing_of_activation_size_but_the_input_is_kept_for_backward():
    x, mask, coefficients, score, _ = problem((8, 4, 5, 5), 2, torch.float32)
    x, coefficients, score = (t.requires_grad_() for t in (x, coefficients, score))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated_relu(x, mask, coefficients, score)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, mask, coefficients, score)}
