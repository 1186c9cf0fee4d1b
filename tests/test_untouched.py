"""Passes that only look at a model leave every module in its own mode, a frozen batch norm too."""

import pytest
import torch
from torch import nn

from autorep.config import DapaConfig, GateConfig
from autorep.dapa.calibrate import calibrate_
from autorep.gates.gated_relu import GatedReLU
from autorep.models.untouched import untouched
from autorep.mpc.export.trace import trace_model
from autorep.search.saliency import saliency
from autorep.training.accuracy import evaluate


class Batches:
    """Two batches; the second one may have a channel too many, on which a pass fails."""

    device = torch.device("cpu")

    def __init__(self, fails: bool) -> None:
        self.second = torch.randn(4, 2 if fails else 1, 6, 6)

    def batches(self, epoch: int):
        return [(images, torch.arange(4)) for images in (torch.randn(4, 1, 6, 6), self.second)]


PASSES = {
    "calibrate_": lambda model, data: calibrate_(model, [images for images, _ in data.batches(0)], DapaConfig()),
    "saliency": lambda model, data: saliency(model, data.batches(0)),
    "evaluate": evaluate,
    "trace_model": lambda model, data: trace_model(model, data.batches(0)[-1][0]),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", PASSES)
def test_every_module_keeps_its_mode_and_its_buffers(name, fails):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), GatedReLU((3, 4, 4), GateConfig(replacement="dapa")),
                          nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4)).train()
    model[1].eval()
    model[4].training = False
    before = {path: module.training for path, module in model.named_modules()}
    buffers = {path: buffer.clone() for path, buffer in model.named_buffers()}
    if fails:
        with pytest.raises((RuntimeError, ValueError)):
            PASSES[name](model, Batches(fails))
    else:
        PASSES[name](model, Batches(fails))
    assert {path: module.training for path, module in model.named_modules()} == before
    assert all(torch.equal(buffer, buffers[path]) for path, buffer in model.named_buffers())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_statistics_that_a_function_writes_come_back():
    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("var", torch.ones(3))

        def forward(self, x):
            return nn.functional.batch_norm(x, self.mean, self.var, training=True)

    model = Normalising()
    with untouched(model), torch.no_grad():
        model(torch.randn(8, 3, 4, 4) + 5)
    assert torch.equal(model.mean, torch.zeros(3)) and torch.equal(model.var, torch.ones(3))
