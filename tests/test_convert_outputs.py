"""Whatever a model returns, its conversion is verified on it or refused."""

import collections
import io
import logging
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_convert_habits import IMAGES
from torch import Tensor, nn

from autorep.convert.swap import convert_relus_
from autorep.gates.gated_relu import iter_gates


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


class Private:
    __slots__ = ("__logits",)

    def __init__(self, logits):
        self.__logits = logits

    def read(self):
        return self.__logits


class Rows(list):
    pass


def beside(wrap):
    """What also holds a tensor that does not change, so that something is found in any case."""
    return lambda y: {"constant": torch.ones(2), "logits": wrap(y)}


@pytest.mark.parametrize(("wrap", "unwrap"), [
    (Rows, lambda out: out[0]), (lambda y: Private(y[None]), lambda out: out.read()),
    (lambda y: (lambda: y), lambda out: out()), (lambda y: partial(torch.add, y), lambda out: out(0)),
    (lambda y: Private(y).read, lambda out: out()), (lambda y: {y}, lambda out: next(iter(out))),
    (lambda y: y.numpy(), torch.from_numpy), (lambda y: y.tolist(), torch.tensor),
    (lambda y: SimpleNamespace(log=logging.getLogger("a"), file=io.StringIO(), y=y), lambda out: out.y),
    (lambda y: y.max(1), lambda out: out.values), (lambda y: y.to_sparse(), lambda out: out.to_dense()),
], ids=["list", "private slot", "closure", "partial", "method", "set", "numpy", "floats", "logger", "named", "sparse"])
def test_outputs_beside_others_are_verified_too(wrap, unwrap):
    torch.manual_seed(0)
    net = Wrapped(beside(wrap)).eval()
    with torch.no_grad():
        before = unwrap(net(IMAGES)["logits"])
        convert_relus_(net, IMAGES)
        assert torch.equal(unwrap(net(IMAGES)["logits"]), before)


def test_an_iterator_is_refused():
    with pytest.raises(ValueError, match=r"returns an iterator \(generator\).*return a list"):
        convert_relus_(Wrapped(beside(lambda y: (row for row in y))), IMAGES)


class Standardised(Wrapped):
    def forward(self, x):
        return super().forward((x - x.mean()) / x.std().where(x.max() > 1, torch.tensor(0.0)))


def test_an_example_on_which_nothing_can_be_compared_is_refused():
    net = Standardised(lambda y: y).eval()
    with pytest.raises(ValueError, match="no output on the example is a finite number.*real images"):
        convert_relus_(net, 0 * IMAGES)
    assert not list(iter_gates(net))
    with torch.no_grad():
        before = net(IMAGES)
        convert_relus_(net, IMAGES)
        assert torch.equal(net(IMAGES), before)


def test_outputs_that_differ_between_runs_are_left_out_of_the_comparison():
    noise = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="differ in 1 of its 1 outputs.*could not be verified"):
        convert_relus_(Wrapped(lambda y: y + noise.random()), IMAGES)
    with pytest.warns(UserWarning, match="differ in 1 of its 2 outputs"):  # a constant beside it shows nothing
        convert_relus_(Wrapped(lambda y: (y + noise.random(), torch.ones(1))), IMAGES)
    torch.manual_seed(0)
    net = Wrapped(lambda y: (noise.random(), y)).eval()
    with torch.no_grad():
        before = net(IMAGES)[1]
        convert_relus_(net, IMAGES)
        assert torch.equal(net(IMAGES)[1], before)


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
