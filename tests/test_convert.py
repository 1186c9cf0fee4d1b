"""Conversion: exact, reversible, filtered by name, loud."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from convert_nets import (
    RELU,
    RELU_MODELS,
    Aliased,
    Branching,
    DataDependent,
    Functional,
    Optional,
    assert_same_run,
    reused_in_sequential,
    structure,
    torchvision_net,
)
from torch import Tensor, fx, nn

from autorep.config import GateConfig
from autorep.convert.sites import find_sites
from autorep.convert.swap import convert_relus_, freeze_gates_, revert_gates_
from autorep.gates.gated_relu import iter_gates


@pytest.mark.parametrize("name", RELU_MODELS)
def test_bit_equal_with_all_kept_and_exactly_reverted(name):
    build, side, names, num = RELU_MODELS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, 3, side, side)
    original, before, keys = copy.deepcopy(model), structure(model), list(model.state_dict())
    found = find_sites(model, x)
    assert structure(model) == before

    report = convert_relus_(model, x)
    gates = dict(iter_gates(model))
    assert report.model is model
    assert names <= set(gates)
    assert set(gates) == {site.name for site in report.sites} == {site.name for site in found}
    assert len(gates) == num
    assert all(tuple(gates[site.name].mask.shape) == site.shape for site in report.sites)
    assert set(keys) <= set(model.state_dict())
    for training in (True, False):
        assert_same_run(model, original, x, training)

    copied, original_then = copy.deepcopy(model), copy.deepcopy(original)
    assert revert_gates_(model.train()) is model
    assert structure(model) == before
    assert list(model.state_dict()) == keys
    for training in (True, False):
        assert_same_run(model, original, x, training)

    assert len(dict(iter_gates(copied))) == num
    assert_same_run(copied, original_then, x, training=False)
    assert_same_run(revert_gates_(copied), original_then, x, training=True)


@pytest.mark.parametrize("name", ["resnet18", "weight-shared", "functional", "dropout", "reused in Sequential"])
def test_every_gate_works_alone(name):
    build, side, _, _ = RELU_MODELS[name]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(2, 3, side, side)
    convert_relus_(model, x)
    with torch.no_grad():
        kept = model(x)
        for _, gate in iter_gates(model):
            gate.mask.zero_()
            gate.coefficients[:, 0] = 1
            assert not torch.equal(model(x), kept)
            gate.mask.fill_(True)
        assert torch.equal(model(x), kept)


@pytest.mark.parametrize(("name", "kind", "num"), [("mobilenet_v2", "ReLU6", 35), ("efficientnet_b2", "SiLU", 69)])
def test_other_activations_are_refused_and_converted_when_asked(name, kind, num):
    torch.manual_seed(0)
    model, x = torchvision_net(name)().eval(), torch.randn(1, 3, 32, 32)
    before = structure(model)
    with torch.no_grad():
        expected = model(x)
    with pytest.raises(ValueError, match=rf"{num} of {num} sites are not ReLU: .*\({kind}\).*kept='relu'.*filter_fn"):
        convert_relus_(model, x)
    assert structure(model) == before

    report = convert_relus_(model, x, RELU)
    assert {site.kind for site in report.sites} == {kind}
    assert len(list(iter_gates(model))) == num
    with torch.no_grad():
        first = next(site.name for site in report.sites)
        seen = {}
        model.get_submodule(first).register_forward_hook(lambda _, args, y: seen.update(x=args[0], y=y))
        model(x)
        assert torch.equal(seen["y"], seen["x"].relu())
        assert torch.equal(revert_gates_(model)(x), expected)


def test_aliasing_is_emulated_even_where_the_example_does_not_show_it():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    model = Aliased(nn.ReLU(inplace=True), positive=True)
    convert_relus_(model, x)
    model.act.mask.zero_()
    with torch.no_grad():
        model.act.coefficients.copy_(torch.tensor([0.5, 2.0, 0.0]))
        y = 2 * model.conv(x).exp() + 0.5
        torch.testing.assert_close(model(x), y + 2 * y)


def test_inplace_is_not_emulated_where_nothing_relies_on_it():
    model = torchvision_net("resnet18")()
    assert model.relu.inplace
    convert_relus_(model, torch.randn(1, 3, 32, 32))
    assert not any(gate.inplace for _, gate in iter_gates(model))


def test_other_inplace_activations_keep_their_aliasing():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    model = Aliased(nn.SiLU(inplace=True))
    convert_relus_(model, x, RELU)
    torch.testing.assert_close(model(x), 3 * model.conv(x).relu())


def test_what_cannot_be_traced_is_named_and_left_alone():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), DataDependent()), torch.randn(1, 3, 4, 4)
    before = structure(model)
    with pytest.raises(ValueError, match=r"^1 \(DataDependent\).*decision on gt.*distinct nn.ReLU.*filter_fn"):
        convert_relus_(model, x)
    assert structure(model) == before
    report = convert_relus_(model, x, filter_fn=lambda module, name: name != "1.relu")
    assert {site.name for site in report.sites if site.converted} == {
        "1.inner.1", "1.fine.relu", "1.fine.relu_1", "1.fine.relu_2"}
    assert "no: left out by filter_fn" in str(report)

def test_filter_sees_modules_and_names():
    seen = []
    model = RELU_MODELS["resnet18"][0]()
    x = torch.randn(1, 3, 32, 32)
    report = convert_relus_(model, x, filter_fn=lambda module, name: seen.append((module, name)) or "layer1" in name)
    assert [name for name, _ in iter_gates(model)] == [f"layer1.{block}.relu_{i}" for block in (0, 1) for i in (1, 2)]
    assert seen[1] == (model.layer1[0].relu, "layer1.0.relu_1")
    assert len(seen) == len(report.sites) == 17
    assert [site.name for site in find_sites(model, x)] == [s.name for s in report.sites if not s.converted]


def test_loud_when_there_is_nothing_to_do():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="leaves out all 2 sites: 1, 4"):
        convert_relus_(reused_in_sequential(), x, filter_fn=lambda module, name: False)
    with pytest.raises(ValueError, match="no activation"):
        convert_relus_(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid()), x)
    model = reused_in_sequential()
    for undo in (revert_gates_, freeze_gates_):
        with pytest.raises(ValueError, match="has no gates"):
            undo(model)
    convert_relus_(model, x)
    with pytest.raises(ValueError, match="revert_gates_"):
        convert_relus_(model, x)


def test_other_resolution_and_other_argument_later():
    model = nn.Sequential(Optional())
    convert_relus_(model, torch.randn(2, 3, 4, 4))
    assert model(torch.randn(5, 3, 4, 4)).shape == (5, 3, 4, 4)
    with pytest.raises(ValueError, match=r"\[N, 3, 4, 4\].*\[2, 3, 5, 5\]"):
        model(torch.randn(2, 3, 5, 5))
    with pytest.raises(ValueError, match="power=0.*power=1"):
        model[0](torch.randn(2, 3, 4, 4), power=0)
    with pytest.raises(ValueError, match="skip="):
        model[0](torch.randn(2, 3, 4, 4), torch.ones(1))


def test_another_number_of_tensors_later():
    model = Branching()
    convert_relus_(model, torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"len\(xs\)=3.*len\(xs\)=2"):
        model.fuse([torch.randn(2, 3, 4, 4)] * 3)


def test_an_overriding_subclass_is_not_relu():
    class Shifted(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) - 1

    with pytest.raises(ValueError, match="1 of 1 sites are not ReLU.*Shifted"):
        convert_relus_(nn.Sequential(nn.Conv2d(3, 3, 1), Shifted()), torch.randn(1, 3, 4, 4))


def test_gates_follow_type_and_mode_and_freeze():
    model = Functional().double().eval()
    convert_relus_(model, torch.randn(1, 3, 8, 8, dtype=torch.float64), GateConfig(degree=1))
    gates = [gate for _, gate in iter_gates(model)]
    assert {gate.score.dtype for gate in gates} == {torch.float64}
    assert not any(gate.training for gate in gates)
    assert freeze_gates_(model) is model
    assert all(gate.frozen for gate in gates)
    assert [gate.coefficients.shape for gate in gates] == [(4, 2), (4, 2), (6, 2)]


def test_several_inputs():
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return F.relu(x + y), y

    model = Two()
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
    convert_relus_(model, (x, y))
    assert torch.equal(model(x, y)[0], F.relu(x + y))


def test_pickling_traced_forwards_is_refused_and_swapped_gates_survive_it():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(convert_relus_(Functional(), x).model)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(convert_relus_(fx.symbolic_trace(Functional().eval()), x).model)
    model = convert_relus_(reused_in_sequential().eval(), x).model
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(x), model(x))
    assert isinstance(revert_gates_(loaded)[1], nn.ReLU)


def test_report_is_a_table():
    assert str(convert_relus_(Functional(), torch.randn(1, 3, 8, 8))) == "\n".join([
        "site    kind     shape  per image  converted",
        "relu    ReLU     4x8x8        256  yes",
        "relu_1  ReLU     4x8x8        256  yes",
        "relu_2  ReLU         6          6  yes",
        "total   3 sites               518  518"])
