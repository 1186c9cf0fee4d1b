"""Conversion of models as people write, wrap and use them."""

import collections
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.feature_extraction import create_feature_extractor

from autorep.config import GateConfig
from autorep.convert.swap import convert_relus_, revert_gates_
from autorep.gates.gated_relu import iter_gates
from autorep.models.registry import build_model
from autorep.search.masks import project_to_budget_
from autorep.search.relu_count import count_relus

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """conv, an activation as `function(self, x)`, mean, fc."""

    def __init__(self, function, act=nn.ReLU):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3, padding=1), act(), nn.Linear(4, 10)
        self.function = function

    def forward(self, x):
        return self.fc(self.function(self, self.conv(x)).mean((2, 3)))


def calls_act(net, x):
    return net.act(x)


@dataclass
class Output:
    logits: Tensor
    notes: list = field(default_factory=list)


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


class Wrapped(nn.Module):
    """Reads the input of an inplace ReLU again, so that conversion has to notice; returns the logits in `wrap`."""

    def __init__(self, wrap):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(4, 10)
        self.wrap = wrap

    def forward(self, x):
        h = self.conv(x)
        y = self.relu(h)
        return self.wrap(self.fc((h + y).mean((2, 3))))


@pytest.mark.parametrize(("wrap", "unwrap"), [
    (Output, lambda out: out.logits), (Slotted, lambda out: out.logits),
    (lambda y: SimpleNamespace(inner=Output(y)), lambda out: out.inner.logits),
    (lambda y: collections.UserDict(logits=y), lambda out: out["logits"]),
    (lambda y: [Output(y)], lambda out: out[0].logits),
], ids=["dataclass", "slots", "nested", "mapping", "list of objects"])
def test_outputs_of_any_class_are_verified(wrap, unwrap):
    torch.manual_seed(0)
    net = Wrapped(wrap).eval()
    with torch.no_grad():
        before = unwrap(net(IMAGES))
        convert_relus_(net, IMAGES)
        assert torch.equal(unwrap(net(IMAGES)), before)


def test_an_output_without_tensors_is_refused():
    net = Wrapped(lambda y: y.argmax(1).tolist()).eval()
    with pytest.raises(ValueError, match=r"no tensor was found in what the forward returns \(list\)"):
        convert_relus_(net, IMAGES)
    assert not list(iter_gates(net))


