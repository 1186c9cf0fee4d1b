"""Each pixel is in the cheapest class; linear channels and divisions are folded into neighbouring layers."""

import numpy as np
import pytest
from mpc_nets import EVERYTHING, RESIDUAL, make_net

from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.bundle.ops import Op
from autorep.mpc.cost.semi2k import semi2k_unit
from autorep.mpc.ring import parameters
from autorep.mpc.ring.compute import Backend
from autorep.mpc.ring.fixed_point import FixedPoint, encode
from autorep.mpc.ring.gate_plan import plan_gate
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.parameters import secret_parameters, secret_shapes
from autorep.mpc.ring.prediction import run_fixed
from autorep.mpc.ring.program import stages, units

FIXED = FixedPoint()


def gate(graph, name):
    return next(step.gate for step in lower(graph, FIXED).steps if step.op.name == name)


def test_pixels_are_sorted_into_the_cheapest_classes():
    mask = np.zeros((5, 2, 2), bool)
    mask[0, 0, 0] = mask[3, 1, 1] = True
    coefficients = np.array([[0.1, 0.5, 0.2], [0, 1, 0], [0.3, 0.7, 0], [0, 0, 0], [0.3, 0, 1e-9]])
    plan = plan_gate(mask, coefficients, FIXED)
    assert plan.kept.tolist() == [0, 15]
    assert {d: p.tolist() for d, p in plan.polynomial.items()} == {1: [8, 9, 10, 11], 2: [1, 2, 3]}
    assert plan.identity.tolist() == [4, 5, 6, 7]
    assert plan.constant.tolist() == [12, 13, 14, 16, 17, 18, 19]
    assert plan.constant_value.tolist() == [0, 0, 0, 0.3, 0.3, 0.3, 0.3]
    assert sorted(plan.order) == list(range(20))


def test_a_linear_channel_without_kept_relus_is_folded_into_the_convolution():
    graph, _, _ = make_net(RESIDUAL)
    steps = {step.op.name: step for step in lower(graph, FIXED).steps}
    linear = graph.public["relu3/coefficients"]
    assert 0 in steps["relu3"].gate.identity // 9  # channel 0, 3x3 pixels, is linear: nothing is left to do
    np.testing.assert_allclose(steps["down"].fold_scale[:2], [linear[0, 1], 1])
    np.testing.assert_allclose(steps["down"].fold_shift[:2], [linear[0, 0], 0])
    assert steps["down"].fold_scale[3] == 1  # holds kept ReLUs
    assert steps["conv2"].fold_scale is None  # a sum follows, not a gate
    assert (steps["relu2"].gate.polynomial[1] < 36).any()  # so the linear polynomials after the sum remain


def test_the_average_divides_in_the_linear_layer():
    graph, _, _ = make_net(RESIDUAL)
    steps = {step.op.name: step for step in lower(graph, FIXED).steps}
    assert not steps["pool"].divide
    assert steps["fc"].input_scale == pytest.approx(1 / 9)
    graph, _, _ = make_net(EVERYTHING)
    assert next(step for step in lower(graph, FIXED).steps if step.op.name == "mean").divide


def test_a_layer_without_kept_relus_has_no_comparison():
    graph, _, _ = make_net(RESIDUAL)
    assert {unit.part for unit in units(lower(with_masking(graph, "no_relu"), FIXED))}.isdisjoint({"kept"})
    assert lower(with_masking(graph, "no_relu"), FIXED).layers_with_relu == 0
    all_relu = [unit.part for unit in units(lower(with_masking(graph, "all_relu"), FIXED))]
    assert all_relu.count("kept") == 3 and "dropped" not in all_relu


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("ops", [RESIDUAL, EVERYTHING], ids=["residual", "everything"])
def test_weight_shapes_are_known_without_the_weights(ops, opens):
    graph, weights, _ = make_net(ops)
    program = lower(graph, FIXED)
    made = {f"{step.op.name}/{key}": values.shape for step in program.steps
            for key, values in secret_parameters(step, weights, FIXED, opens).items()}
    assert made == secret_shapes(program, opens)


