"""What a dealer would send before a query."""

import pytest
from mpc_nets import EVERYTHING, RESIDUAL, make_net

from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.offline import offline_counts
from autorep.mpc.cost.semi2k import COMPARISON, PRODUCT, semi2k_unit
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import units

LOCAL = FixedPoint.of("local")


@pytest.mark.parametrize("fixed", [FixedPoint(), LOCAL])
def test_what_is_opened_online_is_what_was_masked_offline(fixed):
    """Every triple is used up by the online bytes of its kind, and no other bytes are sent."""
    graph, *_ = make_net(EVERYTHING)
    for unit in units(lower(graph, fixed)):
        counts, (sent, _) = offline_counts(unit, fixed), semi2k_unit(unit, fixed=fixed)
        opened = counts.get("truncation", 0) * 4 + counts.get("comparison", 0) * COMPARISON
        if unit.part in ("conv", "linear", "affine"):  # of weights, which were opened before, only the other operand
            assert (sent > opened) == bool(counts)
        else:
            assert sent == opened + counts.get("product", 0) * PRODUCT


def test_a_convolution_takes_the_matrix_that_it_computes():
    graph, *_ = make_net(RESIDUAL)
    counts = {unit.step.op.name: offline_counts(unit, FixedPoint()) for unit in units(lower(graph, FixedPoint()))
              if unit.part == "conv"}
    assert counts["conv1"] == {"truncation": 4 * 6 * 6, "matrix element": 9 * 4 * 8 * 8}  # taps, padded
    every = {unit.step.op.name: offline_counts(unit, FixedPoint())
             for unit in units(lower(make_net(EVERYTHING)[0], FixedPoint())) if unit.part == "conv"}
    assert every["side"]["matrix element"] == 4 * 3 * 3  # a kernel of 1 x 1 with stride 2


def test_dropped_relus_need_less_of_it_and_only_a_dealt_engine_any():
    graph, *_ = make_net(RESIDUAL)
    found = {name: estimate(with_masking(graph, name), FixedPoint(), ()) for name in ("all_relu", "no_relu")}
    assert found["all_relu"]["spu-semi2k"]["offline_bytes"] > found["no_relu"]["spu-semi2k"]["offline_bytes"] > 0
    assert found["all_relu"]["spu-cheetah"]["offline"] == {}
    assert "truncation" not in estimate(graph, LOCAL, ())["spu-semi2k"]["offline"]
