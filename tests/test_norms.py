"""Batch-norm statistics at the end of a search: a batch that overshoots leaves no trace in them."""

import pytest
import torch
from torch import nn

from autorep.training.norms import reestimate_norms_


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return model.train()


def test_one_batch_gives_its_own_statistics():
    model, images = network(), torch.randn(8, 2, 9, 9)
    reestimate_norms_(model, [images])
    with torch.no_grad():
        inner = model[0](images)
    torch.testing.assert_close(model[1].running_mean, inner.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, inner.var((0, 2, 3)))


def test_batches_that_overshoot_change_nothing_that_a_running_average_would_show():
    calm = [torch.randn(64, 2, 9, 9, generator=torch.Generator().manual_seed(i)) for i in range(9)]
    wild = [1e4 * calm[0], 1e6 * calm[1], torch.full_like(calm[0], torch.inf)]
    steady, disturbed, averaged = network(), network(), network()
    reestimate_norms_(steady, calm)
    reestimate_norms_(disturbed, [*calm, *wild])
    for images in [*calm, *wild[:2]]:
        averaged(images)
    for layer in (1, 4):
        torch.testing.assert_close(disturbed[layer].running_var, steady[layer].running_var, rtol=0.1, atol=0)
        torch.testing.assert_close(disturbed[layer].running_mean, steady[layer].running_mean, rtol=0, atol=0.05)
    assert averaged[1].running_var.min() > 1e6 * steady[1].running_var.max()


def test_modes_momentum_and_frozen_norms_stay_as_they_are():
    model = network()
    model[1].eval()
    model[4].momentum = 0.03
    before = {name: value.clone() for name, value in model[1].state_dict().items()}
    reestimate_norms_(model, [torch.randn(8, 2, 9, 9)])
    assert all(torch.equal(value, before[name]) for name, value in model[1].state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True] and model[4].momentum == 0.03


def test_no_batches_and_a_failing_one_leave_the_statistics_usable():
    model = network()
    before = model[1].running_var.clone()
    reestimate_norms_(model, [])
    assert torch.equal(model[1].running_var, before)
    with pytest.raises(RuntimeError):
        reestimate_norms_(model, [torch.randn(8, 5, 9, 9)])
    assert model[1].momentum == 0.1 and model[1].training
