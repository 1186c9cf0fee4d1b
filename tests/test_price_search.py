"""The search for a price: it never exceeds it, holds what it chose, resumes where it was, and says what it found."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from conftest import assert_same, autorep_config, last, rows, stop_after

from autorep.cli.main import main
from autorep.config import BudgetConfig, DapaConfig, GateConfig
from autorep.convert.swap import convert_relus_
from autorep.evaluate import main as evaluate_main
from autorep.gates.gated_relu import iter_gates
from autorep.models.registry import build_model
from autorep.mpc.cost.gate_prices import IDENTITY, LINEAR, QUADRATIC
from autorep.results import row_of
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.search.kinds import HeldKinds, kinds_of
from autorep.search.price import TracedPrices
from autorep.search.price_model import PriceModel
from autorep.training import build
from autorep.training.fit import fit

WAN = BudgetConfig(price="spu-semi2k:wan", price_budget="0.6")


def model_of(config):
    return checkpoint.build_from(checkpoint.load(RunFolder.of(config).last))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [
    WAN, dataclasses.replace(WAN, price_budget="0.3s"), BudgetConfig(price="spu-cheetah", price_budget="5.5MB"),
    BudgetConfig(price="spu-semi2k:1:20", price_budget="0.5", relu_budget=300),
    BudgetConfig(price="spu-aby3:wan", price_budget="0.6"),
    BudgetConfig(price="spu-semi2k:loopback+computing", price_budget="0.97"),
    dataclasses.replace(WAN, price_budget="0.9", relu_layers=1), dataclasses.replace(WAN, schedule="constant"),
    dataclasses.replace(WAN, anneal_fraction=1.0)], ids=str)
def test_the_result_never_exceeds_its_limits(budget, baseline, tmp_path):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", budget=budget)
    summary, model = fit(config), model_of(config)
    price = PriceModel(model, torch.zeros(1, *model.input_shape), budget)
    assert price.now() <= price.allowed * (1 + 1e-9) and summary["price_used"] == pytest.approx(price.now())
    assert summary["price_allowed"] == price.allowed >= 0.5 * price.floor
    assert summary["relu_kept"] <= (budget.relu_budget or summary["relu_total"])
    assert summary["layers_with_relu"] <= (budget.relu_layers or 7)
    engine, _, link = budget.price.partition(":")
    if link == "wan":  # what the estimate of the whole network says
        assert summary["mpc"][engine]["link_seconds"]["wan"] == pytest.approx(price.now(), rel=1e-6)
    if not link:
        assert summary["mpc"][engine]["bytes"] == pytest.approx(price.now())


@pytest.mark.parametrize(("price", "computing"), [("spu-semi2k:wan", True), ("spu-semi2k", False),
                                                  ("spu-cheetah:wan", False)])
def test_a_price_of_a_link_tells_the_seconds_with_what_the_parties_compute(price, computing):
    model = build_model("resnet8", num_classes=10, in_channels=1, image_size=8)
    example = torch.zeros(1, *model.input_shape)
    convert_relus_(model, example)
    said = str(PriceModel(model, example, BudgetConfig(price=price, price_budget="0.95")))
    assert ("what the parties compute" in said) == computing
    if computing:
        prices = TracedPrices(model, example).now(("all_relu", "no_relu"))
        seconds = [prices[masking]["spu-semi2k"]["seconds"]["wan"] for masking in ("all_relu", "no_relu")]
        for each, state in zip(seconds, ("with all ReLUs", "without"), strict=True):
            assert f"{each:.3g} s {state} " in said.partition(";")[2]
        both = PriceModel(model, example, BudgetConfig(price=f"{price}+computing", price_budget="0.95"))
        assert [both.all_relu, both.floor] == pytest.approx(seconds) and "; the link alone" not in str(both)


@pytest.mark.slow
def test_activations_that_were_left_out_count(baseline, tmp_path, monkeypatch):
    left_open = partial(convert_relus_, filter_fn=lambda module, name: name != "stages.1.0.relu1")  # 512 of 4608
    monkeypatch.setattr(build, "convert_relus_", left_open)
    budget = dataclasses.replace(WAN, price_budget="0.9", relu_budget=700, relu_layers=3)
    summary = fit(autorep_config(tmp_path, baseline / "last.pth.tar", budget=budget))
    assert 512 < summary["relu_kept"] <= 700 and summary["layers_with_relu"] <= 3


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(2, 5), (13, 29)], ids=str)
def test_a_resumed_search_equals_an_uninterrupted_one(stops, baseline, tmp_path, monkeypatch):
    whole = autorep_config(tmp_path / "whole", baseline / "last.pth.tar", budget=WAN)
    fit(whole)
    cut = dataclasses.replace(whole, out_dir=str(tmp_path / "cut"), resume="auto")
    for stop in stops:
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            fit(cut)
    fit(cut)
    for name in ("model", "state", "step", "rng", "best", "search"):
        assert_same(last(cut)[name], last(whole)[name])


@pytest.mark.slow
def test_kinds_stand_in_the_rest_of_the_search_and_in_fine_tuning(baseline, tmp_path, monkeypatch):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", budget=dataclasses.replace(WAN, price_budget="0.35"))
    found = []
    for stop in (14, 24, None):  # after the price has arrived, in fine-tuning, at the end
        with monkeypatch.context() as patch:
            if stop:
                stop_after(patch, stop)
            fit(dataclasses.replace(config, resume="auto"))
        model = model_of(config)
        found.append({name: (gate.mask, kinds_of(gate)) for name, gate in iter_gates(model)})
    assert_same(found[0], found[1])
    assert_same(found[1], found[2])
    assert len({int(kind) for _, kinds in found[0].values() for kind in kinds}) > 1


def test_held_kinds_take_no_gradient_and_do_not_move():

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU())
    convert_relus_(net, torch.zeros(1, 1, 5, 5), GateConfig())
    [(_, gate)] = iter_gates(net)
    kinds, given = torch.tensor([IDENTITY, LINEAR, QUADRATIC]), torch.tensor([[0.1, 0.5, 0.2]] * 3)
    held = HeldKinds(net)
    held.set_(gate, given, kinds)
    assert gate.coefficients.tolist() == torch.tensor([[0, 1, 0], [0.1, 0.5, 0], [0.1, 0.5, 0.2]]).tolist()
    gate.mask.fill_(False)
    net(torch.randn(4, 1, 5, 5)).square().sum().backward()
    assert (gate.coefficients.grad == 0).tolist() == [[True] * 3, [False, False, True], [False] * 3]
    with torch.no_grad():
        gate.coefficients += 1  # what momentum does
    held.hold_()
    assert torch.equal(kinds_of(gate), kinds) and gate.coefficients[2].tolist() == pytest.approx([1.1, 1.5, 1.2])


def test_a_budget_says_what_is_wrong_with_it(capsys, baseline):
    common = ["--arch", "resnet8", "--dataset", "digits", "--gpu", "cpu", "--pretrained_path",
              str(baseline / "last.pth.tar"), "--dry_run"]
    cases = [
        (["--price", "spu-semi2k:wan", "--price_budget", "0.01"], "invalid --price_budget=0.01: expected from 0.281 ("),
        (["--price", "spu-semi2k:wan", "--price_budget", "4MB"], "is a price in seconds"),
        (["--price", "spu-semi2k", "--price_budget", "4s"], "is a price in bytes"),
        (["--price", "spu-semi2k:wan", "--price_budget", "100s"], "to 1 (0.7969 s), with every ReLU"),
        (["--price", "spu-semi2k:", "--price_budget", "0.5"], "expected a link after the colon"),
        (["--price", "spu-semi2k:loopback", "--price_budget", "0.5"], "on loopback the link takes no time"),
        (["--price", "aby3:wan", "--price_budget", "0.5"],
         "invalid --price=aby3:wan: expected ENGINE or ENGINE:LINK (invalid engine='aby3': expected one of"),
        (["--price", "spu-semi2k:fast", "--price_budget", "0.5"], "expected loopback, lan, wan, or DELAY_MS:MBIT"),
        (["--price", "spu-semi2k:wan", "--price_budget", "1.5"], "expected a share such as 0.5"),
        (["--price", "spu-semi2k:wan"], "invalid --price_budget=None"),
        (["--ReLU_count", "1", "--price_budget", "0.5"], "invalid --price_budget=0.5: expected an amount with"),
        (["--price", "spu-semi2k:wan", "--price_budget", "0.5", "--act_type", "ReLU_masked_relay"], "--act_type")]
    for argv, message in cases:
        with pytest.raises(SystemExit):
            main("autorep", [*common, *argv])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    main("autorep", [*common, "--price", "spu-semi2k:wan", "--price_budget", "0.5"])
    assert "0.7969 s with all ReLUs, 0.3985 s allowed (0.500)" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_run_cost_is_in_its_log_its_row_and_its_evaluation(baseline, tmp_path, capsys):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", budget=WAN, epochs=0)
    summary = fit(config)
    logged = [row for row in rows(config) if "price" in row]
    assert [row["price"] <= row["price_allowed"] * (1 + 1e-9) for row in logged] == [True] * len(logged)
    assert logged[-1]["price"] == pytest.approx(summary["price_used"])
    row = row_of(RunFolder.of(config))
    assert (row["price"], row["price_budget"], row["relu_budget"]) == ("spu-semi2k:wan", "0.6", "")
    assert float(row["price_used"]) == pytest.approx(summary["price_used"], rel=1e-5)
    evaluate_main(["--checkpoint", str(RunFolder.of(config).last), "--gpu", "cpu"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["price"]
    assert found == {"allowed": summary["price_allowed"], "used": summary["price_used"], "unit": "seconds"}


def test_a_price_needs_fitted_polynomials_of_degree_one_or_two():
    with pytest.raises(ValueError, match="price"):
        autorep_config("x", "y", budget=WAN, gate=GateConfig(degree=3), dapa=DapaConfig())
