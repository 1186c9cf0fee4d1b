"""Local seconds: rates that are fitted to measured units, and what an estimate says with them."""

import json
from dataclasses import replace

import pytest
from mpc_nets import EVERYTHING, RESIDUAL, make_net

from autorep.mpc.__main__ import main
from autorep.mpc.bundle.files import load_graph, save_bundle
from autorep.mpc.bundle.graph import fingerprint
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.cost import estimate as estimating
from autorep.mpc.cost.local import LocalRates, Work, fit_rates, load_rates, local_work, save_rates
from autorep.mpc.engines import parse_network
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.program import units
from autorep.mpc.tables import TITLES

FIXED = FixedPoint()
RATES = LocalRates("spu-semi2k", "a machine", Work(1e-3, 1e-8, 3e-6, 5e-7, 2e-7, 4e-3))


def plan_of(*graphs):
    return [unit for graph in graphs for name in TITLES for unit in units(lower(with_masking(graph, name), FIXED))]


def test_rates_are_found_again_from_the_seconds_that_they_give():
    plan = plan_of(make_net(RESIDUAL)[0], make_net(EVERYTHING)[0])
    found = fit_rates("spu-semi2k", "a machine", plan, [RATES.seconds(unit, FIXED) for unit in plan])
    assert found.seconds_per.array() == pytest.approx(RATES.seconds_per.array(), rel=1e-6)
    with pytest.raises(ValueError, match="do not determine"):
        fit_rates("spu-semi2k", "a machine", plan[:3], [0.1] * 3)


def test_work_counts_what_a_unit_computes():
    graph, _, _ = make_net(RESIDUAL)
    found = {(unit.part, unit.step.op.name): local_work(unit, True) for unit in units(lower(graph, FIXED))}
    conv = next(work for (part, _), work in found.items() if part == "conv")
    every_tap = 9 * 8 * 8
    assert conv == Work(operations=1, truncations=4 * 6 * 6, multiplications=4 * 2 * every_tap / 1e6,
                        moves=(4 + 2) * every_tap)
    for (part, _), work in found.items():
        assert (work.comparisons > 0) == (part in ("kept", "max_pool"))
        assert (work.operations == 0) == part.startswith(("pick", "join", "add", "flatten", "concat"))


def test_a_table_of_rates_is_an_estimate_of_seconds(tmp_path, monkeypatch):
    save_rates(tmp_path / "rates.json", [RATES])
    monkeypatch.setattr(estimating, "load_rates", lambda: load_rates(tmp_path / "rates.json"))
    graph, _, _ = make_net(RESIDUAL)
    found = estimating.estimate(graph, FIXED, [])
    expected = sum(RATES.seconds(unit, FIXED) for unit in units(lower(graph, FIXED)))
    assert found["spu-semi2k"]["local_seconds"] == pytest.approx(expected, rel=1e-12)
    assert found["spu-cheetah"]["local_seconds"] is None  # of which the table says nothing


PER_ROUND = 0.002


def report_of(bundle, network):
    """What a run would report if RATES and PER_ROUND were true."""
    variants = {}
    for name in TITLES:
        graph = with_masking(load_graph(bundle), name)
        rows = [{"kind": unit.price_kind, "seconds": RATES.seconds(unit, FIXED)} for unit in units(lower(graph, FIXED))]
        found = estimating.estimate(graph, FIXED, [network])["spu-semi2k"]
        seconds = found["link_seconds"][network.name] + sum(row["seconds"] for row in rows)
        variants[name] = {"by_layer": [*rows, {"kind": "input and output", "seconds": 0.0}],
                          "seconds": {"median": seconds + network.shaped * PER_ROUND * found["rounds"]}}
    link = {"name": network.name, "delay_ms": network.delay_ms, "mbit": network.mbit if network.shaped else None}
    return {"net": link, "bundle": str(bundle), "engine": "spu-semi2k", "fraction_bits": 16, "truncation_bits": 32,
            "batch": 1, "variants": variants}


@pytest.fixture
def rates_of(tmp_path):
    """Runs the command for reports, and gives the file of the rates."""
    graph, weights, samples = make_net(EVERYTHING)
    save_bundle(tmp_path / "bundle", graph, weights, samples)

    def rates_of(*links, code=0, **changes):
        paths = [tmp_path / f"{link}.json".replace(":", "-") for link in links]
        for link, path in zip(links, paths, strict=True):
            path.write_text(json.dumps(report_of(tmp_path / "bundle", parse_network(link)) | changes))
        out = tmp_path / "rates.json"
        assert main(["rates", *map(str, paths), "--machine", "a machine", "--out", str(out)]) == code
        return out

    return rates_of


