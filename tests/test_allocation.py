"""The choice under a price: against an exact solver, within its limits, and the prices that it adds up."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

import autorep
from autorep.config import GateConfig
from autorep.models.registry import build_model
from autorep.mpc.cost import estimate as estimating
from autorep.mpc.cost import price as pricing
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.gate_prices import GatePrices, take_apart
from autorep.mpc.cost.local import LocalRates, Work
from autorep.mpc.cost.price import parse_price
from autorep.mpc.engines import parse_network
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.search.allocation import allocate
from autorep.search.price import TracedPrices

WAN = GatePrices(kept=2.9, dropped=(0.0, 0.16, 0.8), folds=True, kept_charge=60.0, dropped_charges=(0.0, 5.0, 15.0),
                 beside=True)
AFTER_SUM = dataclasses.replace(WAN, folds=False)
BYTES = GatePrices(kept=98.0, dropped=(0.0, 2.0, 282.0), folds=True, kept_charge=0.0, dropped_charges=(0.0, 0.0, 0.0),
                   beside=False)
ONE_LANE = dataclasses.replace(WAN, beside=False)
COMPUTING = dataclasses.replace(WAN, dropped=(0.2, 0.36, 1.4), computing=(9.0, 7.0))


def problem(prices, shape=(2, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([4.0, 1.5, 0.5], dtype=torch.float64).view(3, 1, 1)
    return [scale * torch.rand(3, *shape, generator=generator, dtype=torch.float64) ** 2 for _ in prices]


def total_price(prices, choices):
    return sum(price.of(c.mask.numpy(), c.kind.numpy()) for price, c in zip(prices, choices, strict=True))


def total_loss(losses, choices):
    return sum(torch.where(c.mask, 0, loss[c.kind, torch.arange(len(c.kind))]).sum().item()
               for loss, c in zip(losses, choices, strict=True))


def exact_loss(prices, losses, budget, relu_layers=None):
    """The least loss by integer programming: one variable per pixel, option of its channel and layer state."""
    cost, value, rows = [], [], []

    def variable(price, loss):
        cost.append(price)
        value.append(loss)
        return len(cost) - 1

    equal, below = [], []  # (variables with coefficient, right-hand side)
    opened = []
    for price, loss in zip(prices, losses, strict=True):
        # A state of the layer: whether it may keep ReLUs and the costliest kind.
        states = {(keeps, kind): variable(price.charge(keeps, kind), 0) for keeps in (False, True) for kind in range(3)}
        whole = variable(price.charge(True, 0, drops=False), 0)  # nothing is dropped
        equal.append((dict.fromkeys([*states.values(), whole], 1), 1))
        opened += [whole, *(v for (keeps, _), v in states.items() if keeps)]
        for channel in range(loss.shape[1]):
            options = [(kind, price.dropped[kind], True) for kind in range(3)] + [(1, 0.0, False)] * price.folds
            chosen = [variable(0, 0) for _ in options]
            equal.append((dict.fromkeys(chosen, 1), 1))
            for (kind, unit, paid), option in zip(options, chosen, strict=True):
                if paid:
                    allowing = [v for (_, costliest), v in states.items() if costliest >= kind] + [whole] * (kind == 0)
                    below.append(({option: 1, **dict.fromkeys(allowing, -1)}, 0))
                kept = []
                for pixel in range(loss.shape[2]):
                    dropped = variable(unit if paid else price.dropped[0], loss[kind, channel, pixel].item())
                    below.append(({dropped: 1, whole: 1}, 1))
                    if paid:
                        kept.append(variable(price.kept, 0))
                        equal.append(({dropped: 1, kept[-1]: 1, option: -1}, 0))
                        keeping = [whole, *(v for (keeps, _), v in states.items() if keeps)]
                        below.append(({kept[-1]: 1, **dict.fromkeys(keeping, -1)}, 0))
                    else:
                        equal.append(({dropped: 1, option: -1}, 0))
    if relu_layers is not None:
        below.append((dict.fromkeys(opened, 1), relu_layers))
    below.append(({i: c for i, c in enumerate(cost) if c}, budget))
    for constraints, exact in ((equal, True), (below, False)):
        matrix = np.zeros((len(constraints), len(cost)))
        for row, (terms, _) in zip(matrix, constraints, strict=True):
            row[list(terms)] = list(terms.values())
        right = np.array([right for _, right in constraints])
        rows.append(LinearConstraint(matrix, right if exact else -np.inf, right))
    found = milp(value, constraints=rows, bounds=Bounds(0, 1), integrality=np.ones(len(cost)))
    assert found.success
    return found.fun


@pytest.mark.parametrize("prices", [[WAN, AFTER_SUM, WAN], [BYTES] * 3, [ONE_LANE, WAN, BYTES], [COMPUTING] * 3])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_close_to_the_exact_solution(prices, share):
    losses = problem(prices)
    budget = share * sum(price.of(np.ones((2, 6), bool), np.zeros(2, int)) for price in prices)
    choices = allocate(prices, losses, budget)
    assert total_price(prices, choices) <= budget * (1 + 1e-12)
    floor = sum(price.of(np.zeros((2, 6), bool), np.zeros(2, int)) for price in prices)
    nothing = total_loss(losses, allocate(prices, losses, floor))
    exact = exact_loss(prices, losses, budget)
    # A sweep over multipliers misses what is inside the convex hull, at most about a pixel of each layer.
    assert exact - 1e-9 <= total_loss(losses, choices) <= exact + 0.06 * nothing


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_layers_are_limited_exactly(limit):
    prices = [WAN, AFTER_SUM, WAN]
    losses = problem(prices, seed=1)
    budget = 0.9 * sum(price.of(np.ones((2, 6), bool), np.zeros(2, int)) for price in prices)
    choices = allocate(prices, losses, budget, relu_layers=limit)
    assert sum(bool(c.mask.any()) for c in choices) <= limit
    assert total_loss(losses, choices) <= exact_loss(prices, losses, budget, relu_layers=limit) + 1.5


def test_relus_are_limited_and_the_most_valuable_stay():
    prices = [dataclasses.replace(BYTES, dropped=(0.0, 2.0, 40.0))] * 2
    losses = problem(prices, (4, 64))
    for limit in (0, 1, 50, 300):
        choices = allocate(prices, losses, math.inf if limit == 300 else 60_000.0, relu_budget=limit)
        kept = sum(int(c.mask.sum()) for c in choices)
        assert kept == limit
    unlimited = allocate(prices, losses, 30_000.0)
    same = allocate(prices, losses, 30_000.0, relu_budget=10_000)
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(unlimited, same, strict=True))


def test_a_relu_that_is_worth_nothing_stays_where_dropping_it_costs_more():
    prices = [COMPUTING] * 3
    losses = problem(prices)
    for loss in losses:
        loss[:, 0, 0] = 0
    full = sum(price.of(np.ones((2, 6), bool), np.zeros(2, int)) for price in prices)
    assert total_loss(losses, allocate(prices, losses, full)) == 0


@pytest.mark.parametrize("price", [WAN, COMPUTING])
@pytest.mark.parametrize("num_layers", [1, 19, 120])
def test_every_relu_stays_where_all_fit(num_layers, price):
    prices = [price] * num_layers
    full = sum(price.of(np.ones((4, 64), bool), np.zeros(4, int)) for price in prices)
    assert all(choice.mask.all() for choice in allocate(prices, problem(prices, (4, 64)), full))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("num_layers", "missed"), [(1, 1e-9), (5, 0.05)])
def test_the_whole_budget_is_used(num_layers, missed, share):
    """Identity or ReLU, losses that range wide: the best choice keeps the largest losses, as many as fit."""
    prices = [BYTES] * num_layers
    losses = [(2 * torch.logit(loss[:1] / 4)).exp() for loss in problem(prices, (4, 64))]
    num = int(share * 256 * num_layers)
    choices = allocate(prices, losses, BYTES.kept * (num + 0.5))
    assert sum(int(choice.mask.sum()) for choice in choices) == num
    dropped = torch.cat([loss.flatten() for loss in losses]).sort().values[:-num]
    assert total_loss(losses, choices) <= (1 + missed) * dropped.sum().item()


def test_the_rest_of_a_budget_opens_no_layer_and_unfolds_no_channel():
    prices = [WAN, dataclasses.replace(WAN, kept_charge=1000.0), AFTER_SUM, BYTES, COMPUTING]
    for seed in range(5):
        losses = problem(prices, (4, 32), seed)
        for budget in (50.0, 500.0, 2000.0, 8000.0):
            assert total_price(prices, allocate(prices, losses, budget)) <= budget


def test_dear_quadratics_do_not_survive():
    """Under CHEETAH a quadratic costs three ReLUs: a pixel that is worth it is worth a ReLU."""
    losses = problem([BYTES] * 3, (4, 32))
    for budget in (1_000.0, 10_000.0, 30_000.0):
        for choice in allocate([BYTES] * 3, losses, budget):
            assert not ((choice.kind == 2) & ~choice.mask.all(1)).any()


def test_rounds_close_layers():
    """Where rounds rule, ReLUs gather in few layers; where bytes rule, they spread."""
    many, few = [WAN] * 6, [dataclasses.replace(WAN, kept_charge=0.0, dropped_charges=(0.0, 0.0, 0.0))] * 6
    losses = problem(many, (4, 16))
    with_charges, without = allocate(many, losses, 300.0), allocate(few, losses, 300.0)
    assert sum(bool(c.mask.any()) for c in with_charges) < sum(bool(c.mask.any()) for c in without)


def test_fewer_kinds_and_lost_pixels():
    losses = [loss[:1] for loss in problem([WAN] * 2)]
    assert all((c.kind == 0).all() for c in allocate([WAN] * 2, losses, 100.0))
    dead = [torch.zeros(3, 2, 6, dtype=torch.float64)] * 2
    assert not any(c.mask.any() for c in allocate([WAN] * 2, dead, 1e9))
    with pytest.raises(ValueError, match="at least 0"):
        allocate([WAN], problem([WAN]), -1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(value):
    losses = problem([WAN] * 2)
    losses[1][0, 1, 3] = value
    with pytest.raises(ValueError, match="invalid losses of layer 1: expected finite numbers, found 1 others"):
        allocate([WAN] * 2, losses, 100.0)


@pytest.mark.parametrize("name", ["spu-semi2k:wan", "spu-semi2k:25:100", "spu-semi2k", "spu-cheetah", "spu-aby3:wan",
                                  "spu-aby3", "spu-semi2k-local:wan", "spu-semi2k-local", "spu-semi2k:wan+computing",
                                  "spu-semi2k-local:wan+computing"])
@pytest.mark.parametrize("arch", ["resnet8", "vgg"])
def test_the_parts_add_up_to_the_estimate(arch, name, monkeypatch):
    rates = {"spu-semi2k": LocalRates("spu-semi2k", "a machine", Work(1e-3, 1e-8, 3e-6, 5e-7, 2e-7, 4e-3), 0.002)}
    for module in (estimating, pricing):
        monkeypatch.setattr(module, "load_rates", lambda: rates)
    model = build_model(arch, 10)
    autorep.convert_relus_(model, torch.zeros(1, *model.input_shape), GateConfig())
    traced, price = TracedPrices(model, torch.zeros(1, *model.input_shape)), parse_price(name)
    base, gates = take_apart(traced.graph, price, traced.gates)
    random = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        public, total = {}, base
        for gate, parts in gates.items():
            shape = traced.graph.shapes[gate]
            mask = random.random(shape) < share * random.choice([0, 1])
            kind = random.choice(random.choice([1, 2, 3]), shape[0])
            coefficients = np.array([(0, 1, 0), (0.1, 0.5, 0), (0.1, 0.5, 0.2)])[kind]
            public |= {f"{gate}/mask": mask, f"{gate}/coefficients": coefficients}
            total += parts.of(mask.reshape(shape[0], -1), kind)
        graph = dataclasses.replace(traced.graph, public=traced.graph.public | public)
        fixed = FixedPoint.of("local" if "local" in name else "exact")
        found = estimate(graph, fixed, [parse_network("wan")])[price.engine]
        assert total == pytest.approx(price.of(found["bytes"], found["rounds"], found["local_seconds"] or 0), rel=1e-12)
        if "computing" in name:
            assert total == pytest.approx(found["seconds"]["wan"], rel=1e-9)
        if name.endswith(":wan"):
            assert total == pytest.approx(found["link_seconds"]["wan"], rel=1e-9)
