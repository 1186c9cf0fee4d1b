"""The closed form: prices as counted under the engines, and never higher than pixel by pixel."""

import json
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from mpc_nets import EVERYTHING, RESIDUAL, make_net

from autorep.mpc.__main__ import main
from autorep.mpc.bundle.files import save_bundle
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.cheetah import matrix_product
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.semi2k import semi2k_unit
from autorep.mpc.engines import Network, find_engine, parse_network
from autorep.mpc.parties.addresses import plan_addresses
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import units

FIXED = FixedPoint()
RELU, HORNER = 72, 24  # bytes per element and direction under SEMI2K, if each pixel is computed by itself


@pytest.mark.parametrize("name", ["trained", "all_relu", "no_relu"])
def test_the_price_is_never_higher_than_pixel_by_pixel(name):
    graph, _, _ = make_net(RESIDUAL)
    for unit in units(lower(with_masking(graph, name), FIXED)):
        plan, (sent, rounds) = unit.step.gate, semi2k_unit(unit)
        if unit.part == "kept":
            assert (sent, rounds) == (RELU * len(plan.kept), 8)
        if unit.part == "dropped":
            quadratic, linear = (len(plan.polynomial.get(d, ())) for d in (2, 1))
            assert sent == 20 * quadratic + 4 * linear <= HORNER * quadratic + 4 * linear
            assert rounds == bool(quadratic) + bool(quadratic or linear)


def test_a_convolution_opens_each_input_once():
    graph, _, _ = make_net(RESIDUAL)
    unit = next(u for u in units(lower(graph, FIXED)) if u.output == "conv1")
    assert semi2k_unit(unit) == (2 * 8 * 8 * 8 + 4 * 6 * 6 * 4, 2)
    assert semi2k_unit(unit, batch=3) == (3 * (2 * 8 * 8 * 8 + 4 * 6 * 6 * 4), 2)


@pytest.mark.parametrize(("fixed", "sent"), [(FixedPoint(16, 16), 24_640), (FixedPoint(17, 16), 28_680),
                                             (FixedPoint(22, 12), 28_680), (FixedPoint(8, 22), 24_640)])
def test_a_truncation_of_more_than_32_bits_takes_twice_the_bytes(fixed, sent):
    graph, _, _ = make_net(RESIDUAL)
    assert estimate(graph, fixed, [])["spu-semi2k"]["bytes"] == sent  # as counted under the engine


@pytest.mark.parametrize(("port", "engine", "more"), [
    (0, "cheetah", 1), (-5, "semi2k", 2), (65535, "cheetah", 1), (65534, "semi2k", 2), (70000, "semi2k", 2),
    (65533, "aby3", 3)])
def test_ports_that_do_not_exist_are_refused(port, engine, more):
    with pytest.raises(ValueError, match=f"invalid port={port}: expected 1 to {65535 - more}"):
        plan_addresses(port, parse_network("loopback"), find_engine(f"spu-{engine}"))


@pytest.mark.parametrize("name", ["spu-semi2k", "spu-cheetah", "spu-aby3"])
@pytest.mark.parametrize("port", [None, 5000])
def test_every_two_parties_reach_each_other(name, port):
    engine = find_engine(name)
    plain, none = plan_addresses(port, parse_network("loopback"), engine)
    assert none == [] and plain["control_seen"] == plain["control"]
    assert plain["links_seen"] == tuple((lane,) * engine.parties for lane in plain["links"])
    listened = [*plain["control"], *(address for lane in plain["links"] for address in lane)]
    assert len(set(listened)) == len(listened) == len(engine.pairs) + engine.parties * engine.lanes
    shaped, routes = plan_addresses(port, parse_network("wan"), engine)
    behind = {here: (there, dialing, listening) for here, there, dialing, listening in routes}
    assert len(behind) == len(routes)
    for (first, second), here, seen in zip(engine.pairs, shaped["control"], shaped["control_seen"], strict=True):
        assert behind.pop(seen) == (here, second, first)
    for lane, views in zip(shaped["links"], shaped["links_seen"], strict=True):
        for viewer, view in enumerate(views):
            for rank, seen in enumerate(view):
                assert seen == lane[rank] if rank == viewer else behind.pop(seen) == (lane[rank], viewer, rank)
    assert behind == {}


