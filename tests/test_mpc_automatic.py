"""The number format where the user names none: local truncation where the ranges make it safe, else exact."""

import json
import re
from dataclasses import replace

import pytest
from mpc_nets import RESIDUAL, make_net

from autorep.mpc import __main__ as command
from autorep.mpc.bundle.files import save_bundle
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.parties.launch import RunError
from autorep.mpc.ring.automatic import automatic_format, format_line
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.local_truncation import MOST_FAILURES, failure_probability

EXACT, LOCAL = FixedPoint(), FixedPoint.of("local")


def ranged(agreement=1.0, **largest):
    """A bundle whose tensors reach these values, and 1 the others."""
    graph, weights, samples = make_net(RESIDUAL, kept=0.9)
    ranges = {name: (0.0, largest.get(name, 1.0)) for name in graph.ranges}
    return replace(graph, ranges=ranges, meta={"local_agreement": agreement}), weights, samples


def between():
    """A bundle that is safe as trained, but not without its ReLUs, whose polynomials are truncated."""
    graph, *rest = ranged()
    as_trained, without = (failure_probability(with_masking(graph, name), LOCAL) for name in ("trained", "no_relu"))
    assert without > 1.1 * as_trained
    scale = 0.95 * MOST_FAILURES / as_trained
    return replace(graph, ranges=dict.fromkeys(graph.ranges, (0.0, scale))), *rest


def test_a_safe_bundle_gets_local_truncation():
    graph, *_ = ranged()
    fixed, why = automatic_format(graph, "spu-semi2k")
    assert fixed == LOCAL and 0 < failure_probability(graph, LOCAL) <= MOST_FAILURES
    line = format_line(graph, fixed, why)
    assert line.startswith("local truncation, with 12 fraction bits and 8 of coefficients, because it saves rounds and "
                           "keeps the class of 100.0 % of the samples; ")
    assert f"at most one image in {1 / failure_probability(graph, LOCAL):,.0f}, --truncation exact on none" in line


@pytest.mark.parametrize(("graph", "engine", "reason"), [
    (ranged(conv1=1e7)[0], "spu-semi2k", r"local would be wrong on up to one image in \d+, more often than one in"),
    (between()[0], "spu-semi2k", "more often than one in 1,000"),
    (ranged(0.98)[0], "spu-semi2k", r"local would keep the class of 98\.0 % of the samples, fewer than 99 %"),
    (ranged(None)[0], "spu-semi2k", "the bundle does not say how many classes local would keep: export it again, with "
                                 "100 images or more"),
    (ranged()[0], "spu-cheetah", "spu-cheetah has no other"), (ranged()[0], "spu-aby3", "spu-aby3 has no other"),
], ids=["large", "large without ReLUs", "coarse", "old", "cheetah", "aby3"])
def test_any_other_gets_exact_truncation_and_hears_why(graph, engine, reason):
    fixed, why = automatic_format(graph, engine)
    assert fixed == EXACT
    assert re.search(f"^exact truncation, .*, because .*{reason}", format_line(graph, fixed, why))


@pytest.mark.parametrize(("largest", "flags", "fixed", "line"), [
    (1, [], LOCAL, "local truncation, with 12 fraction bits and 8 of coefficients, because"),
    (1e7, [], EXACT, "exact truncation, with 16 fraction bits and 16 of coefficients, because local would be wrong"),
    (1, ["--truncation", "exact"], EXACT, "exact truncation, with 16 fraction bits and 16 of coefficients"),
    (1e7, ["--truncation", "local"], LOCAL, "local truncation, with 12 fraction bits and 8 of coefficients; wrong on"),
    (1, ["--fraction_bits", "10"], FixedPoint(10), "exact truncation, with 10 fraction bits and 16 of coefficients"),
])
def test_cost_prices_the_format_and_says_it(tmp_path, capsys, largest, flags, fixed, line):
    graph, weights, samples = ranged(conv1=largest)
    save_bundle(tmp_path, graph, weights, samples)
    assert command.main(["cost", str(tmp_path), "--net", "wan", *flags]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(line)
    found = json.loads(last)["trained"]
    assert found["spu-semi2k"]["rounds"] == estimate(graph, fixed, ())["spu-semi2k"]["rounds"]
    exact = replace(fixed, truncation="exact") if fixed != LOCAL else EXACT
    for other in ("spu-aby3", "spu-cheetah"):  # which have no other
        assert found[other]["bytes"] == estimate(graph, exact, ())[other]["bytes"]


@pytest.mark.parametrize(("flags", "said"), [
    ([], "reached"), (["--compare"], "reached"), (["--truncation", "local"], "reached"),
    (["--truncation", "local", "--compare"], "more often than one in 1,000"),
    (["--truncation", "local", "--engine", "spu-cheetah"], "invalid --truncation local under spu-cheetah"),
])
def test_a_run_is_refused_if_any_of_its_maskings_does_not_fit(tmp_path, capsys, monkeypatch, flags, said):
    def run_task(bundle, masking, engine, network, fixed, **settings):
        assert fixed == (LOCAL if "local" in flags else EXACT)
        raise RunError("reached")

    monkeypatch.setattr(command, "run_task", run_task)
    save_bundle(tmp_path, *between())
    assert command.main(["run", str(tmp_path), "--images", "1", *flags]) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert ("exact truncation, with" in output.out) == ("local" not in flags)