def test_images_of_a_batch_do_not_mix():
    graph, weights, samples = make_net(EVERYTHING)
    program = lower(graph, FIXED)
    together = run_fixed(program, weights, samples.images)[graph.output_name]
    alone = [run_fixed(program, weights, samples.images[i:i + 1])[graph.output_name] for i in range(5)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("ops", [RESIDUAL, EVERYTHING], ids=["residual", "everything"])
def test_local_units_give_on_shares_the_shares_of_what_they_give_on_values(ops):
    graph, _, _ = make_net(ops)
    rng = np.random.default_rng(0)
    backend = Backend(np, None, FIXED, opens_operands=True)
    local = [unit for unit in units(lower(graph, FIXED)) if unit.local]
    assert {unit.part for unit in local} >= {"pick_kept", "pick_dropped", "join", "flatten"}
    shapes = {unit.output: unit.out_shape for unit in units(lower(graph, FIXED))} | {"input": (2, 6, 6)}
    for unit in local:
        values = [rng.integers(-2**62, 2**62, (3, *shapes[name])) for name in unit.inputs]
        first = [rng.integers(-2**63, 2**63 - 1, value.shape) for value in values]
        second = [value - share for value, share in zip(values, first, strict=True)]
        together = unit.run(backend, first, {}) + unit.run(backend, second, {})
        np.testing.assert_array_equal(together, unit.run(backend, values, {}))
        assert together.shape == (3, *unit.out_shape)


def test_the_dropped_pixels_of_a_gate_share_a_stage_with_its_kept_ones():
    graph, _, _ = make_net(RESIDUAL)
    plan = units(lower(graph, FIXED))
    assert stages(plan, two_lanes=False) == [(i,) for i in range(len(plan))]
    together = stages(plan, two_lanes=True)
    assert [i for stage in together for i in stage] == list(range(len(plan)))
    pairs = [(plan[first], plan[second]) for first, second in (stage for stage in together if len(stage) > 1)]
    assert [(a.output, b.output) for a, b in pairs] == [(f"relu{i}:kept", f"relu{i}:dropped") for i in (1, 2, 3)]


def test_an_unknown_masking_is_refused():
    graph, _, _ = make_net(RESIDUAL)
    with pytest.raises(ValueError, match="invalid masking='half': expected one of all_relu, trained, no_relu"):
        with_masking(graph, "half")


@pytest.mark.parametrize("opens_operands", [True, False])
def test_groups_are_multiplied_together_up_to_a_size_and_give_the_same_bits(opens_operands, monkeypatch):
    attrs = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": (12,)}
    ops = (Op("depthwise", "conv", ("input",), {**attrs, "out_channels": (24,)}), Op("flat", "flatten", ("depthwise",)))
    graph, weights, samples = make_net(ops, input_shape=(12, 6, 6))
    program = lower(graph, FIXED)
    step, images = program.steps[0], encode(samples.images, FIXED.fraction_bits, "images")
    backend = Backend(np, lambda value: value >> FIXED.truncation_bits, FIXED, opens_operands)
    of_one = 2 * 9 * (8 * 8 if opens_operands else 6 * 6)
    found = {}
    for together, limit in ((1, of_one), (3, 9 * of_one), (4, 35 * of_one), (12, 144 * of_one)):
        monkeypatch.setattr(parameters, "_BLOCK", limit)
        assert parameters.conv_blocks(step, opens_operands) == 12 // together
        secret = parameters.secret_parameters(step, weights, FIXED, opens_operands)
        shapes = {key.split("/")[1]: shape for key, shape in parameters.secret_shapes(program, opens_operands).items()}
        assert {key: value.shape for key, value in secret.items()} == shapes
        found[together] = units(program)[0].run(backend, [images], secret)
        if opens_operands:
            assert semi2k_unit(units(program)[0])[1] == 12 // together + 1
    for values in found.values():
        np.testing.assert_array_equal(values, found[1])
