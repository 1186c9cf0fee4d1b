"""Schedules as tables, parameter groups, Lookahead and averages by hand."""

import math

import pytest
import torch
from torch import nn

from autorep.config import GateConfig, OptimConfig
from autorep.gates.gated_relu import GatedReLU
from autorep.training.averaging import Lookahead, WeightAverage
from autorep.training.optim import build_optimizer, lr_factor, parameter_groups, set_learning_rates_


def gated_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), GatedReLU((2, 4, 4), GateConfig()), nn.Flatten(), nn.Linear(32, 3))


def test_groups_hold_every_trainable_parameter_once_and_decay_weights_only():
    net = gated_net()
    groups = {g["name"]: g for g in parameter_groups(net, OptimConfig(lr=0.1, score_lr=0.5))}
    counts = {name: sum(p.numel() for p in g["params"]) for name, g in groups.items()}
    assert counts == {"weights": 18 + 2 + 96 + 3, "coefficients": 6, "scores": 32}
    assert {name: g["weight_decay"] for name, g in groups.items()} == {"weights": 5e-4, "coefficients": 0, "scores": 0}
    assert {name: g["base_lr"] for name, g in groups.items()} == pytest.approx(
        {"weights": 0.1, "coefficients": 0.1, "scores": 0.5})
    net[1].freeze_()
    assert {g["name"] for g in parameter_groups(net, OptimConfig())} == {"weights", "coefficients"}


@pytest.mark.parametrize(("schedule", "step", "expected"), [
    ("cosine", 0, 1.0), ("cosine", 50, 0.505), ("cosine", 100, 0.01), ("cosine_finetune", 50, 0.505),
    ("linear", 0, 1.0), ("linear", 25, 0.7525), ("linear", 100, 0.01),
    ("cosine", 25, 0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2),
    ("cosine_rst", 0, 1.0), ("cosine_rst", 7, 0.505), ("cosine_rst", 14, 1.0), ("cosine_rst", 28, 0.505),
    ("cosine_rst", 42, 1.0), ("cosine_rst", 70, 0.505), ("cosine_rst", 98, 0.01),
])
def test_schedule_table(schedule, step, expected):
    num_steps = 98 if schedule == "cosine_rst" else 100
    assert lr_factor(step, num_steps, schedule, 0.01) == pytest.approx(expected, abs=1e-9)


def test_warm_up_is_linear_and_a_pure_function_of_the_step():
    config = OptimConfig(lr=0.4, lr_min=0.0)
    optimizer = build_optimizer(gated_net(), config)
    rates = {}
    for step in (0, 4, 9, 50, 4):  # out of order, and 4 again
        set_learning_rates_(optimizer, step, 100, 10, 25, config)
        rate = optimizer.param_groups[0]["lr"]
        assert rates.setdefault(step, rate) == rate
    cosine = {step: 0.4 * (1 + math.cos(math.pi * step / 100)) / 2 for step in rates}
    assert rates == pytest.approx({0: cosine[0] / 10, 4: cosine[4] / 2, 9: cosine[9], 50: cosine[50]})
    set_learning_rates_(optimizer, 0, 100, 10, 25, OptimConfig(lr=0.4, lr_min=0.0, schedule="cosine_finetune"))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_schedule_by_epochs_stands_still_within_one_and_still_warms_up():
    config = OptimConfig(lr=0.4, lr_min=0.0, lr_update="epoch")
    optimizer, rates = build_optimizer(gated_net(), config), []
    for step in (0, 9, 24, 25, 49, 50):
        set_learning_rates_(optimizer, step, 100, 10, 25, config)
        rates.append(optimizer.param_groups[0]["lr"])
    of_epochs = [0.4 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(3)]
    assert rates == pytest.approx([0.04, *of_epochs[:1] * 2, *of_epochs[1:2] * 2, of_epochs[2]])


def test_lookahead_by_hand_and_its_state():
    weight = nn.Parameter(torch.tensor([0.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    lookahead = Lookahead(optimizer, every=2, alpha=0.5)
    seen = []
    for _ in range(4):
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
        lookahead.step_()
        seen.append(weight.item())
    assert seen == [1.0, 1.0, 2.0, 2.0]  # at every second step half way back to the slow weight
    other = Lookahead(optimizer, every=2, alpha=0.5)
    other.load_state_dict(lookahead.state_dict())
    assert other.num_steps == 4 and torch.equal(other.slow[0], lookahead.slow[0])
    with torch.no_grad():
        weight.fill_(9.0)
    lookahead.reset_([weight])
    assert lookahead.slow[0].item() == 9.0


def test_the_average_warms_up_and_leaves_whole_numbers_and_the_model_alone():
    net = nn.BatchNorm1d(1)
    average = WeightAverage(net, 0.5)
    expected = 1.0
    for t, value in enumerate((3.0, -2.0, 8.0, 5.0, 1.0, 4.0, 4.0, 7.0, 2.0, 6.0)):
        with torch.no_grad():
            net.weight.fill_(value)
            net.running_var.fill_(value)
            net.num_batches_tracked.fill_(t)
        average.step_()
        decay = min(0.5, (1 + t) / (10 + t))  # 0.1 at first, 0.5 from the ninth on
        expected = decay * expected + (1 - decay) * value
    assert net.weight.item() == 6.0
    with average.applied():
        assert net.weight.item() == net.running_var.item() == pytest.approx(expected, rel=1e-6)
        assert net.num_batches_tracked == 9 and net.bias.item() == 0.0
    assert net.weight.item() == net.running_var.item() == 6.0


def test_an_average_goes_on_from_its_state_as_if_nothing_had_happened():
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    averages = [WeightAverage(net, 0.9)]
    averages[0].step_()
    nn.init.ones_(net.weight)
    averages[0].step_()
    with averages[0].applied():
        other.load_state_dict(net.state_dict())
        averages.append(WeightAverage(other, 0.9))
        averages[1].load_state_dict(averages[0].state_dict())
    for model, average in zip((net, other), averages, strict=True):
        nn.init.constant_(model.bias, 2.0)
        average.step_()
        average.swap_()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