def test_the_command_finds_the_rates_and_what_a_round_takes_beyond_its_delay(rates_of, monkeypatch):
    graph, _, _ = make_net(EVERYTHING)
    out = rates_of("loopback", "wan", "5:100")
    found = load_rates(out)["spu-semi2k"]
    fitted, true = (sum(each.seconds(unit, FIXED) for unit in plan_of(graph)) for each in (found, RATES))
    assert fitted == pytest.approx(true) and found.per_round == pytest.approx(PER_ROUND)
    monkeypatch.setattr(estimating, "load_rates", lambda: load_rates(out))
    for link in ("loopback", "lan"):
        network = parse_network(link)
        expected = report_of(out.with_name("bundle"), network)["variants"]["trained"]["seconds"]["median"]
        assert estimating.estimate(graph, FIXED, [network])["spu-semi2k"]["seconds"][link] == pytest.approx(expected)
    assert estimating.estimate(graph, FIXED, [network])["spu-cheetah"]["seconds"] == {"lan": None}


def test_the_rates_of_other_engines_stay(rates_of, tmp_path):
    save_rates(tmp_path / "rates.json", [replace(RATES, engine="spu-aby3")])
    found = load_rates(rates_of("loopback"))
    assert found["spu-aby3"] == replace(RATES, engine="spu-aby3") and found["spu-semi2k"].machine == "a machine"


@pytest.mark.parametrize(("machine", "per_round"), [("a machine", PER_ROUND), ("another", 0.0)])
def test_without_another_link_a_round_takes_what_it_took_on_the_same_machine(rates_of, tmp_path, machine, per_round):
    save_rates(tmp_path / "rates.json", [replace(RATES, machine=machine, per_round=PER_ROUND)])
    assert load_rates(rates_of("loopback"))["spu-semi2k"].per_round == per_round


def test_a_report_of_a_bundle_that_was_exported_again_is_refused(rates_of, tmp_path, capsys):
    ran = fingerprint(load_graph(tmp_path / "bundle"))
    assert rates_of("loopback", fingerprint=ran).exists()
    (tmp_path / "rates.json").unlink()
    save_bundle(tmp_path / "bundle", *make_net(RESIDUAL))
    assert not rates_of("loopback", code=2, fingerprint=ran).exists()
    assert "expected the one that ran, but it was exported again since" in capsys.readouterr().err


def test_without_another_link_a_round_takes_its_delay(rates_of):
    assert load_rates(rates_of("loopback"))["spu-semi2k"].per_round == 0


@pytest.mark.parametrize(("links", "changes", "said"), [
    (["wan"], {}, "no run of spu-semi2k on loopback"),
    (["loopback"], {"truncation": "local"}, "expected one with --truncation exact"),
    (["loopback"], {"batch": 4}, "a run with 4 images a query"),
])
def test_reports_that_do_not_do_are_refused(rates_of, capsys, links, changes, said):
    assert not rates_of(*links, code=2, **changes).exists()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "said"), [
    ({"engine": "spu-foo"}, "loopback.json: invalid engine='spu-foo'"),
    ({"engine": []}, "loopback.json is no report of a run"),
    ({"variants": [1, 2]}, "loopback.json is no report of a run"),
    ({"variants": {"trained": {}}}, "loopback.json is no report of a run"),
    ({"variants": {"trained": {"by_layer": []}}}, "measured 0 units, expected the "),
    ({"variants": {"foo": {"by_layer": []}}}, "loopback.json: invalid masking='foo'"),
    ({"net": {"name": "wan", "delay_ms": [], "mbit": 1}}, "loopback.json is no report of a run"),
    ({"fraction_bits": 99}, "loopback.json: invalid fraction_bits=99"),
])
def test_a_report_that_misses_something_is_named_in_one_line(rates_of, capsys, changes, said):
    assert not rates_of("loopback", code=2, **changes).exists()
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": 1}', '[{"engine": "spu-semi2k"}]'])
def test_a_damaged_table_is_named_in_one_line(rates_of, tmp_path, capsys, content):
    (tmp_path / "rates.json").write_text(content)
    assert rates_of("loopback", code=2).read_text() == content
    error = capsys.readouterr().err
    assert f"{tmp_path / 'rates.json'} is no table of rates" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["", "nothing"])
def test_a_report_that_cannot_be_read_is_named(tmp_path, capsys, name):
    assert main(["rates", str(tmp_path / name), "--machine", "m", "--out", str(tmp_path / "rates.json")]) == 2
    assert f"{tmp_path / name} cannot be read" in capsys.readouterr().err


def test_what_is_no_report_is_refused(rates_of, capsys):
    out = rates_of("loopback")
    assert main(["rates", str(out), "--machine", "a machine", "--out", str(out)]) == 2
    assert f"{out} is no report of a run" in capsys.readouterr().err


def test_the_shipped_table_names_its_machine():
    for engine, rates in load_rates().items():
        assert rates.engine == engine and rates.machine
        assert (rates.seconds_per.array() >= 0).all()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"{}", b'{"variants": 3}', b"[" * 100_000,
                                     b'{"fraction_bits": 18, "truncation_bits": 36, "net": "wan"}'])
def test_a_damaged_report_is_named_in_one_line(tmp_path, content, capsys):
    (tmp_path / "pi.json").write_bytes(content)
    assert main(["rates", str(tmp_path / "pi.json"), "--machine", "m", "--out", str(tmp_path / "rates.json")]) == 2
    said = capsys.readouterr().err
    assert "pi.json is no report of a run, or is damaged" in said and said.count("\n") == 1
    assert not (tmp_path / "rates.json").exists()
