"""Fits to activations that are not ReLU, and gates whose kept pixels go on computing them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import nn

from autorep import GateConfig, build_model, convert_relus_, count_relus, iter_gates
from autorep.config import DapaConfig
from autorep.dapa.calibrate import calibrate_
from autorep.dapa.fit import activation_of, gaussian_coefficients, recorded_coefficients
from autorep.dapa.moments import record_moments
from autorep.mpc.export.to_bundle import export_model

ACTIVATIONS = [nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.LeakyReLU(0.1), nn.ELU(0.7),
               nn.Softplus(), nn.PReLU(2), nn.Mish(), nn.Hardtanh(-0.5, 2), nn.SELU()]
KINKS = [-3.0, -0.5, 0.0, 2.0, 3.0, 6.0]


def named(activation):
    return str(activation).replace(" ", "")


def converted(activation, kept="relu", degree=2):
    """conv, the activation, conv, in float64, with images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), copy.deepcopy(activation), nn.Conv2d(2, 3, 3)).double().eval()
    images = torch.randn(16, 3, 6, 6, dtype=torch.float64)
    dense = model(images).detach()
    convert_relus_(model, images[:1], GateConfig(kept=kept, degree=degree))
    return model, images, dense


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=named)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.5, 0.3), (2.0, 5.0)])
def test_gaussian_fits_are_those_of_adaptive_quadrature(activation, mean, std):
    model, _, _ = converted(activation)
    ours = gaussian_coefficients(torch.tensor([mean, mean]), torch.tensor([std, std]), 2, activation_of(model[1]))

    def function(x):
        values = torch.tensor([x, x], dtype=torch.float64).view(1, 2, 1, 1)
        return model[1].original(values).flatten().tolist()

    def expectation(channel, power):
        def density(x):
            return function(x)[channel] * x**power * stats.norm.pdf(x, mean, std)
        low, high = mean - 10 * std, mean + 10 * std
        return integrate.quad(density, low, high, points=[k for k in KINKS if low < k < high], limit=200)[0]

    powers = [stats.norm(mean, std).moment(k) for k in range(5)]
    gram = np.array([[powers[i + j] for j in range(3)] for i in range(3)])
    for channel in (0, 1) if isinstance(activation, nn.PReLU) else (0,):
        exact = np.linalg.solve(gram, [expectation(channel, k) for k in range(3)])
        np.testing.assert_allclose(ours[channel].detach().numpy(), exact, rtol=1e-5, atol=2e-5 * std)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.SiLU(inplace=True), nn.ReLU6(inplace=True)], ids=named)
def test_recorded_fits_are_least_squares_on_the_samples(activation):
    model, images, _ = converted(activation)
    with record_moments(model) as moments:
        model(images)
    x = model[0](images).detach()
    y = activation.double()(x.clone()).detach()
    for channel in range(2):
        exact = np.polyfit(x[:, channel].flatten().numpy(), y[:, channel].flatten().numpy(), 2)[::-1]
        np.testing.assert_allclose(recorded_coefficients(moments["1"], 2)[channel], exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=named)
