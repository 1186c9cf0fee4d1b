"""What conversion refuses, and that neither it nor its probes leave a trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convert_nets import (
    RELU_MODELS,
    generators,
    structure,
)
from torch import Tensor, nn

from autorep.convert.sites import find_sites
from autorep.convert.swap import convert_relus_, revert_gates_
from autorep.gates.gated_relu import iter_gates


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
        assert not added or owned and all("_tensor_constant" in name for name in added)
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