@pytest.mark.parametrize(("flags", "reason"), [
    (["--images", "6"], "invalid images=6: expected at most the 5"),
    (["--images", "2", "--batch", "3"], "invalid batch=3: expected at most 2"),
    (["--batch", "6"], "invalid batch=6: expected at most 5"),  # all images of a bundle that has fewer than the default
    (["--images", "2", "--out", "{file}"], "invalid out='{file}/trained': expected a folder"),
])
def test_an_impossible_run_is_refused_in_one_line(tmp_path, capsys, flags, reason):
    save_bundle(tmp_path, *make_net(RESIDUAL))
    file = str(tmp_path / "graph.json")
    assert main(["run", str(tmp_path), *(flag.format(file=file) for flag in flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {reason.format(file=file)}")


def test_a_file_in_the_place_of_a_bundle_is_none(tmp_path, capsys):
    save_bundle(tmp_path, *make_net(RESIDUAL))
    assert main(["cost", str(tmp_path / "graph.json")]) == 2
    assert "graph.json/graph.json is missing: this is no bundle" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["0", "-1", "many", "1.5", "1" + "0" * 18, "9" * 5000])
def test_counts_are_whole_numbers_from_one(capsys, count):
    with pytest.raises(SystemExit):
        main(["run", "bundle", "--images", count])
    assert f"invalid '{count[:40]}': expected a whole number from 1 to 1,000,000" in capsys.readouterr().err


@pytest.mark.parametrize(("shape", "counted"), [
    ((8, 9, 64), 313_864), ((16, 72, 16), 624_840), ((16, 144, 16), 624_840), ((10, 16, 1), 312_460),
    ((16, 27, 1024), 881_500), ((16, 144, 1024), 878_600), ((32, 16, 256), 441_700), ((64, 288, 64), 809_800),
    ((64, 576, 64), 1_179_700), ((64, 32, 64), 439_800), ((10, 64, 1), 312_460),
])
def test_cheetah_products_are_near_what_the_engine_sent(shape, counted):
    assert matrix_product(*shape) == pytest.approx(counted, rel=0.06)


def test_totals_add_up():
    graph, _, _ = make_net(EVERYTHING)
    slow = Network("slow", 10.0, 8.0)
    for name, found in estimate(graph, FIXED, [parse_network("loopback"), slow]).items():
        by_layer = sum(row["bytes"] for row in found["by_layer"])
        assert by_layer == sum(found["by_kind"].values())
        parties = find_engine(name).parties
        # The others hold all components but one each of the image, and send the client theirs of the logits.
        assert found["bytes"] == by_layer + 8 * (parties - 1) ** 2 * (2 * 6 * 6 + 3)
        assert found["link_seconds"]["loopback"] == 0
        rounds = found["rounds"] or 0
        assert found["link_seconds"]["slow"] == pytest.approx(rounds * 0.01 + found["bytes"] / parties / 1e6, rel=1e-4)


def test_rounds_fall_only_if_a_layer_has_no_relu_left():
    graph, _, _ = make_net(RESIDUAL, kept=0.1)
    all_relu, trained, no_relu = (estimate(with_masking(graph, v), FIXED, [])["spu-semi2k"]
                                  for v in ("all_relu", "trained", "no_relu"))
    assert all_relu["bytes"] > trained["bytes"] > no_relu["bytes"]
    assert trained["rounds"] == all_relu["rounds"] > no_relu["rounds"]  # polynomials are computed meanwhile


def test_an_emptied_layer_has_no_rounds_of_comparison():
    graph, _, _ = make_net(RESIDUAL)
    emptied = replace(graph, public={**graph.public, "relu2/mask": np.zeros_like(graph.public["relu2/mask"])})
    before, after = (estimate(g, FIXED, [])["spu-semi2k"] for g in (graph, emptied))
    assert after["layers_with_relu"] == before["layers_with_relu"] - 1
    assert {row["kind"] for row in after["by_layer"] if row["layer"] == "relu2"} == {"polynomial", "other"}
    assert before["rounds"] - after["rounds"] == 8 - 2  # its quadratics no longer hide behind comparisons


def test_command_prints_every_engine(tmp_path, capsys):
    save_bundle(tmp_path, *make_net(RESIDUAL))
    assert main(["cost", str(tmp_path), "--net", "wan", "--layers"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert set(found) == {"all_relu", "trained", "no_relu"}
    assert found["trained"]["spu-semi2k"]["bytes"] > 0 and found["trained"]["spu-cheetah"]["rounds"] is None


@pytest.mark.parametrize("text", ["", "lann", "1:0", "-1:10", "1:2:3", "nan:1", "1:1e-300", "1:1e7"])
def test_bad_networks_are_refused(text):
    with pytest.raises(ValueError, match="DELAY_MS:MBIT"):
        parse_network(text)


def test_the_number_of_pixels_is_the_number_of_prices():
    graph, _, _ = make_net(EVERYTHING)
    for step in lower(graph, FIXED).steps:
        if step.gate is not None:
            assert len(step.gate.order) == prod(step.out_shape)
