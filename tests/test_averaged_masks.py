"""Averages of converted models: masks are copied, and those that were averaged are noticed."""

import pytest
import torch
from test_convert_habits import IMAGES, Net, calls_act
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autorep.config import GateConfig
from autorep.convert.swap import convert_relus_
from autorep.search.masks import project_to_budget_
from autorep.search.relu_count import count_relus


def test_an_average_of_models_has_the_masks_of_the_last_one():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    convert_relus_(net, IMAGES, GateConfig())
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for budget in (500, 100):
        average.update_parameters(net)
        project_to_budget_(net, budget)
        with torch.no_grad():
            net[0].weight += 1
    average.update_parameters(net)
    assert torch.equal(average.module[1].mask, net[1].mask) and count_relus(average.module).kept == 100
    assert not torch.equal(average.module[0].weight, net[0].weight)


def ema_of_masks(net, **options):
    """What averages `net` with masks of 784 ReLUs, then of 100."""
    average = AveragedModel(net, **options)
    average.update_parameters(net)
    project_to_budget_(net, 100)
    average.update_parameters(net)
    return average.module


def half_way(net):
    """The mean of two state dicts (a model soup)."""
    first = {name: value.clone() for name, value in net.state_dict().items()}
    project_to_budget_(net, 100)
    net.load_state_dict({name: (value + first[name]) / 2 for name, value in net.state_dict().items()})
    return net


def of_timm(net):
    average = pytest.importorskip("timm.utils").ModelEmaV2(net, 0.9)
    project_to_budget_(net, 100)
    average.update(net)
    return average.module


@pytest.mark.parametrize("average", [
    lambda net: ema_of_masks(net, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    lambda net: ema_of_masks(net, use_buffers=True, avg_fn=lambda mine, other, num: 0.9 * mine + 0.1 * other),
    half_way, of_timm,
], ids=["EMA", "function", "soup", "timm"])
@pytest.mark.parametrize("use", [nn.Module.eval, count_relus, nn.Module.state_dict,
                                 lambda net: project_to_budget_(net, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_that_were_averaged_are_refused(average, use, dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    convert_relus_(net, IMAGES)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # what a whole number times a fraction is computed in
    try:
        with pytest.raises(RuntimeError, match=r"masks of this model are averages.*use_buffers=False"):
            use(average(net))
    finally:
        torch.set_default_dtype(before)


def test_a_state_of_an_older_version_loads():
    net = Net(calls_act).eval()
    convert_relus_(net, IMAGES)
    project_to_budget_(net, 100)
    old = {name: value for name, value in net.state_dict().items() if name != "act.unaveraged"}
    other = Net(calls_act)
    convert_relus_(other, IMAGES)
    other.load_state_dict(old)
    assert torch.equal(other.act.mask, net.act.mask) and count_relus(other).kept == 100
    del old["act.mask"]
    with pytest.raises(RuntimeError, match="act.mask"):
        other.load_state_dict(old)
