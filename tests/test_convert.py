"""Conversion: every way to compute an activation, bit for bit, forward and backward, and back again."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from autorep.config import GateConfig
from autorep.convert.sites import find_sites
from autorep.convert.swap import convert_relus_, freeze_gates_, revert_gates_
from autorep.gates.gated_relu import iter_gates
from autorep.models.registry import build_model

RELU = GateConfig(kept="relu")


class Functional(nn.Module):
    """F.relu in three spellings, on images and on features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc1 = nn.Linear(4, 6)
        self.fc2 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = torch.relu(self.conv2(x) + x)
        return self.fc2(self.fc1(x.mean((2, 3))).relu())


class Branch(nn.Module):
    """A functional activation two levels down, called with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(input=self._convolve(x), inplace=True)

    def _convolve(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv(x)) - 0.1


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Branch(), Branch()])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": sum(branch(x) for branch in self.branches), "x": x}


class WeightShared(nn.Module):
    """One block run twice: its functional activation, its own module and its Sequential all run twice."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.body(x) - self.act(x)) + x

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Aliased(nn.Module):
    """Adds an activation to its input, which the inplace activation has overwritten by then."""

    def __init__(self, act: nn.Module | None, positive: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.act = act
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).exp() if self.positive else self.conv(x) * 1
        y = F.relu(x, inplace=True) if self.act is None else self.act(x)
        return x + 2 * y


class Dropping(nn.Module):
    """Dropout that follows `self.training`, and a constant tensor that differs between the modes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 8)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.fc(x.flatten(1)) + torch.tensor(0.25 if self.training else 0.5))
        x = F.dropout(x, 0.5, training=self.training)
        return self.relu(x - torch.tensor([0.125]))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.fine = Functional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.fine(F.relu(x) if x.sum() > 0 else x)


class Optional(nn.Module):
    """Python decides on an argument that is no tensor."""

    def forward(self, x: Tensor, skip: Tensor | None = None, power: int = 1) -> Tensor:
        x = F.relu(x) if power > 0 else x
        return x if skip is None else x + skip


def reused_in_sequential() -> nn.Module:
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), relu)


def shared_by_parents() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), relu), nn.Sequential(nn.Conv2d(4, 3, 1), relu), relu)


def torchvision_net(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(
        name, num_classes=4, **({"init_weights": False} if name == "googlenet" else {}))


# Name -> (model, side of the images, names of some sites, number of sites).
RELU_MODELS = {
    "resnet8": (lambda: build_model("resnet8"), 8, {"relu1", "stages.0.0.relu2"}, 7),
    "resnet18": (torchvision_net("resnet18"), 32, {"relu", "layer1.0.relu_1", "layer1.0.relu_2"}, 17),
    "densenet121": (torchvision_net("densenet121"), 32, {"relu", "features.denseblock1.denselayer1.relu1"}, 121),
    "googlenet": (torchvision_net("googlenet"), 32, {"conv1.relu", "inception3a.branch2.0.relu"}, 57),
    "functional": (Functional, 8, {"relu", "relu_1", "relu_2"}, 3),
    "nested": (Nested, 4, {"branches.0.relu", "branches.0.relu_1", "branches.1.relu"}, 4),
    "reused in Sequential": (reused_in_sequential, 4, {"1", "4"}, 2),
    "shared by parents": (shared_by_parents, 4, {"0.1", "1.1", "2"}, 3),
    "weight-shared": (WeightShared, 4, {"block_body_1", "block_act_1", "block_relu", "block_relu_1"}, 6),
    "aliased module": (lambda: Aliased(nn.ReLU(inplace=True)), 4, {"act"}, 1),
    "aliased function": (lambda: Aliased(None), 4, {"relu"}, 1),
    "dropout": (Dropping, 2, {"relu_1", "relu_2"}, 2),
    "optional argument": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Optional()), 4, {"1.relu"}, 1),
}


def run(model: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, list[Tensor | None], dict[str, Tensor]]:
    """Output, gradients (of the input, then of the parameters) and buffers after one step."""
    model.train(training).zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    output = model(x)
    output = output["sum"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    parameters = {n: p for n, p in model.named_parameters() if not n.endswith((".score", ".coefficients"))}
    gate_state = {f"{name}.{part}" for name, _ in iter_gates(model) for part in ("score", "coefficients", "mask")}
    grads = [p.grad for n, p in parameters.items() if n not in gate_state]
    return output.detach(), [x.grad, *grads], {n: b for n, b in model.named_buffers() if n not in gate_state}


def equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or torch.equal(a, b)


def assert_same_run(model: nn.Module, original: nn.Module, x: Tensor, training: bool) -> None:
    output, grads, buffers = run(model, x, training)
    expected, expected_grads, expected_buffers = run(original, x, training)
    assert torch.equal(output, expected)
    assert len(grads) == len(expected_grads)
    assert all(map(equal, grads, expected_grads))
    assert buffers.keys() == expected_buffers.keys()
    assert all(torch.equal(buffers[n], expected_buffers[n]) for n in buffers)


def structure(model: nn.Module) -> dict[tuple, dict]:
    """All that a refusal or a revert must leave: module objects by path, the attributes of each, what these hold."""
    return {(path, id(module)): {name: (id(value), held(value)) for name, value in vars(module).items()}
            for path, module in model.named_modules(remove_duplicate=False)}


def held(value: object) -> list | None:
    """Which objects a list, set or dict holds, in order."""
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    return [id(item) for item in value] if isinstance(value, (list, set)) else None


def generators() -> tuple:
    """The states of all generators that a forward on the CPU may draw from."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), rest


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
    with pytest.raises(ValueError, match=r"^1 \(DataDependent\).*control flow.*distinct nn.ReLU.*filter_fn"):
        convert_relus_(model, x)
    assert structure(model) == before
    report = convert_relus_(model, x, filter_fn=lambda module, name: name != "1.relu")
    assert {site.name for site in report.sites if site.converted} == {
        "1.inner.1", "1.fine.relu", "1.fine.relu_1", "1.fine.relu_2"}
    assert "no: left out by filter_fn" in str(report)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(x)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + torch.randn(1)


