"""From torch to a bundle: the interpreter gives torch's logits, for what the toolkit converts and torch.fx traces."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autorep import GateConfig, build_model, convert_relus_, iter_gates
from autorep.mpc.bundle.files import load_graph, load_samples, load_weights
from autorep.mpc.bundle.interpreter import logits_float
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.export.operation import Call
from autorep.mpc.export.pooling import adaptive_pool
from autorep.mpc.export.to_bundle import export_model
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.prediction import run_fixed


def settle_(model, shape):
    """Batch-norm statistics that are not the initial ones."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, *shape) * 1.5 + 0.3)
    return model.eval()


def test_what_float32_rounds_is_no_mistake_of_the_export(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False), nn.Linear(2, 3, bias=False)).eval()
    net[1].weight.data.zero_()
    net[1].weight.data[:, 0], net[1].weight.data[1, 4] = 7e3, 1.0  # a large value, and the same with a small one added
    net[2].weight.data[:] = torch.tensor([-1.0, 1.0])
    images = torch.rand(64, 3, 2, 2) + 1
    export_model(net, images, torch.zeros(64, dtype=torch.long), tmp_path)
    graph = load_graph(tmp_path)
    found = logits_float(graph, load_weights(tmp_path, graph), images.numpy())
    exact = net.double()(images.double()).detach().numpy()
    assert abs(load_samples(tmp_path, graph).logits - exact).max() > 1e-4 * abs(exact).max()  # torch's own
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def convert(model, shape, degree=2):
    torch.manual_seed(0)
    model = convert_relus_(settle_(model, shape), torch.randn(1, *shape), GateConfig(degree=degree, kept="relu")).model
    for _, gate in iter_gates(model):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.2)
        gate.coefficients.data.copy_(torch.randn_like(gate.coefficients) * 0.1)
        gate.coefficients.data[:, 1] += 0.5
    return model


def check(model, shape, tmp_path, num_images=3):
    images, others = torch.randn(num_images, *shape), torch.randn(2, *shape)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    problems = export_model(model, images, torch.zeros(num_images, dtype=torch.long), tmp_path)
    assert problems == []
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    graph = load_graph(tmp_path)
    weights, samples = load_weights(tmp_path, graph), load_samples(tmp_path, graph)
    with torch.no_grad():
        np.testing.assert_allclose(samples.logits, model(images.clone()).numpy(), atol=1e-5)
        expected = model(others.clone()).numpy()
    np.testing.assert_allclose(logits_float(graph, weights, samples.images), samples.logits, atol=1e-4)
    np.testing.assert_allclose(logits_float(graph, weights, others.numpy()), expected, atol=1e-4)
    if sum(values.size for values in weights.values()) > 2e6:
        return graph  # integers are slow in numpy
    ring = run_fixed(lower(graph, FixedPoint()), weights, samples.images[:1])[graph.output_name]
    np.testing.assert_allclose(ring, samples.logits[:1], atol=2e-2)
    return graph


@pytest.mark.parametrize(("name", "size", "degree"), [("resnet8", 16, 1), ("resnet20", 16, 2), ("vgg", 28, 2)])
def test_our_nets(name, size, degree, tmp_path):
    shape = (3, size, size)
    graph = check(convert(build_model(name, image_size=size), shape, degree), shape, tmp_path)
    assert {op.attrs["degree"][0] for op in graph.ops if op.kind == "gate"} == {degree}
    assert not any(op.kind == "affine" for op in graph.ops)  # every batch norm is folded


NUM_GATES = {"torchvision:resnet18": 17, "timm:densenet121": 121, "torchvision:mobilenet_v2": 35,
             "torchvision:mobilenet_v3_small": 51, "torchvision:shufflenet_v2_x0_5": 37, "timm:mobilenetv2_050": 35}


@pytest.mark.parametrize("name", NUM_GATES)
def test_nets_of_others(name, tmp_path):
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="the optional package timm is not installed")
    graph = check(convert(build_model(name, image_size=32), (3, 32, 32)), (3, 32, 32), tmp_path)
    assert sum(op.kind == "gate" for op in graph.ops) == NUM_GATES[name]


