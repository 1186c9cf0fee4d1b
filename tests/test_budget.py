"""Counting, schedules, the penalty and its gradient, the projection."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autorep.config import BudgetConfig, GateConfig
from autorep.convert.swap import convert_relus_, freeze_gates_, revert_gates_
from autorep.gates.gated_relu import GatedReLU, iter_gates
from autorep.models.registry import build_model
from autorep.search.budget import budget_at, budget_penalty, check_budget, relu_layers_at
from autorep.search.masks import project_to_budget_, update_masks_
from autorep.search.relu_count import count_relus


def two_gates(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(GatedReLU((2, 3), GateConfig(), dtype=dtype), GatedReLU((4,), GateConfig(), dtype=dtype))


def test_count_of_a_dense_model_equals_its_gates():
    model = build_model("resnet8", in_channels=1, image_size=8)
    dense = count_relus(model)
    gated = count_relus(convert_relus_(model, torch.zeros(1, 1, 8, 8)).model)
    assert (dense.kept, dense.total) == (gated.kept, gated.total) == (4608, 4608)
    assert dense.layers == gated.layers and "4,608 /      4,608" in str(dense)
    with pytest.raises(ValueError, match="counted on an example"):
        count_relus(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_activations_that_were_left_out_count_and_bind_the_budget():
    model = build_model("resnet8", in_channels=1, image_size=8)
    convert_relus_(model, torch.zeros(1, 1, 8, 8), filter_fn=lambda module, name: name.startswith("stages.0"))
    assert (count_relus(model).kept, count_relus(model).total) == (4608, 4608)
    project_to_budget_(model, 3000)
    assert count_relus(model).kept == 3000
    with pytest.raises(ValueError, match="left out 2560 activations"):
        project_to_budget_(model, 1000)
    assert count_relus(revert_gates_(model)).kept == 4608


def test_parts_that_were_converted_alone_count_what_each_left_out():
    def part():
        model = build_model("resnet8", in_channels=1, image_size=8)
        convert_relus_(model, torch.zeros(1, 1, 8, 8), filter_fn=lambda module, name: name.startswith("stages.0"))
        return model
    first = part()
    both = nn.ModuleDict({"a": first, "b": part(), "twin": copy.deepcopy(first)})
    count = count_relus(both)
    assert count.total == 3 * 4608 and {"a.relu1", "b.relu1", "twin.relu1"} < count.layers.keys()
    stripped = nn.Sequential(*first.children())  # other names
    assert count_relus(stripped).total == count_relus(first).total == 4608
    for _, gate in iter_gates(first):
        gate.origin = dataclasses.replace(gate.origin, site="")  # as in a pickle of an earlier version
    assert count_relus(first).total == 4608


def test_the_search_counts_activations_that_were_left_out():
    model = build_model("resnet8", in_channels=1, image_size=8)
    convert_relus_(model, torch.zeros(1, 1, 8, 8), filter_fn=lambda module, name: name.startswith("stages.0"))
    assert budget_penalty(model, 3000, 2.0).item() == pytest.approx(2 * (4608 - 3000) / 4608)
    update_masks_(model, 3000)
    assert count_relus(model).kept == 3000 and budget_penalty(model, 3000, 2.0) == 0
    update_masks_(model, 3000, relu_layers=6)  # five were left out
    assert count_relus(model).layers_with_relu == 6


def test_frozen_gates_do_not_move_and_count():
    model = four_gates([.9, .9, .9, .9], [.5, .5, .5, .5], [.1, .2, .3, .4])
    model[2].freeze_()
    update_masks_(model, 6)
    assert kept(model) == [2, 0, 4]
    freeze_gates_(model)
    assert update_masks_(model, 0) == 0 and kept(model) == [2, 0, 4]


def test_a_model_without_gates_is_refused():
    for change, *more in ((update_masks_, 1), (project_to_budget_, 1), (budget_penalty, 1, 1.0)):
        with pytest.raises(ValueError, match="has no gates; call convert_relus_"):
            change(nn.Linear(2, 2), *more)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "exponential"])
@pytest.mark.parametrize("final", [0, 50])
def test_budget_falls_from_all_to_the_final_one_and_never_below(schedule, final):
    config = BudgetConfig(relu_budget=final, schedule=schedule, anneal_fraction=0.5)
    values = [budget_at(step, 100, 1000, config) for step in range(101)]
    assert values[0] == (final if schedule == "constant" else 1000)
    assert all(a >= b >= final for a, b in zip(values, values[1:], strict=False))
    assert values[50:] == [final] * 51


@pytest.mark.parametrize(("schedule", "halfway"), [("linear", 505.0), ("cosine", 505.0), ("exponential", 100.0)])
def test_budget_halfway(schedule, halfway):
    config = BudgetConfig(relu_budget=10, schedule=schedule, anneal_fraction=1.0)
    assert budget_at(50, 100, 1000, config) == pytest.approx(halfway)


def test_penalty_is_a_hinge_on_the_density_with_the_straight_through_gradient():
    model = two_gates(torch.float64)
    penalty = budget_penalty(model, 4, 140.0)
    assert penalty.item() == pytest.approx(140 * (1 - 4 / 10))
    penalty.backward()
    score = model[0].score.detach()
    torch.testing.assert_close(model[0].score.grad, 140 / 10 * F.softplus(score))
    assert budget_penalty(model, 10, 140.0).item() == 0 == budget_penalty(model, 11, 140.0).item()


def test_projection_drops_the_lowest_scores_over_all_layers_and_they_stay_dropped():
    model = two_gates()
    with torch.no_grad():
        model[0].score.copy_(torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.8, 0.7]]))
        model[1].score.copy_(torch.tensor([0.15, 0.6, -0.001, 0.95]))
    assert project_to_budget_(model, 5) == 5
    assert model[0].mask.tolist() == [[False, False, True], [False, True, True]]
    assert model[1].mask.tolist() == [False, True, False, True]
    for gate in model:
        assert gate.update_mask_().item() == 0
    assert project_to_budget_(model, 5) == 0 and project_to_budget_(model, 9) == 0


def test_an_update_of_all_masks_is_hysteresis_where_the_penalty_alone_counts():
    model, other = two_gates(), two_gates()
    for gate in (*model, *other):
        nn.init.normal_(gate.score, generator=torch.Generator().manual_seed(1))
    flips = update_masks_(model, 0, hold=False)
    assert flips.item() == sum(gate.update_mask_().item() for gate in other) > 0
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(model, other, strict=True))


def test_an_update_stops_below_the_budget_and_swaps_there():
    model = two_gates()
    with torch.no_grad():
        model[0].score.copy_(torch.tensor([[-0.5, -0.1, 0.9], [-0.2, -0.8, -0.7]]))
        model[1].score.fill_(-1.0)
    assert update_masks_(model, 3.0).item() == 7  # 2.7, so three stay: the positive one, -0.1 and -0.2
    assert model[0].mask.tolist() == [[False, True, True], [True, False, False]]
    with torch.no_grad():
        model[1].score[2] = 1.0  # one comes back, so the worst of the three may go
    assert update_masks_(model, 3).item() == 2
    assert model[0].mask.tolist() == [[False, True, True], [False, False, False]]
    assert model[1].mask.tolist() == [False, False, True, False]


def test_projection_fits_exactly_even_where_all_scores_are_equal():
    model = two_gates()
    for gate in model:
        nn.init.constant_(gate.score, 0.5)
    project_to_budget_(model, 3)
    assert count_relus(model).kept == 3
    project_to_budget_(model, 0)
    assert count_relus(model).kept == 0


def test_impossible_budgets_are_refused():
    with pytest.raises(ValueError, match="relu_budget=2000: expected at most the 1,000"):
        check_budget(BudgetConfig(relu_budget=2000), 1000, 5)
    with pytest.raises(ValueError, match="relu_layers=6: expected at most the 5 layers"):
        check_budget(BudgetConfig(relu_budget=20, relu_layers=6), 1000, 5)
    for layers, budget in ((0, 20), (-1, 0)):
        with pytest.raises(ValueError, match=f"relu_layers={layers}"):
            BudgetConfig(relu_budget=budget, relu_layers=layers)
    BudgetConfig(relu_budget=0, relu_layers=0)
    for budget in (-1, 2.5, float("nan")):
        with pytest.raises(ValueError, match=f"relu_budget={budget}"):
            project_to_budget_(two_gates(), budget)
    for budget in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"invalid relu_budget={budget}: expected 0 or more"):
            update_masks_(two_gates(), budget)


@pytest.mark.parametrize("budget", [7, 7.0, np.int64(7), torch.tensor(7)])
def test_a_whole_number_of_any_type_is_a_budget(budget):
    model = two_gates()
    project_to_budget_(model, budget)
    assert count_relus(model).kept == 7


def test_layers_fall_in_the_first_half_of_what_annealing_leaves():
    config = BudgetConfig(relu_budget=50, relu_layers=3, anneal_fraction=0.6)
    layers = [relu_layers_at(step, 100, 19, config) for step in range(101)]
    assert layers[:61] == [19] * 61 and layers[80:] == [3] * 21
    assert layers[61:80] == [math.ceil(19 - 16 * (step - 60) / 20) for step in range(61, 80)]
    unlimited = BudgetConfig(relu_budget=50, anneal_fraction=0.6)
    assert {relu_layers_at(step, 100, 19, unlimited) for step in range(101)} == {19}


def four_gates(*scores):
    model = nn.Sequential(*(GatedReLU((4,), GateConfig()) for _ in scores))
    with torch.no_grad():
        for gate, score in zip(model, scores, strict=True):
            gate.score.copy_(torch.tensor(score))
            gate.mask.copy_(gate.score > 0)
    return model


def kept(model):
    return [gate.num_kept for gate in model]


def test_the_layers_with_the_fewest_relus_are_emptied_and_stay_empty():
    model = four_gates([.9, .9, -.1, -.2], [.5, .5, .5, -.1], [.1, -.3, -.3, -.3], [.2, .2, -.1, -.5])
    assert update_masks_(model, 7, relu_layers=4, hold=False).item() == 0  # all four may hold ReLUs
    assert update_masks_(model, 7, relu_layers=3, hold=False).item() == 1
    assert kept(model) == [2, 3, 0, 2]
    assert update_masks_(model, 7, relu_layers=2, hold=False).item() == 4  # of two equal layers the earlier one
    assert kept(model) == [0, 4, 0, 3]  # dropped ReLUs take its place, the closest ones first
    with torch.no_grad():
        for gate in model:
            gate.score.fill_(1.0)
    update_masks_(model, 7, relu_layers=3, hold=False)
    assert kept(model) == [0, 4, 0, 4]  # whatever their scores say


def test_layers_whose_relus_all_fall_at_once_are_not_lost():
    model = four_gates([.9, .9, .9, -.2], [.5, .5, .5, .5], [-.1] * 4)
    with torch.no_grad():
        for gate in model:
            gate.score.copy_(gate.score - 5)
    update_masks_(model, 6, relu_layers=2)
    assert kept(model) == [3, 3, 0]


def test_projection_holds_the_layers_and_fills_the_budget():
    model = four_gates([.9, .9, -.1, -.2], [.5, .5, .5, -.1], [.1, -.3, -.3, -.3], [.2, .2, -.1, -.5])
    assert project_to_budget_(model, 6, 2) == 3
    assert kept(model) == [0, 4, 0, 2]
    for gate in model:
        assert gate.update_mask_().item() == 0  # neither does the hysteresis loop undo it
    assert project_to_budget_(model, 3, 2) == 3 and kept(model) == [0, 3, 0, 0]
    assert project_to_budget_(four_gates([.1] * 4, [.1] * 4), 3, 1) == 5
    model = four_gates([.9, .9, -.1, -.2], [.5, .5, .5, -.1])
    assert project_to_budget_(model, 8, 2) == 0 and kept(model) == [2, 3]  # all layers are no limit


def test_layers_that_were_left_out_count_towards_the_limit():
    model = build_model("resnet8", in_channels=1, image_size=8)
    convert_relus_(model, torch.zeros(1, 1, 8, 8), filter_fn=lambda module, name: name.startswith("stages.0"))
    num_outside = len(count_relus(model).layers) - 2
    project_to_budget_(model, 4608, num_outside + 1)
    assert count_relus(model).layers_with_relu == num_outside + 1
    with pytest.raises(ValueError, match=f"left out {num_outside} layers"):
        project_to_budget_(model, 4608, num_outside - 1)
