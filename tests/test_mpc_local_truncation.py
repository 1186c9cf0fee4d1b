"""Truncation without a round: what it computes, how often it fails, what it costs, and when it is refused."""

from dataclasses import replace

import numpy as np
import pytest
from mpc_nets import RESIDUAL, make_net

from autorep.mpc.__main__ import main
from autorep.mpc.bundle.files import save_bundle
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.price import parse_price
from autorep.mpc.engines import parse_network
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.local_truncation import (
    MOST_FAILURES,
    check_truncation,
    failure_probability,
    local_shift,
)
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.prediction import logits_fixed, run_fixed


def test_a_local_shift_is_at_most_a_unit_too_small():
    values = np.random.default_rng(0).integers(-(2**40), 2**40, 100_000)
    off = local_shift(20, np.random.default_rng(1))(values) - (values >> 20)
    assert set(off.tolist()) == {0, -1}


@pytest.mark.parametrize("exponent", [60, 61, 62])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_fails_as_often_as_the_value_is_large(exponent, sign):
    values = np.full(200_000, sign * 2**exponent)
    wrong = np.abs(local_shift(20, np.random.default_rng(0))(values) - (values >> 20)) > 1
    assert wrong.mean() == pytest.approx(2.0 ** (exponent - 64), rel=0.05)


def test_the_bound_holds_for_what_an_image_meets():
    graph, weights, samples = make_net(RESIDUAL, num_images=64)
    fixed = FixedPoint(16, 14, "local")
    images = np.tile(samples.images, (8, 1, 1, 1))
    exact = run_fixed(lower(graph, replace(fixed, truncation="exact")), weights, images)[graph.output_name]
    local = run_fixed(lower(graph, fixed), weights, images)[graph.output_name]
    failed = np.abs(local - exact).max(1) > 1
    bound = failure_probability(graph, fixed)
    assert 0 < failed.mean() <= bound  # a bound: typical values are far below the largest ones
    assert failure_probability(graph, FixedPoint(16, 13, "local")) == pytest.approx(bound / 2)


def test_the_inner_terms_of_a_higher_degree_count():
    """For |x| up to r a gate of degree 3 also truncates (c3 x + c2) x, which may be far above its result."""
    graph, *_ = make_net(RESIDUAL, kept=0.0)
    r, coefficients = 2.0**-7, np.tile([0.0, 0.5, 51.2, 163.84], (6, 1))
    ops = tuple(replace(op, attrs={"degree": (3,)}) if op.name == "relu3" else op for op in graph.ops)
    steep = replace(graph, ops=ops, public=graph.public | {"relu3/coefficients": coefficients},
                    ranges=dict.fromkeys(graph.ranges, (-r, r)))
    fixed = FixedPoint(16, 10, "local")
    inner = 6 * 3 * 3 * (51.2 * r + 163.84 * r**2) * 2.0 ** (fixed.product_bits - 64)
    without = replace(steep, public=steep.public | {"relu3/coefficients": coefficients * [1, 1, 0, 0]})
    assert failure_probability(steep, fixed) > failure_probability(without, fixed) + inner


def test_the_format_that_is_proposed_would_do():
    graph, *_ = make_net(RESIDUAL)
    (problem,) = check_truncation(graph, FixedPoint(16, 16, "local"))
    assert problem.fatal and f"--fraction_bits {problem.instead.fraction_bits}" in str(problem)
    assert failure_probability(graph, problem.instead) <= MOST_FAILURES < problem.probability
    assert check_truncation(graph, problem.instead) == [] == check_truncation(graph, FixedPoint(16, 16))


def test_it_saves_a_round_of_every_product_and_the_bytes_of_every_truncation():
    graph, *_ = make_net(RESIDUAL, kept=0.0)
    exact = estimate(graph, FixedPoint(12, 6), ())["spu-semi2k"]["by_layer"]
    local = estimate(graph, FixedPoint.of("local"), ())["spu-semi2k"]["by_layer"]
    saved = {a["layer"]: (a["bytes"] - b["bytes"], a["messages"] - b["messages"])
             for a, b in zip(exact, local, strict=True) if a["bytes"]}
    assert saved["conv1"] == (2 * 4 * 4 * 6 * 6, 1)  # 4 bytes from each party for 4 channels of 6 x 6
    assert all(rounds == 1 for _, rounds in saved.values())


def test_every_batch_gets_shares_of_its_own():
    graph, weights, samples = make_net(RESIDUAL)
    program = lower(graph, FixedPoint.of("local"))
    images = np.repeat(samples.images[:1], 2, 0) * np.float32([1, 1 + 1e-6])[:, None, None, None]
    first, second = logits_fixed(program, weights, images, batch=1)
    assert np.array_equal(logits_fixed(program, weights, images, batch=1)[0], first)  # the same every time
    assert not np.array_equal(first, second)  # images that are the same in the ring, with other last places


def test_a_format_or_an_engine_that_cannot_is_refused(tmp_path, capsys):
    save_bundle(tmp_path, *make_net(RESIDUAL))
    run = ["run", str(tmp_path), "--images", "1", "--truncation", "local"]
    assert main([*run, "--engine", "spu-cheetah"]) == 2
    assert "invalid --truncation local under spu-cheetah" in capsys.readouterr().err
    assert main([*run, "--fraction_bits", "16", "--coefficient_bits", "16"]) == 2
    assert "--fraction_bits 16 --coefficient_bits" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--coefficient_bits", "9"]) == 2
    assert "--coefficient_bits 9 needs --fraction_bits" in capsys.readouterr().err
    with pytest.raises(ValueError, match="invalid truncation='fast': expected one of exact, local"):
        FixedPoint(truncation="fast")


def test_a_price_may_be_that_of_local_truncation():
    price = parse_price("spu-semi2k-local:wan")
    assert str(price) == "spu-semi2k-local:wan" and price.fixed == FixedPoint.of("local")
    graph, *_ = make_net(RESIDUAL)
    found = estimate(graph, price.fixed, [parse_network("wan")])["spu-semi2k"]
    assert price.of(found["bytes"], found["rounds"]) == pytest.approx(found["link_seconds"]["wan"], rel=1e-12)
    assert parse_price("spu-semi2k:wan").fixed == FixedPoint()
    with pytest.raises(ValueError, match="invalid price 'spu-aby3-local': expected spu-aby3, which has no local"):
        parse_price("spu-aby3-local")