@pytest.mark.parametrize("function", [
    lambda net, x: net.act(input=x), lambda net, x: net.act(input=x) + net.act(input=x),
], ids=["swapped", "traced"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_keyword_calls(function, act):
    net = Net(function, act).eval()
    with torch.no_grad():
        before = net(IMAGES)
        convert_relus_(net, IMAGES, GateConfig(kept="relu"))
        assert act is nn.SiLU or torch.equal(net(IMAGES), before)


@pytest.mark.parametrize("wrap", [torch.compile, lambda net: net.compile() or net], ids=["torch.compile", "compile()"])
def test_a_compiled_model_is_refused_with_the_way_out(wrap):
    with pytest.raises(ValueError, match=r"compiled by torch.compile.*convert the model first"):
        convert_relus_(wrap(Net(calls_act)), IMAGES)


@pytest.mark.parametrize("function", [calls_act, lambda net, x: net.act(net.act(x) - 1)], ids=["swapped", "traced"])
def test_hooks_of_every_kind_go_on_firing_and_their_handles_work(function):
    net, seen = Net(function).eval(), []

    def note(kind):
        return lambda *args: seen.append(kind)

    handles = [net.act.register_forward_hook(note("forward")), net.act.register_forward_pre_hook(note("pre")),
               net.act.register_full_backward_hook(note("backward")),
               net.act.register_full_backward_pre_hook(note("backward pre"))]

    def fired():
        seen.clear()
        net(IMAGES).sum().backward()
        return sorted(seen)

    before = fired()
    convert_relus_(net, IMAGES)
    assert fired() == before and len(before) >= 4
    for handle in handles[:2]:
        handle.remove()
    assert set(fired()) == {"backward", "backward pre"}
    revert_gates_(net)
    assert set(fired()) == {"backward", "backward pre"}


def test_gates_of_one_module_have_hooks_of_their_own():
    net = build_model("torchvision:wide_resnet50_2", image_size=32).eval()  # three calls of one ReLU, with other shapes
    convert_relus_(net, IMAGES[:, :, :8, :8].repeat(1, 1, 4, 4))
    gates, seen = dict(iter_gates(net)), []
    handles = [gate.register_forward_pre_hook(lambda gate, args, name=name: seen.append((name, args[0].shape[1:])))
               for name, gate in gates.items()]
    net(IMAGES.repeat(1, 1, 2, 2))
    assert dict(seen) == {name: gate.mask.shape for name, gate in gates.items()} and len(seen) == len(gates)
    for handle in handles:
        handle.remove()


def test_a_hook_on_a_module_that_is_traced_into_is_not_lost_in_silence():
    class Block(nn.Module):
        def forward(self, x):
            return F.relu(x)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.conv = Block(), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.block(self.conv(self.block(x)))

    net = Twice().eval()
    handle = net.block.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="Block in it has hooks"):
        convert_relus_(net, IMAGES)
    handle.remove()
    convert_relus_(net, IMAGES)


def test_what_was_set_aside_follows_type_and_device():
    net = Net(calls_act, nn.PReLU).eval()
    convert_relus_(net, IMAGES, GateConfig(kept="relu"))
    revert_gates_(net.double())
    assert net(IMAGES.double()).dtype == torch.float64
    half = Net(calls_act, nn.PReLU).half().eval()
    convert_relus_(half, IMAGES.half(), GateConfig(kept="relu"))
    assert revert_gates_(half).act.weight.dtype == torch.float16


@pytest.mark.parametrize("function", [
    lambda net, x: x.clamp(min=0), lambda net, x: torch.clamp(x, 0), lambda net, x: x.clip(0.0),
    lambda net, x: x.clamp_min(0), lambda net, x: x.clamp_min_(0), lambda net, x: torch.clamp_(x, min=0),
    lambda net, x: torch.maximum(x, torch.zeros_like(x)), lambda net, x: torch.maximum(torch.zeros(1), x),
    lambda net, x: x.max(torch.tensor(0.0)), lambda net, x: torch.fmax(x, x.new_zeros(())),
], ids=range(10))
def test_other_spellings_of_relu_are_gates(function):
    net = Net(function).eval()
    with torch.no_grad():
        before = net(IMAGES)
        assert count_relus(net, IMAGES).total == 4 * 16 * 16
        convert_relus_(net, IMAGES)
        assert torch.equal(net(IMAGES), before)
        project_to_budget_(net, 0)
        assert count_relus(net).kept == 0
        torch.testing.assert_close(net(IMAGES), net.fc(net.conv(IMAGES).mean((2, 3))))
        revert_gates_(net)
        assert torch.equal(net(IMAGES), before)


@pytest.mark.parametrize("function", [
    lambda net, x: x.clamp(0, 6), lambda net, x: x.clamp(min=1e-6), lambda net, x: x + x.max(0).values,
    lambda net, x: x.clamp(max=0),
], ids=range(4))
def test_what_only_looks_like_relu_is_none(function):
    net = Net(lambda net, x: net.act(function(net, x))).eval()
    assert [site.name for site in convert_relus_(net, IMAGES).sites] == ["act"]


@pytest.mark.parametrize(("name", "num"), [("mobilenet_v3_small", 33), ("densenet121", 121)])
def test_the_zoo_finds_no_more_activations_than_before(name, num):
    assert len(count_relus(build_model(f"torchvision:{name}", 10, image_size=32)).layers) == num


def test_a_converted_model_is_traced_by_torch_fx():
    net = build_model("torchvision:resnet18", 10, image_size=32).eval()
    example = torch.randn(2, 3, 32, 32)
    convert_relus_(net, example[:1], GateConfig())
    for _, gate in iter_gates(net):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.5)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(example), net(example), rtol=0, atol=0)
    features = create_feature_extractor(net, ["layer2"])(example)["layer2"]
    assert features.shape == (2, 128, 4, 4)
    torch.testing.assert_close(torch.export.export(net, (example,)).module()(example), net(example), rtol=0, atol=0)


def test_an_average_of_models_has_the_masks_of_the_last_one():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    convert_relus_(net, IMAGES, GateConfig())
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for budget in (500, 100):
        average.update_parameters(net)
        project_to_budget_(net, budget)
        with torch.no_grad():
            net[0].weight += 1
    average.update_parameters(net)
    assert torch.equal(average.module[1].mask, net[1].mask) and count_relus(average.module).kept == 100
    assert not torch.equal(average.module[0].weight, net[0].weight)


def test_the_fused_path_of_a_transformer_is_named_with_the_way_out():
    net = nn.Sequential(nn.Linear(3, 16), nn.TransformerEncoderLayer(16, 4, 32, activation=nn.ReLU(), batch_first=True))
    with pytest.raises(ValueError, match=r"^1: .* fused path .* LAYER.activation_relu_or_gelu = 0$"):
        convert_relus_(net.eval(), torch.randn(2, 5, 3), GateConfig())
    expected = net(example := torch.randn(2, 5, 3))
    net[1].activation_relu_or_gelu = 0
    assert [site.name for site in convert_relus_(net, example, GateConfig()).sites] == ["1.activation"]
    torch.testing.assert_close(net(example), expected)
