"""The hysteresis loop and the straight-through estimator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autorep.gates.hysteresis import next_mask, straight_through

T = 0.25  # exact in binary, so that equality is equality


@pytest.mark.parametrize(("kept", "score", "expected"), [
    (True, 1.0, True), (True, 0.0, True), (True, -T, True), (True, -T - 1e-3, False),
    (False, -1.0, False), (False, 0.0, False), (False, T, False), (False, T + 1e-3, True),
])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_truth_table(kept, score, expected, dtype):
    mask = torch.tensor([kept]).to(dtype)
    new = next_mask(mask, torch.tensor([score]), T)
    assert new.dtype == dtype and bool(new) is expected


def test_threshold_zero_is_the_plain_gate_and_zero_changes_nothing():
    score = torch.tensor([-1e-9, 0.0, 1e-9])
    assert next_mask(torch.tensor([True] * 3), score, 0.0).tolist() == [False, True, True]
    assert next_mask(torch.tensor([False] * 3), score, 0.0).tolist() == [False, False, True]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.003, 0.5]))
def test_pure_and_idempotent_for_fixed_scores(seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 4, generator=generator) < 0.5
    score = torch.randn(3, 4, generator=generator) * threshold * 2
    before = mask.clone(), score.clone()
    once = next_mask(mask, score, threshold)
    assert torch.equal(mask, before[0]) and torch.equal(score, before[1])
    assert torch.equal(next_mask(once, score, threshold), once)


def test_a_score_that_trembles_inside_the_loop_flips_nothing():
    mask = torch.tensor([True, False])
    for wobble in (0.9 * T, -0.9 * T) * 3:
        assert torch.equal(next_mask(mask, torch.full((2,), wobble), T), mask)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"mask \[2\] and score \[3\]"):
        next_mask(torch.ones(2), torch.ones(3), 0.1)
    with pytest.raises(ValueError, match="threshold=-0.1"):
        next_mask(torch.ones(2), torch.ones(2), -0.1)


def test_straight_through_forwards_the_mask_and_scales_the_gradient_by_softplus():
    score = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True])
    gate = straight_through(score, mask)
    assert gate.dtype == torch.float64 and gate.tolist() == [1.0, 0.0, 1.0]
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    gate.backward(upstream)
    torch.testing.assert_close(score.grad, upstream * torch.log1p(torch.exp(score.detach())))