class Moving(nn.Module):
    """Halves that swap and shuffle, squeeze and excitation, a mean that drops dimensions, one pixel repeated."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze, self.gate = nn.Conv2d(2, 8, 3), nn.Linear(8, 8), nn.Hardsigmoid()
        self.shuffle, self.pool, self.fc = nn.ChannelShuffle(2), nn.AdaptiveAvgPool2d(2), nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x * self.gate(self.squeeze(x.mean((2, 3)))).view(x.size(0), 8, 1, 1).expand_as(x)
        first, second = x.chunk(2, dim=1)
        x = self.shuffle(torch.cat([second, first + second], 1))
        x = F.avg_pool2d(x, x.shape[-1])
        return self.fc(F.dropout(torch.flatten(self.pool(x), 1), training=self.training))


def test_moving_elements_is_free_and_exact(tmp_path):
    torch.manual_seed(0)
    graph = check(convert(Moving(), (2, 8, 8)), (2, 8, 8), tmp_path)
    prices = estimate(graph, FixedPoint(), [])["spu-semi2k"]["by_layer"]
    moving = {op.name for op in graph.ops if op.kind in ("pick", "flatten", "concat")}
    assert len(moving) > 4 and not any(row["bytes"] for row in prices if row["layer"] in moving)


class Returning(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(("function", "reason"), [
    (lambda x: {"logits": x.flatten(1)}, "returns anything but one tensor"),
    (lambda x: x.flatten(1).chunk(2, 1), "returns anything but one tensor"),
    (lambda x: F.relu(torch.stack(x.chunk(2, 1))).sum(0).flatten(1), r"relu: rearranging"),
    (lambda x: torch.atleast_3d(x.chunk(2, 1)), "atleast_3d: a tuple of tensors cannot"),
    (lambda x: x.view(-1, 1, 8, 8).flatten(1), r"rearranging \[2, 8, 8\] to \[64\] cannot"),
    (lambda x: x.flatten(1)[:, 0], r"rearranging \[2, 8, 8\] to \[\] cannot"),
    (lambda x: x, "a model whose result is the image itself cannot be exported"),
    (lambda x: x.flatten(1).mean(1), r"mean: the reduction of \[1, 128\] over dimensions 1 cannot"),
    (lambda x: F.linear(x.flatten(1), x.flatten(1)), "linear of 2 tensors that depend on the image cannot"),
    (lambda x: (x - x.max()).flatten(1), "max_1: the maximum of a whole tensor cannot"),
    (lambda x: F.gelu(x).flatten(1), "gelu: gelu cannot be exported: private inference knows"),
    (lambda x: F.dropout(x, 0.5).flatten(1), "dropout: a dropout that is active in evaluation"),
], ids=["dict", "tuple", "stack", "tuple operand", "batch", "one feature", "nothing", "mean", "two operands", "max",
        "unknown", "active dropout"])
def test_functions_that_cannot_be_exported_are_named(function, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        export_model(Returning(function), torch.randn(2, 2, 8, 8), torch.zeros(2, dtype=torch.long), tmp_path)


class Named(nn.Module):
    """Names that meet those of the trace, `relu` beside `model_relu` and `input`; a pool that counts its padding."""

    def __init__(self):
        super().__init__()
        self.input, self.model_relu, self.relu = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = F.avg_pool2d(self.relu(self.model_relu(self.input(x))), 2, padding=1)
        return F.dropout(x, 0.5, training=False).flatten(1)


class Arithmetic(nn.Module):
    """Arithmetic with constants around a convolution."""

    def __init__(self, function):
        super().__init__()
        self.function, self.conv, self.fc = function, nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.std = nn.Parameter(torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))

    def forward(self, x):
        y = self.conv(F.relu(self.function(self, x)))
        return self.fc((y + 0.1 * F.relu(y)).mean((2, 3)))


@pytest.mark.parametrize("function", [
    lambda net, x: (x - net.mean) / net.std, lambda net, x: 1 - x * net.std, lambda net, x: -x,
    lambda net, x: torch.sub(x, net.mean, alpha=2), lambda net, x: (2 * x).div(net.std).add_(1), lambda net, x: x * 1])
def test_arithmetic_with_constants_is_a_scale_and_a_shift_of_each_channel(function, tmp_path):
    check(Arithmetic(function).eval(), (3, 6, 6), tmp_path)


@pytest.mark.parametrize("function", [lambda net, x: 1 / (x + 2),
                                      lambda net, x: x / (x * x + 1), lambda net, x: F.softshrink(x),
                                      lambda net, x: F.pad(x, (1, 1), value=1.0)])
def test_other_arithmetic_is_refused(function, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported"):
        export_model(Arithmetic(function).eval(), torch.rand(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), tmp_path)


def test_names_and_defaults_that_are_easily_mistaken(tmp_path):
    check(Named().eval(), (2, 6, 6), tmp_path)


def test_keywords_are_followed(tmp_path):
    last = Returning(lambda x: torch.flatten(input=F.relu(input=x), start_dim=1))
    check(nn.Sequential(nn.Conv2d(2, 3, 3), last).eval(), (2, 4, 4), tmp_path)


class Plain(nn.Module):
    """A user's network: functional calls, a product, a concatenation, a batch norm that cannot be folded."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, 1, 2, dilation=2, groups=2, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(72, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        y = torch.cat([x, self.b(x) * x], dim=1)
        y = F.max_pool2d(F.relu(self.norm(y)), 2, stride=1)
        y = F.avg_pool2d(y, kernel_size=2, stride=2)
        return self.fc(y.view(y.size(0), -1))