def test_a_gate_that_keeps_the_original_is_it_until_a_mask_moves(activation):
    model, images, dense = converted(activation, kept="original")
    assert torch.equal(model(images), dense)
    gate = model[1]
    gate.mask[0] = False
    gate.coefficients.data.copy_(torch.tensor([[0.1, 0.2, 0.3], [0.0, 1.0, 0.0]]))
    x = model[0](images)
    expected = activation.double()(x.clone())
    expected = torch.stack([0.1 + 0.2 * x[:, 0] + 0.3 * x[:, 0] ** 2, expected[:, 1]], 1)
    torch.testing.assert_close(gate(x), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_that_keeps_the_originals_is_itself_in_every_layout(layout):
    torch.manual_seed(0)
    model = build_model("torchvision:mobilenet_v3_small", image_size=32).eval().to(memory_format=layout)
    images = torch.randn(2, 3, 32, 32).to(memory_format=layout)
    with torch.no_grad():
        dense = model(images)
        assert torch.equal(convert_relus_(model, images, GateConfig(kept="original")).model(images), dense)


def test_gradients_of_a_gate_that_keeps_the_original():
    model, images, _ = converted(nn.SiLU(), kept="original")
    gate = model[1].train()
    gate.mask.copy_(torch.rand(gate.mask.shape) < 0.5)
    gate.coefficients.data.normal_()
    x = model[0](images).detach().requires_grad_()
    coefficients = gate.coefficients.detach().clone().requires_grad_()
    c = coefficients.T.reshape(3, 1, 2, 1, 1)
    polynomial = c[0] + c[1] * x + c[2] * x * x
    expected, grad = torch.where(gate.mask, F.silu(x), polynomial), torch.randn_like(x)
    grad_x, grad_c = torch.autograd.grad(expected, (x, coefficients), grad)
    y = gate(x)
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y, (x, gate.coefficients, gate.score), grad)
    torch.testing.assert_close(ours[0], grad_x)
    torch.testing.assert_close(ours[1], grad_c)
    change = (grad * (F.silu(x) - polynomial)).sum(0).detach()
    torch.testing.assert_close(ours[2], F.softplus(gate.score).detach() * change)


def test_a_copy_and_a_move_take_the_activation_along():
    model, images, _ = converted(nn.PReLU(2), kept="original")
    other = copy.deepcopy(model).float()
    other[1].origin.replaced.weight.data.fill_(0.9)
    x = model[0](images).detach()
    torch.testing.assert_close(other[1](x.float()), F.prelu(x.float(), torch.tensor([0.9, 0.9])))
    torch.testing.assert_close(model[1](x), F.prelu(x, torch.full((2,), 0.25, dtype=torch.float64)))


def test_what_private_inference_cannot_compute_is_refused_and_the_rest_exported(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(32, 4)).eval()
    images, labels = torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.long)
    convert_relus_(model, images, GateConfig(kept="original"))
    with pytest.raises(ValueError, match="^1: kept pixels compute SiLU"):
        export_model(model, images, labels, tmp_path)
    model[1].mask.fill_(False)
    export_model(model, images, labels, tmp_path)
    assert "original=SiLU" in str(model[1])


def test_functions_and_modules_have_the_same_fit():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return F.leaky_relu(self.conv(x), negative_slope=0.3)

    model, images = Functional().double().eval(), torch.randn(8, 3, 6, 6, dtype=torch.float64)
    convert_relus_(model, images, GateConfig(kept="relu"))
    calibrate_(model, [images], DapaConfig(scale_x2=1.0))
    x = model.conv(images).detach()
    exact = np.polyfit(x[:, 0].flatten().numpy(), F.leaky_relu(x[:, 0], 0.3).flatten().numpy(), 2)[::-1]
    (_, gate), = iter_gates(model)
    np.testing.assert_allclose(gate.coefficients[0].detach(), exact, rtol=1e-6)


def test_without_any_kept_pixel_the_output_is_nearer_to_the_original_than_with_fits_to_relu():
    torch.manual_seed(0)
    model = build_model("torchvision:efficientnet_b0", image_size=32).eval()
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        dense = model(images)
    convert_relus_(model, images[:1], GateConfig(kept="relu"))
    errors = []
    for original in (True, False):
        for _, gate in iter_gates(model):
            gate.mask.fill_(True)
            gate.original = gate.original if original else None
        calibrate_(model, [images], DapaConfig(scale_x2=1.0))
        for _, gate in iter_gates(model):
            gate.mask.fill_(False)
        with torch.no_grad():
            errors.append(float((model(images) - dense).square().mean()))
    assert count_relus(model).kept == 0
    assert errors[0] < 0.5 * errors[1]