class WithoutGradients(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(x)
        return x * y


class MoreInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.relu(x) - 1) if self.training else F.relu(x)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.layers = [self.relu]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


@pytest.mark.parametrize(("model", "message"), [
    (Counting(), "sets the attribute 'calls'"), (Noisy(), "random numbers"), (WithoutGradients(), "gradients"),
    (MoreInTraining(), "training mode"), (Hidden(), "does not run relu by that name"),
    (torch.jit.script(nn.Sequential(nn.ReLU())), "torch.jit")], ids=lambda p: type(p).__name__)
def test_what_would_be_lost_is_refused(model, message):
    x = torch.randn(2, 3, 4, 4)
    before = structure(model), generators()
    with pytest.raises(ValueError, match=message):
        convert_relus_(model, x)
    assert (structure(model), generators()) == before


def test_random_evaluation_is_not_taken_for_a_difference():
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(F.dropout(x, 0.5, training=True))

    model = Random()
    convert_relus_(model, torch.randn(2, 3, 4, 4))
    assert isinstance(dict(iter_gates(model))["relu"].mask, Tensor)


def test_scanning_leaves_state_and_generator_alone():
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.register_buffer("runs", torch.zeros(()))
            self.last = None

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            self.last = x
            return self.relu(F.dropout(x, 0.5, training=True))

    model, x = Stateful(), torch.randn(2, 3)
    generator, example = torch.get_rng_state(), x.clone()
    (site,) = find_sites(model, x)
    assert (site.name, site.kind, site.shape, site.num) == ("relu", "ReLU", (3,), 3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, example)
    assert model.training
    assert model.runs == 0
    assert model.last is None
    convert_relus_(model, x)
    assert model.runs == 0
    assert model.last is None


class Writing(nn.Module):
    """Writes wherever a forward can, and draws from every generator."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.layers = [self.relu] if hidden else []
        self.norm = nn.BatchNorm2d(3).eval()
        self.runs, self.last, self.shapes, self.names, self.outputs = 0, None, [], set(), {}
        self.total = torch.zeros(())
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.runs, self.last = self.runs + 1, x
        self.shapes.append(x.shape)
        self.names.add(random.random() + np.random.rand())  # noqa: NPY002
        self.total += x.sum()
        self.mean += x.mean((0, 2, 3)) + torch.rand(3)
        self.outputs[self.runs] = y = (self.layers or [self.relu])[0](self.norm(x))
        self.new = y
        return y


@pytest.mark.parametrize("hidden", [False, True])
def test_probes_leave_no_trace(hidden):
    model, x = nn.Sequential(Writing(hidden), nn.Dropout()), torch.randn(2, 3, 4, 4)
    handle = model[0].norm.register_forward_hook(lambda module, args, output: output + 1)
    relu, tensors = model[0].relu, [model[0].total, *model.buffers()]
    before, values = structure(model), [tensor.clone() for tensor in tensors]
    generator = generators()
    if hidden:
        with pytest.raises(ValueError, match="does not run 0.relu by that name"):
            convert_relus_(model, x)
        assert generators() == generator
    else:
        convert_relus_(model, x)
        assert generators()[1:] == generator[1:]
        revert_gates_(model)
    assert structure(model) == before and model[0].relu is relu and handle.id in model[0].norm._forward_hooks
    assert all(torch.equal(tensor, value) for tensor, value in zip(tensors, values, strict=True))


@pytest.mark.parametrize("name", ["resnet8", "functional", "nested", "weight-shared", "dropout", "shared by parents"])
def test_a_conversion_adds_gates_and_traced_forwards_and_nothing_else(name):
    build, side, _, _ = RELU_MODELS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, 3, side, side)
    model.get_submodule(next(name for name, _ in model.named_children())).eval()
    before, generator = structure(model), torch.get_rng_state()
    report = convert_relus_(model, x)
    state = torch.get_rng_state()
    torch.set_rng_state(generator)
    for site in report.sites:  # a conversion draws the scores, and nothing else
        torch.rand(site.shape)
    assert torch.equal(torch.get_rng_state(), state)
    gates = dict(iter_gates(model))
    for (path, module), attributes in structure(model).items():
        if path in gates:
            continue
        owned = {gate.rpartition(".")[2] for gate in gates if gate.rpartition(".")[0] == path}
        expected = before[path, module]
        added = {name for name in attributes if name not in expected}
        assert not added or owned and {name for name in added if "_tensor_constant" not in name} == {"forward"}
        for attribute, found in attributes.items():
            if attribute == "_modules":
                kept = [[child for child in children if child[0] not in owned] for _, children in
                        (found, expected[attribute])]
                assert kept[0] == kept[1]
            elif attribute not in added:
                assert found == expected[attribute], (path, attribute)


def test_counting_between_forward_and_backward_does_not_disturb_the_gradients():
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4)
    loss = model(x).sum()
    find_sites(model, x)
    loss.backward()
    assert model[0].weight.grad is not None


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
