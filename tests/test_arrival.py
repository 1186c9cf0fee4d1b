"""A search arrives: in any number of steps it holds its budget before its last fifth, whatever the penalty."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autorep.config import BudgetConfig, GateConfig, OptimConfig
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.search.budget import budget_at, budget_penalty, relu_layers_at
from autorep.search.masks import project_to_budget_, update_masks_
from autorep.search.relu_count import count_relus
from autorep.training.optim import build_optimizer, set_learning_rates_

SIZES = {"narrow": (3, 6, 6), "wide": (8, 10, 10)}


def network(size):
    """Two layers of gates that learn to tell the brighter half of an image."""
    torch.manual_seed(0)
    channels, height, width = SIZES[size]
    gates = [GatedReLU((channels, height, width), GateConfig()) for _ in range(2)]
    for gate in gates:
        nn.init.uniform_(gate.score)
    return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), gates[0], nn.Conv2d(channels, channels, 3, padding=1),
                         gates[1], nn.Flatten(), nn.Linear(channels * height * width, 2))


def search(model, num_steps, budget, **optim):
    """The ReLUs kept, and the layers that hold one, after every step of a search."""
    total, (height, width) = count_relus(model).total, model[1].mask.shape[1:]
    config = OptimConfig.for_search(**optim)
    optimizer, found = build_optimizer(model, config), []
    for step in range(num_steps):
        images = torch.randn(16, 1, height, width)
        labels = (images[..., : width // 2].mean((1, 2, 3)) > images[..., width // 2 :].mean((1, 2, 3))).long()
        set_learning_rates_(optimizer, step, num_steps, num_steps // 5, num_steps, config)
        allowed = budget_at(step, num_steps, total, budget)
        loss = F.cross_entropy(model(images), labels) + budget_penalty(model, allowed, budget.penalty_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_masks_(model, allowed, relu_layers_at(step, num_steps, 2, budget))
        found.append((count_relus(model).kept, count_relus(model).layers_with_relu))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("num_steps", "share"), [(200, 0.0), (200, 0.01), (200, 0.5), (200, 1.0), (701, 0.1)])
@pytest.mark.parametrize("penalty", [0.0, 140.0, 1000.0])
def test_the_budget_is_held_before_the_last_fifth(size, num_steps, share, penalty):
    model = network(size)
    total = count_relus(model).total
    budget = BudgetConfig(relu_budget=round(share * total), penalty_weight=penalty)
    kept = [number for number, _ in search(model, num_steps, budget)]
    assert all(number <= budget.relu_budget for number in kept[4 * num_steps // 5:])
    assert all(number <= budget_at(step, num_steps, total, budget) for step, number in enumerate(kept))
    assert kept[-1] >= 0.9 * budget.relu_budget  # and nearly all of it is used
    assert project_to_budget_(model, budget.relu_budget) == 0


@pytest.mark.parametrize("score_lr", [1e-5, 0.5])
def test_whatever_the_learning_rate_of_the_scores_and_with_few_layers(score_lr):
    model = network("wide")
    budget = BudgetConfig(relu_budget=300, relu_layers=1)
    found = search(model, 200, budget, score_lr=score_lr)
    assert found[-40:] == [(number, 1) for number, _ in found[-40:]] and 270 <= found[-1][0] <= 300
    assert project_to_budget_(model, 300, 1) == 0


def test_scores_fall_together_and_stay_in_order():
    model = network("narrow")
    before = torch.cat([gate.score.detach().flatten() for _, gate in iter_gates(model)])
    total = len(before)
    update_masks_(model, total / 4)
    after = torch.cat([gate.score.detach().flatten() for _, gate in iter_gates(model)])
    mask = torch.cat([gate.mask.flatten() for _, gate in iter_gates(model)])
    assert mask.sum() == total // 4 and before[mask].min() > before[~mask].max()
    torch.testing.assert_close(before - after, (before - after)[:1].expand(total))
    assert update_masks_(model, total / 4) == 0  # the hysteresis neither drops another one nor brings one back
    assert update_masks_(model, total / 2) == 0


def test_without_hold_the_penalty_alone_moves_the_masks():
    model = network("narrow")
    assert update_masks_(model, 10, hold=False) == 0 and update_masks_(model, 10) > 0
