"""ReLUs that change places at the same price."""

import pytest
import torch

from autorep.config import GateConfig
from autorep.gates.gated_relu import GatedReLU
from autorep.gates.hysteresis import next_mask
from autorep.mpc.cost.gate_prices import IDENTITY, LINEAR, QUADRATIC, GatePrices
from autorep.search.exchange import Exchange, rank_scores_

KINDS = torch.tensor([LINEAR, QUADRATIC, LINEAR, QUADRATIC, LINEAR, IDENTITY])
PRICE = GatePrices(144.0, (0.0, 8.0, 40.0), folds=True, kept_charge=0.0, dropped_charges=(0.0, 0.0, 0.0), beside=False)


@pytest.fixture
def gate():
    """Channels 0 to 3 hold ReLUs and other pixels, 4 none; 5 holds nothing but ReLUs."""
    torch.manual_seed(0)
    gate = GatedReLU((6, 5, 5), GateConfig(threshold=0.01))
    gate.mask.copy_(torch.rand(6, 5, 5) < 0.4)
    gate.mask[4], gate.mask[5] = False, True
    rank_scores_(gate, torch.rand(6, 5, 5))
    return gate


def price(gate):
    return PRICE.of(gate.mask.flatten(1).numpy(), KINDS.numpy().copy())


def test_only_places_of_one_price_are_exchanged(gate):
    exchange, before, paid = Exchange({gate: KINDS}), gate.mask.clone(), price(gate)
    for _ in range(50):
        with torch.no_grad():
            gate.score += 0.1 * torch.randn_like(gate.score)
        exchange.update_()
        for kind in (LINEAR, QUADRATIC):
            of_kind = (kind == KINDS) & exchange.may_keep[gate]
            assert gate.mask[of_kind].sum() == before[of_kind].sum()
        assert not gate.mask[4].any() and gate.mask[5].all()
        assert price(gate) <= paid
    assert (gate.mask != before).sum() > 20


def test_the_highest_scores_stay_but_for_the_hysteresis(gate):
    exchange = Exchange({gate: KINDS})
    linear = (KINDS == LINEAR) & gate.mask.flatten(1).any(1)
    place = (~gate.mask & linear[:, None, None]).nonzero()[0]
    lowest = torch.where(gate.mask & linear[:, None, None], gate.score, torch.inf).argmin()
    with torch.no_grad():
        gate.score.view(-1)[lowest] -= 0.001  # there may be others
        gate.score[tuple(place)] = gate.score.view(-1)[lowest] + 0.015  # less than twice the threshold above
    assert exchange.update_() == 0
    with torch.no_grad():
        gate.score[tuple(place)] += 0.01
    assert exchange.update_() == 2
    assert gate.mask[tuple(place)] and not gate.mask.flatten()[lowest]


def test_masks_agree_with_scores(gate):
    exchange = Exchange({gate: KINDS})
    for _ in range(5):
        with torch.no_grad():
            gate.score += 0.1 * torch.randn_like(gate.score)
        exchange.update_()
        groups = exchange.may_keep[gate] & ~gate.mask.flatten(1).all(1)
        assert torch.equal(next_mask(gate.mask, gate.score, 0.01)[groups], gate.mask[groups])


def test_scores_start_in_the_order_of_the_losses(gate):
    loss = torch.rand(6, 5, 5)
    gate.mask.copy_(loss > 0.7)
    rank_scores_(gate, loss)
    assert (gate.score.detach().flatten()[loss.flatten().argsort()].diff() >= 0).all()
    assert torch.equal(next_mask(gate.mask, gate.score, 0.01), gate.mask)
    assert float((gate.score.max() - gate.score.min()).detach()) == pytest.approx(1, abs=0.01)
