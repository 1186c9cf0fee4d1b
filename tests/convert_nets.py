"""Networks of every kind that conversion meets, and comparisons of their runs."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from autorep.config import GateConfig
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


class Fusing(nn.Module):
    """Branches in a list, which is written to and counted, with one activation for all of them (as in HRNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches, self.relu = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)]), nn.ReLU()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        for i, branch in enumerate(self.branches):
            xs[i] = branch(xs[i])
        return [self.relu(sum(xs) / len(xs)), self.relu(xs[0])]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = Fusing()

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.fuse([x, x + 1]))


class PaddedShortcut(nn.Module):
    """A shortcut whose new channels are zeros that torch.zeros makes for the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = x[:, :, ::2, ::2]
        zeros = torch.zeros(x.size(0), 2, small.size(2), small.size(3), dtype=x.dtype, device=x.device)
        return F.relu(self.conv(x) + torch.cat([small, zeros], 1))


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
    "list of tensors": (Branching, 4, {"fuse.relu_1", "fuse.relu_2"}, 2),
    "torch.zeros": (PaddedShortcut, 4, {"relu"}, 1),
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
    gate_state = {f"{name}.{part}" for name, _ in iter_gates(model) for part in
                  ("score", "coefficients", "mask", "unaveraged")}
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
