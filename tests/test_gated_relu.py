"""The gate layer: equality with ReLU, gradients, purity."""

import pytest
import torch
from torch import nn

from autorep.config import GateConfig
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.gates.polynomial import derivative, evaluate


def make(shape=(3, 4, 5), degree=2, **kwargs):
    torch.manual_seed(0)
    gate = GatedReLU(shape, GateConfig(degree=degree), **kwargs)
    with torch.no_grad():
        gate.mask.copy_(torch.rand(shape) < 0.5)
        gate.coefficients.normal_()
    return gate


@pytest.mark.parametrize("degree", range(5))
def test_polynomial_and_derivative_agree_with_autograd(degree):
    torch.manual_seed(1)
    coefficients = torch.randn(3, degree + 1, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = evaluate(x, coefficients)
    explicit = sum(coefficients[:, k, None] * x**k for k in range(degree + 1))
    torch.testing.assert_close(y, explicit)
    if degree:
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(evaluate(x.detach(), derivative(coefficients)), slope)


def test_forward_is_relu_on_kept_pixels_and_the_polynomial_elsewhere():
    gate = make()
    x = torch.randn(2, 3, 4, 5)
    c = gate.coefficients[:, :, None, None]
    expected = torch.where(gate.mask, x.relu(), c[:, 0] + c[:, 1] * x + c[:, 2] * x * x)
    torch.testing.assert_close(gate(x), expected)


def test_score_gradient_is_the_closed_form():
    gate = make(dtype=torch.float64)
    x = torch.randn(6, 3, 4, 5, dtype=torch.float64)
    upstream = torch.randn_like(x)
    gate(x).backward(upstream)
    difference = x.relu() - evaluate(x, gate.coefficients.detach())
    expected = (upstream * difference).sum(0) * nn.functional.softplus(gate.score.detach())
    torch.testing.assert_close(gate.score.grad, expected)


def test_a_fresh_gate_equals_relu_bit_for_bit():
    gate = GatedReLU((3, 4, 5), GateConfig())
    x = torch.randn(2, 3, 4, 5)
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, float("inf")])
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn_like(x)
    ours, theirs = gate(a), b.relu()
    ours.backward(upstream)
    theirs.backward(upstream)
    assert torch.equal(ours, theirs) and torch.equal(a.grad, b.grad)


def test_forward_changes_no_state_in_training_or_evaluation():
    gate = make()
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    gate.train()(torch.randn(2, 3, 4, 5)).sum().backward()
    gate.eval()(torch.randn(2, 3, 4, 5))
    assert all(torch.equal(before[name], value) for name, value in gate.state_dict().items())


def test_update_moves_the_mask_and_counts_flips():
    gate = make()
    with torch.no_grad():
        gate.mask.fill_(True)
        gate.score.fill_(1.0)
        gate.score[0, 0] = -1.0
    assert gate.update_mask_().item() == 5 and gate.num_kept == 55
    assert gate.update_mask_().item() == 0


def test_another_resolution_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\[N, 3, 4, 5\] and got \[2, 3, 8, 8\]"):
        make()(torch.randn(2, 3, 8, 8))


def test_inplace_also_writes_the_input_and_keeps_its_gradients():
    plain, inplace = make(), make(inplace=True)
    x = torch.randn(2, 3, 4, 5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    inner = b * 1.0
    out = inplace(inner)
    assert torch.equal(inner, out) and torch.equal(out, plain(a))
    out.square().sum().backward()
    plain(a).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(plain.score.grad, inplace.score.grad)


def test_repr_tells_shape_count_and_configuration():
    gate = GatedReLU((2, 3, 3), GateConfig(degree=1))
    assert repr(gate) == ("GatedReLU(2x3x3, kept=18/18, replacement=dapa, degree=1, threshold=0.003)")


def test_identity_gates_do_not_train_their_coefficients_and_frozen_ones_not_their_scores():
    gate = GatedReLU((2, 3, 3), GateConfig(replacement="identity", degree=1)).freeze_()
    gate.mask.fill_(False)
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    y = gate(x)
    assert torch.equal(y, x)
    y.sum().backward()
    assert gate.frozen and gate.score.grad is None and gate.coefficients.grad is None


def test_iter_gates_names_every_gate_once():
    gate = GatedReLU((4,), GateConfig())
    assert [name for name, _ in iter_gates(nn.Sequential(gate, nn.Sequential(gate, make())))] == ["0", "1.1"]
