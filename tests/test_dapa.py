"""DaPa against numerical quadrature and numpy.polyfit on the same samples."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from autorep.config import DapaConfig, GateConfig
from autorep.convert.swap import convert_relus_
from autorep.dapa.calibrate import calibrate_
from autorep.dapa.fit import fit_coefficients_, fitted_coefficients, gaussian_coefficients, recorded_coefficients
from autorep.dapa.moments import Moments, record_moments
from autorep.data.batch import Batch
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.models.registry import build_model


def quadrature_coefficients(mean, std, degree):
    """Normal equations under N(mean, std^2) with every entry from adaptive quadrature."""
    def moment(f):
        lo, hi = mean - 14 * std, mean + 14 * std
        kink = [0.0] if lo < 0 < hi else None
        tight = {"points": kink, "epsabs": 1e-13, "epsrel": 1e-13, "limit": 400}
        return quad(lambda x: f(x) * norm.pdf(x, mean, std), lo, hi, **tight)[0]
    gram = [[moment(lambda x, k=i + j: x**k) for j in range(degree + 1)] for i in range(degree + 1)]
    target = [moment(lambda x, k=i: max(x, 0.0) * x**k) for i in range(degree + 1)]
    return np.linalg.solve(gram, target)


def test_gates_that_share_a_module_are_recorded_apart():
    torch.manual_seed(0)
    model = build_model("torchvision:resnet18", image_size=16).eval()  # two calls of one ReLU in every block
    images = torch.randn(4, 3, 16, 16)
    convert_relus_(model, images)
    inputs = {}
    for name, gate in iter_gates(model):
        gate.forward = lambda x, name=name: inputs.setdefault(name, x).relu()
    with torch.no_grad(), record_moments(model) as moments:
        model(images)
    for name, x in inputs.items():
        torch.testing.assert_close(moments[name].mean, x.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5), (-1.1, 2.0), (0.3, 1.7)])
def test_gaussian_form_equals_quadrature(mean, std, degree):
    ours = gaussian_coefficients(mean, std, degree).numpy()
    np.testing.assert_allclose(ours, quadrature_coefficients(mean, std, degree), rtol=1e-6, atol=1e-9)


def test_gaussian_form_equals_the_published_quadratic_and_line():
    mean, std = torch.tensor([0.4, -2.0, 0.0]), torch.tensor([0.5, 1.5, 3.0])
    z = (mean / std).double()
    phi, cdf = torch.exp(-z**2 / 2) / (2 * torch.pi) ** 0.5, torch.special.ndtr(z)
    std = std.double()
    quadratic = torch.stack([std * phi * (1 + z**2) / 2, cdf - z * phi, phi / (2 * std)], -1)
    torch.testing.assert_close(gaussian_coefficients(mean, std, 2), quadratic, rtol=1e-7, atol=1e-8)
    line = torch.stack([std * phi, cdf], -1)
    torch.testing.assert_close(gaussian_coefficients(mean, std, 1), line, rtol=1e-7, atol=1e-8)


def test_plain_numbers_count_in_double_precision():
    exact = gaussian_coefficients(torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64), 2)
    assert torch.equal(gaussian_coefficients(0.1, 0.3, 2), exact)


def test_gaussian_form_broadcasts_and_refuses_nonsense():
    assert gaussian_coefficients(torch.zeros(3, 4), 1.0, 2).shape == (3, 4, 3)
    for degree in (5, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"degree={degree}"):
            gaussian_coefficients(0.0, 1.0, degree)
    with pytest.raises(ValueError, match="invalid mean"):
        gaussian_coefficients(float("nan"), 1.0, 2)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="invalid std"):
            gaussian_coefficients(0.0, bad, 2)


@pytest.mark.parametrize("degree", range(5))
def test_recorded_fit_equals_polyfit(degree):
    x = torch.randn(20, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(degree))
    x = x * torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1) + torch.tensor([5.0, -0.2, 0.5]).view(3, 1, 1)
    x = x + 0.3 * x.abs().sqrt()  # not Gaussian
    ours = recorded_coefficients(Moments.of(x, max(1, degree)), degree)
    for c in range(3):
        samples = x[:, c].flatten().numpy()
        theirs = np.polyval(np.polyfit(samples, np.maximum(samples, 0), degree), samples)
        np.testing.assert_allclose(np.polyval(ours[c].numpy()[::-1], samples), theirs, atol=1e-7)


def test_merged_moments_equal_the_moments_of_all_samples():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 2, 3, 3, generator=generator) * (1 + i) + 3 * i for i in range(4)]
    whole = Moments.of(torch.cat(batches), 2)
    first = Moments.of(batches[0], 2)
    for batch in batches[1:]:
        first = first.merge(Moments.of(batch, 2))  # each about its own centre
    torch.testing.assert_close(first.mean, whole.mean)
    torch.testing.assert_close(first.var, whole.var)
    torch.testing.assert_close(recorded_coefficients(first, 2), recorded_coefficients(whole, 2))


def test_a_large_mean_keeps_its_digits():
    x = 1000 + 0.1 * torch.randn(500, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moments = Moments.of(x[:250], 2).merge(Moments.of(x[250:], 2))
    assert moments.var.item() == pytest.approx(x.var(correction=0).item(), rel=1e-8)
    y = np.polyval(recorded_coefficients(moments, 2)[0].numpy()[::-1], x.flatten().numpy())
    np.testing.assert_allclose(y, x.flatten().numpy(), rtol=1e-6)


def test_a_channel_without_spread_takes_the_gaussian_form_at_the_floor():
    x = torch.zeros(8, 2, 4)
    x[:, 1] = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    config = DapaConfig(fit="recorded", var_min=0.04, scale_x2=1.0)
    coefficients = fitted_coefficients(Moments.of(x, 2), 2, config)
    torch.testing.assert_close(coefficients[0], gaussian_coefficients(0.0, 0.2, 2))
    torch.testing.assert_close(coefficients[1], recorded_coefficients(Moments.of(x, 2), 2)[1])


def test_a_scaled_quadratic_has_the_best_line_beside_it():
    x = torch.randn(64, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.3
    moments, samples = Moments.of(x, 2), x.flatten().numpy()
    full = fitted_coefficients(moments, 2, DapaConfig(scale_x2=1.0))[0]
    torch.testing.assert_close(full, recorded_coefficients(moments, 2)[0])
    for scale in (0.0, 0.1, 2.0):
        ours = fitted_coefficients(moments, 2, DapaConfig(scale_x2=scale))[0].numpy()
        c2 = scale * full[2].item()
        c1, c0 = np.polyfit(samples, np.maximum(samples, 0) - c2 * samples**2, 1)
        np.testing.assert_allclose(ours, [c0, c1, c2], atol=1e-10)


def test_the_line_scale_and_the_clip():
    moments = Moments.of(torch.randn(64, 1, 8, generator=torch.Generator().manual_seed(3)), 2)
    plain = fitted_coefficients(moments, 2, DapaConfig(fit="gaussian", scale_x2=1.0))[0]
    scaled = fitted_coefficients(moments, 2, DapaConfig(fit="gaussian", scale_x1=0.5, scale_x2=1.0))[0]
    torch.testing.assert_close(scaled, plain * torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64))
    clipped = fitted_coefficients(moments, 2, DapaConfig(fit="gaussian", scale_x2=1.0, clip_x2=0.05))[0]
    assert plain[2] > 0.05 and clipped[2] == 0.05


def test_recording_is_confined_to_the_block_and_fits_every_gate():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), GatedReLU((2, 6, 6), GateConfig(replacement="dapa")), nn.Flatten(),
                          nn.Linear(72, 5), GatedReLU((5,), GateConfig(replacement="dapa", degree=1)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    with record_moments(model) as moments:
        model(x)
    model(x * 100)
    assert {name: m.count[0].item() for name, m in moments.items()} == {"1": 4 * 36, "4": 4}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    fit_coefficients_(model, moments, DapaConfig(scale_x2=1.0))
    expected = recorded_coefficients(moments["1"], 2).float()
    torch.testing.assert_close(model[1].coefficients.data, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="nothing was recorded for 1"):
        fit_coefficients_(model, {"4": moments["4"]}, DapaConfig())


@pytest.mark.parametrize("elements", [1, 7, 2**23])
def test_batches_of_one_recording_are_merged_and_channels_summed_in_pieces(monkeypatch, elements):
    monkeypatch.setattr("autorep.dapa.moments._ELEMENTS_AT_ONCE", elements)
    torch.manual_seed(0)
    scale = torch.arange(1, 6.0)[:, None, None]
    batches = [scale * torch.randn(4, 5, 3, 3, dtype=torch.float64) + scale for _ in range(3)]
    gate = GatedReLU((5, 3, 3), GateConfig(), dtype=torch.float64)
    with record_moments(nn.Sequential(gate)) as moments:
        for batch in batches:
            gate(batch)
    whole = torch.cat(batches).transpose(0, 1).flatten(1)
    (found,) = moments.values()
    torch.testing.assert_close(found.mean, whole.mean(1))
    torch.testing.assert_close(found.var, whole.var(1, correction=0))
    exact = np.stack([np.polyfit(x, x.clip(0), 2)[::-1] for x in whole.numpy()])
    np.testing.assert_allclose(recorded_coefficients(found, 2).numpy(), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", [tuple, list, Batch.of, lambda pair: pair[0], lambda pair: (*pair, "an index")])
def test_calibration_takes_images_alone_or_with_what_loaders_add(form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), GatedReLU((2, 6, 6), GateConfig(replacement="dapa")))
    pairs = [(torch.randn(4, 1, 8, 8), torch.arange(4)) for _ in range(2)]
    with record_moments(model) as moments:
        for images, _ in pairs:
            model(images)
    calibrate_(model, map(form, pairs), DapaConfig())
    expected = fitted_coefficients(moments["1"], 2, DapaConfig()).float()
    torch.testing.assert_close(model[1].coefficients.data, expected, rtol=0, atol=0)


def test_activations_that_are_not_finite_name_the_first_gate_that_sees_them():
    model = build_model("resnet8", in_channels=1, image_size=8)
    convert_relus_(model, torch.rand(1, 1, 8, 8))
    before = {name: gate.coefficients.clone() for name, gate in iter_gates(model)}
    with torch.no_grad():
        model.stages[1][0].bn2.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"^the activations that stages\.1\.0\.relu2 sees .* not finite"):
        calibrate_(model, [torch.rand(4, 1, 8, 8)], DapaConfig())
    assert all(torch.equal(gate.coefficients, before[name]) for name, gate in iter_gates(model))
