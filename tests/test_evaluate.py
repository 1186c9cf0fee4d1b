"""Accuracy by hand, and a model that is left as it was."""

import pytest
import torch
from torch import nn

from autorep.data.loader import make_loaders
from autorep.evaluate import evaluate


def digits(batch_size=100):
    return make_loaders("digits", None, batch_size, device="cpu", seed=0)


def test_accuracy_equals_a_plain_computation_over_all_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loader = digits(batch_size=77).test  # the last batch is a partial one
    images, labels = (torch.cat(parts) for parts in zip(*loader.batches(0), strict=True))
    with torch.no_grad():
        logits = model(images)
    accuracy = evaluate(model, loader)
    assert accuracy.num_images == len(labels) == 450
    assert accuracy.top1 == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert accuracy.top5 == pytest.approx(100 * (ranks < 5).double().mean().item())
    assert accuracy.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(108, 10))
    model[1].eval()  # a frozen batch norm in a training network
    before = {k: v.clone() for k, v in model.state_dict().items()}
    evaluate(model, digits().validation)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
