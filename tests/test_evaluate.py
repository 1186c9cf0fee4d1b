"""Accuracy by hand, private-inference costs as of a bundle, and a model that is left as it was."""

import json

import pytest
import torch
from conftest import baseline_config
from torch import nn

from autorep import GateConfig, build_model, convert_relus_, iter_gates
from autorep.data.loader import make_loaders
from autorep.evaluate import report_checkpoint
from autorep.mpc.bundle.files import load_graph
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.engines import parse_network
from autorep.mpc.export.to_bundle import export_model
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.runs import checkpoint
from autorep.runs.config_file import to_json
from autorep.search.price import TracedPrices
from autorep.training.accuracy import all_logits, evaluate


def digits(batch_size=100):
    return make_loaders("digits", None, batch_size, device="cpu", seed=0)


def test_accuracy_equals_a_plain_computation_over_all_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loader = digits(batch_size=77).test  # the last batch is a partial one
    batches = list(loader.batches(0))
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    with torch.no_grad():
        logits = model(images)
    accuracy = evaluate(model, loader)
    assert accuracy.num_images == len(labels) == 450
    assert accuracy.top1 == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert accuracy.top5 == pytest.approx(100 * (ranks < 5).double().mean().item())
    assert accuracy.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_images_whose_logits_are_not_finite_are_wrong_counted_and_said():
    class Overshooting(nn.Module):
        """Right on every image that it knows, infinite or NaN where the first pixel is dark."""

        def forward(self, x):
            logits = x.flatten(1)[:, :10] * 0 + torch.arange(10.0)
            lost = x[:, 0, 0, 2] < 0
            return torch.where(lost[:, None], torch.tensor([torch.nan] * 5 + [torch.inf] * 5), logits)

    loader = digits().test
    batches = list(loader.batches(0))
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    lost = images[:, 0, 0, 2] < 0
    accuracy = evaluate(Overshooting(), loader)
    assert 0 < lost.sum() < 450 and accuracy.num_lost == lost.sum()
    assert accuracy.top1 == pytest.approx(100 * ((labels == 9) & ~lost).double().mean().item())
    expected = nn.functional.cross_entropy(torch.arange(10.0).expand(450, 10)[~lost], labels[~lost])
    assert accuracy.loss == pytest.approx(expected.item(), rel=1e-5)
    assert f"({accuracy.num_lost:,} images have logits that are not finite)" in str(accuracy)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(108, 10))
    model[1].eval()  # a frozen batch norm in a training network
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, digits().validation)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("world_size", [1, 3])
def test_logits_of_all_ranks_add_up_to_those_of_every_image(world_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    ranks = [make_loaders("digits", None, 78, device="cpu", seed=0, rank=rank, world_size=world_size).calibration
             for rank in range(world_size)]
    images = torch.cat([batch.images for batch in digits().calibration.batches(0)])
    torch.testing.assert_close(sum(all_logits(model, loader) for loader in ranks), model(images).detach())


def gated_resnet():
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, in_channels=1, image_size=8)
    model = convert_relus_(model, torch.zeros(1, 1, 8, 8), GateConfig(degree=2)).model
    for _, gate in iter_gates(model):
        gate.mask.copy_(torch.rand(gate.mask.shape) < 0.1)
        gate.coefficients.data.fill_(0.25)
    return model.train()


def test_private_costs_are_those_of_the_exported_bundle_also_after_masks_moved(tmp_path):
    model, example = gated_resnet(), torch.randn(2, 1, 8, 8)
    traced = TracedPrices(model, example)
    first = traced.now()["trained"]
    next(iter_gates(model))[1].mask.fill_(False)
    costs = traced.now(("trained", "all_relu"))
    assert model.training
    export_model(model, example, torch.zeros(2, dtype=torch.long), tmp_path)
    assert costs["trained"] == estimate(load_graph(tmp_path), FixedPoint(), [parse_network(n) for n in ("lan", "wan")])
    bytes_of = [found["spu-semi2k"]["bytes"] for found in (costs["all_relu"], first, costs["trained"])]
    assert bytes_of == sorted(bytes_of, reverse=True) and len(set(bytes_of)) == 3


class Net(nn.Module):
    input_shape = (1, 8, 8)

    def __init__(self, activation):
        super().__init__()
        self.activation, self.fc = activation, nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.activation(x.flatten(1)))


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if len(x) else x


@pytest.mark.parametrize(("model", "reason"), [
    (Branching(nn.ReLU()), "this model cannot be traced by torch.fx: RuntimeError"),
    (Net(nn.SiLU()), "activation: SiLU cannot be exported"),
], ids=["not traceable", "no such operation"])
def test_a_net_that_cannot_be_exported_has_its_report_without_costs(model, reason, monkeypatch, capsys, tmp_path):
    payload = {"config": to_json(baseline_config(tmp_path)),
               "model_args": {"num_classes": 10, "in_channels": 1, "image_size": 8}}
    monkeypatch.setattr(checkpoint, "load", lambda path: payload)
    monkeypatch.setattr(checkpoint, "build_from", lambda payload, path: model)
    report_checkpoint("net", data_path=None, gpu="cpu", batch_size=100, precision="full")
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line.startswith(f"no private-inference prices: {reason}")
    report = json.loads(last)
    assert report["mpc"] is None and report["relu_kept"] == report["relu_total"] == 64
