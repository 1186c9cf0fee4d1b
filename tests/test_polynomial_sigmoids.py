"""Sigmoids that weight channels as polynomials: fitted, exported, priced, taken back."""

import copy

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from test_mpc_export import check, settle_
from torch import nn

from autorep import GateConfig, convert_relus_, count_relus, revert_gates_
from autorep.config import DapaConfig, OptimConfig, RunConfig
from autorep.convert.sigmoids import HardenedSigmoid
from autorep.dapa.calibrate import calibrate_, record
from autorep.dapa.fit import activation_of, gaussian_coefficients
from autorep.dapa.ranges import set_ranges_
from autorep.gates.polynomial_sigmoid import PolynomialSigmoid, iter_fitted
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.search.price import TracedPrices
from autorep.training.optim import parameter_groups
from autorep.training.searching import Search

POLY = GateConfig(sigmoid="poly")


class Excited(nn.Module):
    """conv, ReLU, squeeze and excitation with a sigmoid and a hard one, mean, fc."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5)
        self.squeeze1, self.sigmoid = nn.Conv2d(4, 4, 1), nn.Sigmoid()
        self.squeeze2, self.hard = nn.Linear(4, 4), nn.Hardsigmoid()

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = x * self.sigmoid(self.squeeze1(x.mean((2, 3), keepdim=True)))
        x = x * self.hard(self.squeeze2(x.mean((2, 3))))[:, :, None, None]
        return self.fc(x.mean((2, 3)))


def excited(sigmoid="poly"):
    torch.manual_seed(0)
    model, images = Excited(), torch.randn(16, 3, 8, 8)
    model.squeeze1.weight.data *= 8  # sigmoids that see more than their middle
    model.squeeze2.weight.data *= 8
    convert_relus_(settle_(model, (3, 8, 8)), images[:1], GateConfig(sigmoid=sigmoid))
    return model, images


def quadrature(function, mean, std):
    """The least-squares quadratic under N(mean, std^2)."""
    powers = [stats.norm(mean, std).moment(k) for k in range(5)]
    gram = np.array([[powers[i + j] for j in range(3)] for i in range(3)])
    target = [integrate.quad(lambda x, k=k: function(x) * x**k * stats.norm.pdf(x, mean, std), mean - 10 * std,
                             mean + 10 * std, points=[-3, 3], limit=200)[0] for k in range(3)]
    return np.linalg.solve(gram, target)


FUNCTIONS = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "hard": lambda x: np.clip(x / 6 + 0.5, 0, 1)}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-2.0, 0.5), (1.0, 3.0)])
def test_the_gaussian_fit_is_that_of_quadrature(name, mean, std):
    module = getattr(excited()[0], name)
    found = gaussian_coefficients(torch.full((4,), mean), std, 2, activation_of(module))
    np.testing.assert_allclose(found, np.tile(quadrature(FUNCTIONS[name], mean, std), (4, 1)), atol=1e-5)


def test_before_a_fit_it_is_a_quadratic_and_has_the_price_of_one():
    model, images = excited()
    for name in FUNCTIONS:
        found = model.get_submodule(name).coefficients[0].detach()
        np.testing.assert_allclose(found, quadrature(FUNCTIONS["sigmoid"], 1, 1), atol=1e-4)
    traced, prices = TracedPrices(model, images), []
    for coefficients in ([0.4, 0.3, 0.1], [0.4, 0.3, 0.0]):
        prices.append(traced.now()["trained"]["spu-semi2k"])
        model.sigmoid.coefficients.data.copy_(torch.tensor(coefficients))
    line = traced.now()["trained"]["spu-semi2k"]
    assert [price["rounds"] for price in prices] == [line["rounds"] + 2] * 2  # a line is folded into the layer before
    assert prices[0]["bytes"] == prices[1]["bytes"] == line["bytes"] + 4 * 2 * (16 + 4)


def test_calibration_fits_each_channel_to_what_was_there_whatever_the_scales_of_gates():
    model, images = excited()
    seen = {}
    for name in FUNCTIONS:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    calibrate_(model, [images], DapaConfig(scale_x1=0.3, scale_x2=0.1, clip_x2=1e-4, var_min=1e-6))
    model(images)
    for name, function in FUNCTIONS.items():
        module = model.get_submodule(name)
        for x, found in zip(seen[name].detach().flatten(1).T.double().numpy(), module.coefficients, strict=True):
            np.testing.assert_allclose(found.detach(), np.polyfit(x, function(x), 2)[::-1], atol=1e-3)


def test_a_fit_does_not_depend_on_the_polynomials_before_it():
    model, images = excited()
    calibrate_(model, [images], DapaConfig())
    fitted = model.hard.coefficients.detach().clone()
    model.sigmoid.coefficients.data.fill_(1e9)
    calibrate_(model, [images], DapaConfig())
    assert torch.equal(model.hard.coefficients, fitted)


def test_it_is_no_relu_and_trains_with_the_coefficients():
    model, _ = excited()
    assert count_relus(model).total == 4 * 6 * 6 and list(count_relus(model).layers) == ["relu"]
    groups = {group["name"]: group["params"] for group in parameter_groups(model, OptimConfig())}
    assert {id(p) for p in groups["coefficients"]} == {id(module.coefficients) for _, module in iter_fitted(model)}
    model.train()(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(model.get_submodule(name).coefficients.grad.abs().sum() > 0 for name in FUNCTIONS)


def test_in_training_it_sees_no_more_than_its_range():
    model, images = excited()
    set_ranges_(model, record(model, [images]), DapaConfig(range_width=2), 16)
    module = model.sigmoid
    x = torch.full((1, 4, 1, 1), 100.0)
    high = module.range_3C[1]
    torch.testing.assert_close(module.train()(x).flatten(), 0.5188 + 0.2306 * high - 0.0263 * high**2)
    torch.testing.assert_close(module.eval()(x), 0.5188 + 0.2306 * x - 0.0263 * x**2)


def test_a_resumed_search_has_its_ranges_again():
    (model, images), config = excited(), RunConfig.for_search(relu_budget=10)
    set_ranges_(model, record(model, [images]), config.dapa, 16)
    state = Search(config, model, None, 100).state_dict()
    again, _ = excited()
    Search(config, again, None, 100).load_state_dict(state)
    assert [name for name, _ in iter_fitted(again)] == ["relu", "sigmoid", "hard"]
    for (_, ours), (_, theirs) in zip(iter_fitted(model), iter_fitted(again), strict=True):
        assert torch.equal(ours.range_3C, theirs.range_3C)


def test_the_bundle_is_torch_and_costs_fewer_rounds_and_bytes_than_hard_sigmoids(tmp_path):
    prices = {}
    for sigmoid in ("poly", "hard"):
        model, images = excited(sigmoid)
        if sigmoid == "hard":
            model.hard = HardenedSigmoid(model.hard)
        calibrate_(model, [images], DapaConfig())
        graph = check(model, (3, 8, 8), tmp_path / sigmoid)
        prices[sigmoid] = estimate(graph, FixedPoint(), [])["spu-semi2k"]
        assert sum(op.kind == "polynomial" for op in graph.ops) == (2 if sigmoid == "poly" else 0)
    comparisons = {name: sum(row["bytes"] for row in price["by_layer"] if row["kind"] == "comparison")
                   for name, price in prices.items()}
    assert comparisons["hard"] - comparisons["poly"] == 2 * 72 * 2 * 2 * 4  # parties, bytes, two a channel, layers
    assert prices["poly"]["rounds"] <= prices["hard"]["rounds"] - 2 * 2 * 8
    assert prices["poly"]["bytes"] < prices["hard"]["bytes"]


def test_every_masking_leaves_it_a_polynomial():
    model, images = excited()
    calibrate_(model, [images], DapaConfig())
    found = TracedPrices(model, images).now(("all_relu", "no_relu"))
    for price in found.values():
        kinds = {row["kind"] for row in price["spu-semi2k"]["by_layer"] if row["layer"].startswith("sigmoid")}
        assert kinds == {"polynomial", "other"}  # the latter moves pixels


def test_it_is_taken_back_and_survives_copies_and_state_dicts():
    torch.manual_seed(0)
    model, images = Excited().eval(), torch.randn(4, 3, 8, 8)
    before, dense = dict(model.named_modules()), model(images)
    convert_relus_(model, images, POLY)
    calibrate_(model, [images], DapaConfig())
    again = Excited().eval()
    convert_relus_(again, torch.zeros(1, 3, 8, 8), POLY)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images), model(images)) and torch.equal(copy.deepcopy(model)(images), model(images))
    assert not torch.equal(model(images), dense)
    torch.testing.assert_close(model(images), dense, atol=1e-3, rtol=0)
    revert_gates_(model)
    assert dict(model.named_modules()) == before and torch.equal(model(images), dense)


def test_one_module_for_two_numbers_of_channels_is_refused_and_nothing_changes():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()

        def forward(self, x):
            x = self.relu(x) * self.sigmoid(x.mean((2, 3), keepdim=True))
            return x[:, :2] * self.sigmoid(x[:, :2].mean((2, 3), keepdim=True))

    model = Shared()
    with pytest.raises(ValueError, match=r"a sigmoid that runs on \[\(2, 1, 1\), \(3, 1, 1\)\] cannot become"):
        convert_relus_(model, torch.randn(1, 3, 4, 4), POLY)
    assert type(model.relu) is nn.ReLU and type(model.sigmoid) is nn.Sigmoid
    convert_relus_(model, torch.randn(1, 3, 4, 4), GateConfig(sigmoid="hard"))


def test_polynomials_need_a_fit():
    with pytest.raises(ValueError, match="invalid sigmoid='poly': expected hard or none"):
        GateConfig(sigmoid="poly", replacement="identity")


def test_a_sigmoid_that_does_not_run_stays():
    model = Excited()
    model.unused = nn.Sigmoid()
    convert_relus_(model, torch.randn(1, 3, 8, 8), POLY)
    assert type(model.unused) is nn.Sigmoid and isinstance(model.hard, PolynomialSigmoid)