def test_a_users_net_converted_or_not(tmp_path):
    torch.manual_seed(0)
    model = Plain()
    graph = check(settle_(copy.deepcopy(model), (2, 8, 8)), (2, 8, 8), tmp_path / "plain")
    assert all(graph.public[f"{op.name}/mask"].all() for op in graph.ops if op.kind == "gate")
    graph = check(convert(model, (2, 8, 8)), (2, 8, 8), tmp_path / "converted")
    assert sum(op.kind == "affine" for op in graph.ops) == 1
    assert len(json.loads((tmp_path / "converted" / "graph.json").read_text())["meta"]["gates"]) == 2


@pytest.mark.parametrize(("layer", "reason"), [
    (nn.Sigmoid(), "Sigmoid cannot be exported.*hard ones"),
    (nn.LayerNorm(8), "LayerNorm cannot be exported"),
    (nn.GroupNorm(1, 2), "^0: GroupNorm cannot be exported"),
    (nn.MaxPool2d(2, dilation=9, padding=1), "^0: a pool of which a window has no element in the image cannot"),
    (nn.BatchNorm2d(2, track_running_stats=False), "running statistics"),
])
def test_what_cannot_be_exported_is_named(layer, reason, tmp_path):
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(2, 2, 8, 8))
    with pytest.raises(ValueError, match=reason):
        export_model(model, torch.randn(2, 2, 8, 8), torch.zeros(2, dtype=torch.long), tmp_path)
    assert not (tmp_path / "graph.json").exists()


def test_ranges_beyond_the_ring_are_refused(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.randn(2, 1, 2, 2), torch.zeros(2, dtype=torch.long)
    model[1].bias.data.fill_(6000)
    problems = export_model(model, images, labels, tmp_path / "near")
    assert len(problems) == 1 and not problems[0].fatal
    model[1].bias.data.fill_(60000)
    with pytest.raises(ValueError, match="do not fit the ring.*wraps around"):
        export_model(model, images, labels, tmp_path / "beyond")


def test_ranges_are_those_of_what_is_computed(tmp_path):
    """The first layer gives 3e4, and its gate, which is folded into it, 3."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)).eval()
    images, labels = torch.rand(2, 4), torch.zeros(2, dtype=torch.long)
    convert_relus_(model, images, GateConfig(degree=1, kept="relu"))
    model[0].bias.data.fill_(3e4)
    model[1].coefficients.data[:, 1] = 1e-4
    with pytest.raises(ValueError, match="do not fit the ring.*0: .*3e\\+04.* wraps around"):
        export_model(model, images, labels, tmp_path)
    model[1].mask.fill_(False)
    assert export_model(model, images, labels, tmp_path) == []


def test_a_forward_that_depends_on_its_input_is_refused(tmp_path):
    class Depends(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(ValueError, match=r"^1 \(Depends\) cannot be traced by torch.fx: TraceError: [^\n]*$"):
        export_model(nn.Sequential(nn.Identity(), Depends()), torch.randn(2, 1, 2, 2),
                     torch.zeros(2, dtype=torch.long), tmp_path)


def test_adaptive_pooling_whose_windows_hardly_overlap_is_refused():
    call = Call(nn.AdaptiveAvgPool2d(7), [(1, 64, 1000, 1000)], (1, 64, 7, 7), (), {})
    with pytest.raises(ValueError, match=r"pooling from \[1000, 1000\] to \[7, 7\] cannot be exported"):
        adaptive_pool("avg_pool", call)
