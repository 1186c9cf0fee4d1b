"""The float reference agrees with torch, the ring with the reference; overflow is predicted."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mpc_nets import EVERYTHING, RESIDUAL, make_net

from autorep.mpc.bundle.interpreter import run_float
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.bundle.ops import Op, infer_shapes
from autorep.mpc.ring.fixed_point import FixedPoint, decode, encode
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.prediction import check_ranges, run_fixed


@pytest.mark.parametrize("attrs", [
    {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": (1,)},
    {"kernel": (3, 2), "stride": (2, 3), "padding": (0, 1, 2, 0), "dilation": (1, 2), "groups": (2,)},
    {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": (4,)},
])
def test_convolution_is_torchs(attrs):
    op = Op("conv", "conv", ("input",), {**attrs, "out_channels": (8,)})
    shapes = infer_shapes((op,), "input", (4, 9, 11))
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 4, 9, 11)), rng.normal(size=(8, 4 // attrs["groups"][0], *attrs["kernel"]))
    graph, weights, _ = make_net((op, Op("flat", "flatten", ("conv",), {})), input_shape=(4, 9, 11))
    weights = {"conv/weight": weight, "conv/bias": rng.normal(size=8)}
    got = run_float(graph, weights, x)["conv"]
    top, bottom, left, right = attrs["padding"]
    expected = F.conv2d(F.pad(torch.from_numpy(x), (left, right, top, bottom)), torch.from_numpy(weight),
                        torch.from_numpy(weights["conv/bias"]), attrs["stride"], 0, attrs["dilation"],
                        attrs["groups"][0])
    assert got.shape[1:] == shapes["conv"]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("ops", [RESIDUAL, EVERYTHING], ids=["residual", "everything"])
@pytest.mark.parametrize("name", ["trained", "all_relu", "no_relu"])
def test_the_ring_reproduces_the_reference(ops, name):
    graph, weights, samples = make_net(ops)
    graph = with_masking(graph, name)
    exact = run_float(graph, weights, samples.images)
    ring = run_fixed(lower(graph, FixedPoint()), weights, samples.images)
    assert np.abs(ring[graph.output_name] - exact[graph.output_name]).max() < 2e-3


def test_more_fraction_bits_are_more_exact():
    graph, weights, samples = make_net(RESIDUAL)
    exact = run_float(graph, weights, samples.images)[graph.output_name]
    programs = [lower(graph, FixedPoint(bits, 16)) for bits in (8, 12, 16)]
    errors = [np.abs(run_fixed(program, weights, samples.images)[graph.output_name] - exact).max()
              for program in programs]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


def test_values_beyond_the_ring_wrap_around_and_are_predicted():
    graph, weights, samples = make_net(RESIDUAL)
    fixed = FixedPoint()
    assert check_ranges(graph, fixed) == []
    weights["conv1/weight"] = weights["conv1/weight"] * 2e4
    exact = run_float(graph, weights, samples.images)
    grown = replace(graph, ranges={n: (float(v.min()), float(v.max())) for n, v in exact.items()})
    problems = check_ranges(grown, fixed)
    assert any(problem.fatal and "wraps around" in str(problem) for problem in problems)
    wrong = run_fixed(lower(grown, fixed), weights, samples.images)
    worst = max(problems, key=lambda p: p.largest).tensor
    assert np.abs(wrong[worst] - exact[worst]).max() > fixed.limit / 2


def test_inner_terms_of_a_higher_degree_that_may_wrap_around_are_warned_of():
    """c3 x^3 + c2 x^2 with c3 = -c2 is small near x = 1, where (c3 x + c2) x truncates terms as large as c2."""
    graph, *_ = make_net(RESIDUAL, kept=0.0)
    limit = FixedPoint().limit
    ops = tuple(replace(op, attrs={"degree": (3,)}) if op.name == "relu3" else op for op in graph.ops)
    ranges = dict.fromkeys(graph.ranges, (-1.0, 1.0))
    for c2, expected in ((limit / 10, []), (0.2 * limit, ["4 times"]), (limit, ["may reach.*--fraction_bits"])):
        public = graph.public | {"relu3/coefficients": np.tile([0.0, 0.0, c2, -c2], (6, 1))}
        problems = check_ranges(replace(graph, ops=ops, public=public, ranges=ranges), FixedPoint())
        assert [problem.tensor for problem in problems] == ["inside relu3"] * len(expected)
        assert all(re.search(text, str(p)) and not p.fatal for text, p in zip(expected, problems, strict=True))
        assert all(problem.largest == pytest.approx(2 * c2) for problem in problems)


def test_encoding_refuses_what_does_not_fit():
    values = np.array([-1.5, 0.0, 3.25])
    np.testing.assert_array_equal(decode(encode(values, 16, "x"), 16), values)
    with pytest.raises(ValueError, match="weights: 1.1e\\+0?[56].*does not fit"):
        encode(np.array([1.1e5]), 46, "weights")
    with pytest.raises(ValueError, match="fraction_bits=30"):
        FixedPoint(30, 16)
    with pytest.raises(ValueError, match="at most 56"):
        FixedPoint(22, 22)
