"""What CHEETAH sends once a session: by kind in closed form, and as counted under the engine."""

import pytest
from mpc_nets import make_net

from autorep.mpc.bundle.files import load_graph, save_bundle
from autorep.mpc.bundle.ops import Op
from autorep.mpc.cost.cheetah_setup import cheetah_setup
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.engines import parse_network
from autorep.mpc.parties import launch
from autorep.mpc.parties.launch import RunError, run_task
from autorep.mpc.parties.report import num_cpus
from autorep.mpc.parties.results import collect
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import units

MATRIX, PRODUCTS, TRANSFERS = "keys of matrix products", "keys of products", "oblivious transfers"
REST = (
    Op("pool", "avg_pool", ("relu",), {"kernel": (16, 16), "stride": (16, 16), "padding": (0, 0, 0, 0)}),
    Op("flat", "flatten", ("pool",), {}),
)
GATE = (Op("norm", "affine", ("input",), {}), Op("relu", "gate", ("norm",), {"degree": (2,)}), *REST)
CONV = (
    Op("conv", "conv", ("input",), {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1),
                                    "groups": (1,), "out_channels": (12,)}),
    Op("relu", "gate", ("conv",), {"degree": (2,)}),
    *REST,
)


def net(ops, kept):
    """Its gate has 3,072 pixels."""
    return make_net(ops, kept=kept, input_shape=(12 if ops is GATE else 2, 16, 16))


def setup(ops, kept, cores=2):
    return cheetah_setup(units(lower(net(ops, kept)[0], FixedPoint())), cores)


def test_every_kind_is_sent_only_if_it_is_needed():
    assert set(setup(CONV, kept=1.0)) == {MATRIX, TRANSFERS}
    assert set(setup(CONV, kept=0.0)) == {MATRIX, PRODUCTS, TRANSFERS}
    assert set(setup(GATE, kept=1.0)) == {PRODUCTS, TRANSFERS}  # of the scale
    compared, quadratic = setup(CONV, kept=1.0), setup(CONV, kept=0.0)
    assert compared[MATRIX] == quadratic[MATRIX]  # whatever the layers
    assert compared[TRANSFERS] - quadratic[TRANSFERS] == 2 * 266_259  # in the other direction, with two workers


def test_a_worker_is_started_for_every_2048_elements_as_far_as_there_are_cores():
    one, two, many = (setup(CONV, kept=1.0, cores=cores)[TRANSFERS] for cores in (1, 2, 16))
    assert many == two == 2 * one  # of 3,072 elements


def test_a_trained_resnet20_took_as_much():
    """As counted: 9,714,684 and 9,714,235 bytes of keys; 160,652 and 161,419; 1,472,844 and 940,326 before the other
    direction, which took 532,518."""
    expected = {MATRIX: 19_428_919, PRODUCTS: 322_071, TRANSFERS: 2_945_688}
    mixed = setup(CONV, kept=0.9)
    assert mixed == {kind: pytest.approx(counted, rel=0.01) for kind, counted in expected.items()}
    assert mixed[TRANSFERS] == expected[TRANSFERS]


@pytest.mark.engine
@pytest.mark.parametrize(("ops", "kept"), [(CONV, 1.0), (CONV, 0.0)])
def test_it_is_what_the_engine_sends_more_with_its_first_query(tmp_path, ops, kept):
    try:
        launch.engine_python()
    except RunError as error:
        pytest.skip(str(error))
    graph, weights, samples = net(ops, kept)
    save_bundle(tmp_path / "bundle", graph, weights, samples)
    task = run_task(str(tmp_path / "bundle"), "trained", "spu-cheetah", parse_network("loopback"), FixedPoint(),
                    out=tmp_path / "run", images=1, batch=1, port=None, queries=1)
    found = collect(task, load_graph(tmp_path / "bundle"), samples)
    more = sum(found["setup"]["sent"].values()) - found["bytes"]["total"]
    assert more == pytest.approx(sum(setup(ops, kept, num_cpus()).values()), rel=0.02)


def test_only_the_engine_without_a_dealer_has_one():
    found = estimate(net(CONV, 1.0)[0], FixedPoint(), ())
    assert found["spu-cheetah"]["setup_bytes"] == sum(found["spu-cheetah"]["setup"].values()) > 2e7
    assert found["spu-semi2k"]["setup"] == {} == found["spu-aby3"]["setup"]
