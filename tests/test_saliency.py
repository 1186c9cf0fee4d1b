"""Saliency against one image at a time in float64, and the scores that it gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autorep.config import GateConfig
from autorep.gates.gated_relu import GatedReLU
from autorep.gates.polynomial import evaluate
from autorep.search.saliency import init_scores_, saliency


def net(inplace=False):
    """Two gates of random quadratics, one of them partly dropped, and batch norm with statistics of its own."""
    torch.manual_seed(0)
    config = GateConfig(replacement="dapa", score_init="saliency")
    gates = [GatedReLU((3, 4, 4), config, inplace=inplace, dtype=torch.float64),
             GatedReLU((2, 2, 2), config, inplace=inplace, dtype=torch.float64)]
    for gate in gates:
        nn.init.normal_(gate.coefficients, std=0.5)
    gates[0].mask[1] = False
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), gates[0], nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2),
                          gates[1], nn.Flatten(), nn.Linear(8, 4)).double()
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


def batches():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 1, 6, 6, dtype=torch.float64, generator=generator)
    return list(zip(images.split([5, 7]), torch.arange(12).remainder(4).split([5, 7]), strict=True))


def one_image_at_a_time(model, gate):
    """mean((g delta)^2) / 2, by cutting the network behind the gate."""
    position = list(model).index(gate)
    changes = []
    for images, labels in batches():
        for image, label in zip(images, labels, strict=True):
            x = model[:position](image[None])
            y = gate(x).detach().requires_grad_()
            F.cross_entropy(model[position + 1:](y), label[None]).backward()
            changes.append(y.grad[0] * (evaluate(x, gate.coefficients) - x.relu())[0])
    return torch.stack(changes).detach().square().mean(0) / 2


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("images_at_once", [32, 3])
def test_it_is_the_mean_over_images_taken_one_at_a_time(inplace, images_at_once, monkeypatch):
    monkeypatch.setattr("autorep.search.saliency._IMAGES_AT_ONCE", images_at_once)
    plain = net().eval()
    expected = {str(i): one_image_at_a_time(plain, plain[i]) for i in (2, 5)}
    found = saliency(net(inplace), batches())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("factor", [1e200, float("nan")])
def test_an_image_that_overshoots_is_left_out(factor):
    (images, labels), other = batches()
    spoilt = images.clone()
    spoilt[2] *= factor
    others = torch.arange(len(images)) != 2
    found = saliency(net(), [(spoilt, labels), other])
    for name, value in saliency(net(), [(images[others], labels[others]), other]).items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="expected a finite loss with finite gradients on some images"):
        init_scores_(net(), [(images * factor, labels)])


def test_the_model_is_left_as_it_was():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saliency(model, batches())
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_scores_are_ranks_spread_evenly_from_low_to_high():
    model = net()
    gates = model[2], model[5]
    value = torch.cat([v.flatten() for v in saliency(model, batches()).values()])
    init_scores_(model, [(*batch, "what a teacher says") for batch in batches()])
    score = torch.cat([gate.score.detach().flatten() for gate in gates])
    assert torch.equal(score.argsort(), value.argsort())
    torch.testing.assert_close(score.sort().values, (torch.arange(56, dtype=torch.float64) + 0.5) / 56)
    assert all(gate.score.requires_grad for gate in gates)
