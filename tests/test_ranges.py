"""The range that polynomials see in training: what is beyond it is clamped and pulled back; evaluation sees all."""

import dataclasses
from functools import partial

import pytest
import torch
from kernel_cases import DTYPES, passes, problem
from torch import nn

from autorep.config import DapaConfig, GateConfig
from autorep.convert.swap import convert_relus_
from autorep.dapa.calibrate import record
from autorep.dapa.ranges import set_ranges_
from autorep.gates.gated_relu import iter_gates
from autorep.gates.kernels import gated_relu
from autorep.gates.reference import gated_relu_reference


def ranges(num_channels, seed=1):
    random = torch.rand(3, num_channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return random * torch.tensor([[-1.0], [1.0], [0.3]])


@pytest.mark.parametrize("function", [gated_relu, gated_relu_reference])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_clamped_inside_and_pulled_back_outside(function, degree, last):
    """Against autograd through clamp, which gives values beyond the range no gradient, and the penalty's gradient."""
    x, mask, coefficients, score, grad_y = problem((5, 6, 4, 3), degree, torch.float64, last)
    range_3C = ranges(6)
    low, high, pull = (each.view(-1, 1, 1) for each in range_3C)
    leaf, own = x.clone().requires_grad_(), coefficients.clone().requires_grad_()
    inside = leaf.maximum(low).minimum(high)
    powers = torch.stack([inside**k for k in range(degree + 1)], -1)
    expected = torch.where(mask, leaf.relu(), (powers * own.view(6, 1, 1, -1)).sum(-1))
    expected.backward(grad_y)
    half, excess = (high - low) / 2, x - inside.detach()
    pulled = torch.where(mask, 0, pull * excess.clamp(-half.expand_as(x), half.expand_as(x)))
    limited = partial(function, range_3C=range_3C)
    y, grad_x, grad_coefficients, grad_score = passes(limited, x, mask, coefficients, score, grad_y)
    torch.testing.assert_close(y, expected.detach())
    torch.testing.assert_close(grad_x, leaf.grad + pulled)
    torch.testing.assert_close(grad_coefficients, own.grad)
    gate = (grad_y * (x.relu() - (powers * own.view(6, 1, 1, -1)).sum(-1))).sum(0).detach()
    torch.testing.assert_close(grad_score, torch.nn.functional.softplus(score) * gate)
    assert (excess != 0).any() and (excess == 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(67, 70, 9, 9), (3, 2, 5000), (35, 4500)])
@pytest.mark.parametrize("last", [False, True])
def test_the_kernel_equals_the_reference(shape, dtype, last):
    arguments, range_3C = problem(shape, 2, dtype, last), ranges(shape[1])
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4}.get(dtype, 4e-2)
    for actual, expected in zip(*(passes(partial(function, range_3C=range_3C.to(arguments[2].dtype)), *arguments)
                                  for function in (gated_relu, gated_relu_reference)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_values_that_are_not_finite():
    x = torch.tensor([[torch.inf], [-torch.inf], [torch.nan]], requires_grad=True)
    range_3C = torch.tensor([[-2.0], [2.0], [0.5]])
    y = gated_relu(x, torch.zeros(1, dtype=torch.bool), torch.tensor([[0.0, 1.0, 1.0]]), None, range_3C)
    y.backward(torch.ones_like(y))
    assert y[:2].tolist() == [[6.0], [2.0]] and x.grad[:2].tolist() == [[1.0], [-1.0]]
    assert y[2].isnan() and x.grad[2].isnan()


def test_only_training_is_limited_to_what_was_recorded():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    convert_relus_(net, torch.zeros(1, 3, dtype=torch.float64), GateConfig())
    [(_, gate)] = iter_gates(net)
    gate.mask.fill_(False)
    gate.coefficients.data[:, 2] = 1
    images = torch.randn(500, 3, dtype=torch.float64)
    config = DapaConfig(range_width=2.0, var_min=1e-9)
    set_ranges_(net, record(net, [images]), config, images_per_step=10)
    seen = net[0](images).detach()
    mean, std = seen.mean(0), seen.std(0, correction=0)
    torch.testing.assert_close(gate.range_3C, torch.stack([mean - 2 * std, mean + 2 * std, 0.01 / (10 * std**2)]))
    far = seen[:1] + 10 * std
    limit = mean + 2 * std
    torch.testing.assert_close(gate.train()(far)[0], limit + limit**2)
    torch.testing.assert_close(gate.eval()(far)[0], far[0] + far[0] ** 2)
    assert "range_3C" not in "".join(net.state_dict())
    set_ranges_(net, record(net, [images]), dataclasses.replace(config, range_width=0.0), images_per_step=10)
    assert gate.range_3C is None


class Stream(nn.Module):
    """A residual stream of eight blocks."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(8))
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(8))

    def forward(self, x):
        for conv, act in zip(self.convs, self.acts, strict=True):
            x = act(x + 0.1 * conv(x))
        return x


def test_a_range_stops_the_overshoot_of_a_residual_stream():
    """An image ten times as bright as those recorded squares in every block: only the range keeps its gradient sane."""
    torch.manual_seed(0)
    net, images = Stream(), torch.randn(16, 4, 8, 8)
    convert_relus_(net, images[:1], GateConfig())
    for _, gate in iter_gates(net):
        gate.mask.fill_(False)
        gate.coefficients.data.copy_(torch.tensor([0.1, 0.5, 0.2]))
    norms = {}
    for width in (0.0, 6.0):
        config = DapaConfig(range_width=width)
        set_ranges_(net, record(net, [images]), config, images_per_step=16)
        net.train().zero_grad()
        net(torch.cat([images[:15], 10 * images[15:]])).mean().backward()
        norms[width] = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).max().item()
    assert norms[6.0] < 1e4 and not norms[0.0] < 1e6, norms
