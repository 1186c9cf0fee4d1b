"""The loop: resumed runs equal uninterrupted ones, budgets hold, non-finite losses stop before the update."""

import copy
import dataclasses
import json
import re
import warnings

import pytest
import torch
from conftest import assert_same, autorep_config, baseline_config, last, rows, stop_after
from torchvision.models.resnet import BasicBlock

from autorep.act_types import gate_of
from autorep.config import BudgetConfig, DapaConfig, GateConfig, OptimConfig
from autorep.convert.swap import convert_relus_
from autorep.data.loader import make_loaders
from autorep.models.registry import build_model
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.search.budget import relu_layers_at
from autorep.training import fit as run
from autorep.training import searching, trainer
from autorep.training.accuracy import evaluate
from autorep.training.averaging import WeightAverage
from autorep.training.divergence import grown_layer
from autorep.training.fit import fit
from autorep.training.phases import plan_phases
from autorep.training.trainer import Trainer

pytestmark = pytest.mark.slow
OPTIONS = {"gate": GateConfig(replacement="dapa", score_init="saliency"),
           "budget": BudgetConfig(relu_budget=230, relu_layers=3),
           "optim": OptimConfig(optimizer="adam", lr=2e-3, score_lr=0.01, ema_decay=0.9)}
FEW_LAYERS = {"budget": BudgetConfig(relu_budget=230, relu_layers=2)}
PENALTY_ALONE = BudgetConfig(relu_budget=230, schedule="constant")  # which is too slow where scores are


@pytest.mark.parametrize(("stops", "changes"), [((3, 14), {}), ((9, 27), {}), ((19, 33), {}), ((4, 31), OPTIONS),
                                                ((23, 25), FEW_LAYERS)], ids=str)
def test_a_resumed_search_and_fine_tuning_equal_an_uninterrupted_run(stops, changes, baseline, tmp_path, monkeypatch):
    whole = autorep_config(tmp_path / "whole", baseline / "last.pth.tar", **changes)
    assert fit(whole)["layers_with_relu"] <= (whole.budget.relu_layers or 7)
    cut = dataclasses.replace(whole, out_dir=str(tmp_path / "cut"), resume="auto")
    for stop in stops:
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            assert fit(cut)["finished"] is False and last(cut)["step"] == stop
    assert fit(cut)["finished"]
    ours, theirs = last(cut), last(whole)
    for name in ("model", "state", "step", "rng", "search", "best"):
        assert_same(ours[name], theirs[name])
    steps = [row["step"] for row in rows(cut)]
    assert steps == sorted(steps) and {r["step"] for r in rows(whole)} | set(stops) == set(steps)
    flips = [sum(row.get("flips", 0) for row in rows(config)) for config in (cut, whole)]
    assert flips[0] == flips[1] > 0  # nothing that happened before a cut is lost


def test_ranks_that_go_on_draw_apart(baseline, monkeypatch):
    saved = checkpoint.load(baseline / "last.pth.tar")
    draws = []
    for rank in (0, 1, 2, 1):
        monkeypatch.setattr(trainer, "rank", lambda rank=rank: rank)
        going_on = run._build_trainer(baseline_config(baseline), RunFolder(baseline), torch.device("cpu"))
        going_on.resume_(saved)
        draws.append(torch.rand(()).item())
    assert draws[1] == draws[3] and len(set(draws)) == 3
    checkpoint.set_rng_state(saved["rng"], torch.device("cpu"))
    assert draws[0] == torch.rand(()).item()


def test_the_result_holds_the_budget_and_the_best_too(baseline, tmp_path):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", epochs=1, budget=PENALTY_ALONE)
    too_slow = dataclasses.replace(config.optim, score_lr=0.01)
    config = dataclasses.replace(config, optim=too_slow)
    summary = fit(config)
    assert summary["relu_kept"] == 230 and summary["relus_dropped_by_projection"] > 0
    for name in ("last.pth.tar", "best.pth.tar"):
        saved = checkpoint.load(RunFolder.of(config).path / name)["model"]
        masks = [value for key, value in saved.items() if key.endswith(".mask")]
        assert sum(int(m.sum()) for m in masks) <= 230
    assert json.loads((RunFolder.of(config).path / "summary.json").read_text()) == summary


def test_a_teacher_that_always_sees_the_same_images_sees_them_once(baseline, tmp_path, monkeypatch):
    config = autorep_config(tmp_path / "kept", baseline / "last.pth.tar")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=False))
    with monkeypatch.context() as patch:
        patch.setattr(run.ArrayLoader, "add_teacher_logits_", lambda self, logits: None)
        fit(dataclasses.replace(config, out_dir=str(tmp_path / "asked")))
    seen, build = [], run.build_objective
    train_images = run.make_loaders("digits", None, 128, device="cpu", seed=0).train.num_images

    def counting(*args):
        objective = build(*args)
        objective.teacher.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        return objective

    monkeypatch.setattr(run, "build_objective", counting)
    fit(config)
    assert sum(seen) == train_images
    ours, theirs = last(config), last(dataclasses.replace(config, out_dir=str(tmp_path / "asked")))
    for name, value in theirs["model"].items():
        if name.endswith("mask"):
            assert torch.equal(ours["model"][name], value)
        else:
            torch.testing.assert_close(ours["model"][name], value, rtol=1e-4, atol=1e-5)


def test_no_more_layers_hold_a_relu_than_are_allowed_and_the_others_take_the_budget(baseline, tmp_path):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", budget=BudgetConfig(relu_budget=230, relu_layers=2))
    summary = fit(config)
    assert summary["layers_with_relu"] <= summary["relu_layers"] == 2 and 207 <= summary["relu_kept"] <= 230
    search = [row for row in rows(config) if "relu_layers_target" in row]
    num_steps = last(config)["num_steps"] * 3 // 5
    assert all(row["layers_with_relu"] <= relu_layers_at(row["step"] - 1, num_steps, 7, config.budget)
               for row in search)
    assert [search[i]["relu_layers_target"] for i in (0, -1)] == [7, 2] and search[0]["layers_with_relu"] == 7
    best = checkpoint.load(RunFolder.of(config).best)["model"]
    assert sum(bool(mask.any()) for name, mask in best.items() if name.endswith(".mask")) <= 2


@pytest.mark.parametrize("act_type", ["ReLU_masked", "ReLU_masked_relay", "ReLU_masked_autopoly_relay"])
def test_every_act_type_reaches_its_budget(act_type, baseline, tmp_path):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", dapa=None, epochs=0,
                            gate=gate_of(act_type, score_init="uniform"))
    summary = fit(config)
    assert 207 <= summary["relu_kept"] <= 230  # not one more, and nearly all of them are used
    coefficients = [v for k, v in last(config)["model"].items() if k.endswith(".coefficients")]
    moved = any(not torch.equal(c[:, 1], torch.ones(len(c))) for c in coefficients)
    assert moved == (act_type == "ReLU_masked_autopoly_relay")


def test_a_kill_between_the_last_step_and_the_projection_loses_neither(baseline, tmp_path, monkeypatch):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", epochs=0, budget=PENALTY_ALONE)
    too_slow = dataclasses.replace(config.optim, score_lr=0.01)
    config = dataclasses.replace(config, optim=too_slow, resume="auto")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "SAVE_EVERY_SECONDS", 0.0)
        patch.setattr(Trainer, "_leave", lambda self, phase: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(config)
    assert fit(config)["relu_kept"] == 230


def test_a_signal_while_the_ranks_agree_stops_at_the_next_step(tmp_path, monkeypatch):
    signalled = []

    def agree(wish):  # as `any_rank`, but at step 3 the signal comes after this rank has said what it wishes
        if seen[-1].step == 3 and not signalled:
            signalled.append(True)
            seen[-1]._request_stop()
        return wish

    seen, original = [], Trainer._should_stop
    monkeypatch.setattr(Trainer, "_should_stop", lambda self: seen.append(self) or original(self))
    monkeypatch.setattr(trainer, "any_rank", agree)
    summary = fit(baseline_config(tmp_path))
    assert (summary["finished"], summary["step"]) == (False, 4)


@pytest.mark.filterwarnings("error:training diverged")
def test_a_loss_that_rises_because_relus_are_dropped_is_no_divergence(baseline, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_DIVERGED", 1.5)
    config = autorep_config(tmp_path, baseline / "last.pth.tar", search_epochs=1, epochs=0, print_freq=1,
                            budget=BudgetConfig(relu_budget=0), dapa=None, gate=GateConfig(replacement="identity"))
    fit(config)
    losses = [row["loss"] for row in rows(config) if "loss" in row]
    assert losses[-1] > 1.5 * losses[0]


def test_masks_do_not_move_in_fine_tuning(baseline, tmp_path, monkeypatch):
    config = autorep_config(tmp_path, baseline / "last.pth.tar")
    search_end = plan_phases(config, 9)[0].end
    stop_after(monkeypatch, search_end)
    fit(config)
    searched = last(config)
    monkeypatch.undo()
    fit(dataclasses.replace(config, resume="auto"))
    for name, value in last(config)["model"].items():
        if name.endswith(("mask", "score")):
            assert torch.equal(value, searched["model"][name])


def test_the_average_of_the_weights_is_what_is_saved_chosen_and_reported(tmp_path):
    config = baseline_config(tmp_path, epochs=2, optim=OptimConfig(lr=0.02, ema_decay=0.9))
    summary = fit(config)
    loaders = make_loaders("digits", None, 128, device="cpu", seed=0)
    model = checkpoint.build_from(last(config))
    assert evaluate(model, loaders.test).loss == summary["test_loss"]
    best = checkpoint.build_from(checkpoint.load(RunFolder.of(config).best))
    assert evaluate(best, loaders.validation).top1 == summary["best"]["validation_top1"]
    WeightAverage(model, 0.9).load_state_dict(last(config)["state"]["average"])
    assert evaluate(model, loaders.test).loss != summary["test_loss"]  # what training would go on with


def test_fine_tuning_starts_from_a_searched_checkpoint(baseline, tmp_path):
    config = autorep_config(tmp_path, baseline / "last.pth.tar", epochs=0)
    fit(config)
    searched = RunFolder.of(config).last
    smaller = BudgetConfig(relu_budget=100)
    tuned = autorep_config(tmp_path, baseline / "last.pth.tar", search_epochs=0, epochs=1, ext="tuned", budget=smaller,
                           checkpoint_path=str(searched))
    assert fit(tuned)["relu_kept"] == 100  # a smaller budget than was searched for still holds


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    config = baseline_config(tmp_path)
    seen = []
    original = Trainer._train_step

    def poisoned(self, phase, batch):
        seen.append(self)
        if self.step == 4:
            self.before = {k: v.clone() for k, v in self.model.named_parameters()}
            batch = batch._replace(images=batch.images * float("nan"))
        return original(self, phase, batch)

    monkeypatch.setattr(Trainer, "_train_step", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 4: not finite \(loss=nan, ce=nan.* are those of the images"):
        fit(config)
    assert all(torch.equal(seen[-1].before[k], v) for k, v in seen[-1].model.named_parameters())


@pytest.mark.parametrize(("poisoned", "finishes"), [((4,), True), ((4, 5, 6), True), ((4, 5, 6, 7), False)])
def test_a_search_skips_a_few_batches_that_are_not_finite(baseline, tmp_path, monkeypatch, capsys, poisoned, finishes):
    config = autorep_config(tmp_path, baseline / "last.pth.tar")
    original, weights = Trainer._train_step, {}

    def step(self, phase, batch):
        if self.step in poisoned:
            batch = batch._replace(images=batch.images * float("nan"))
        result = original(self, phase, batch)
        weights[self.step] = next(self.model.parameters()).detach().clone()
        assert all(buffer.isfinite().all() for buffer in self.model.buffers())
        return result

    monkeypatch.setattr(Trainer, "_train_step", step)
    if finishes:
        assert fit(config)["finished"]
        assert torch.equal(weights[poisoned[-1]], weights[3]) and not torch.equal(weights[poisoned[-1] + 1], weights[3])
        assert capsys.readouterr().out.count("skipped: not finite") == len(poisoned)
    else:
        with pytest.raises(FloatingPointError, match="step 7: not finite"):
            fit(config)


def test_without_ranges_an_overshoot_on_the_images_for_calibration_ends_no_run(baseline, tmp_path, monkeypatch):
    recorded = []

    def record(*args, **kwargs):
        if recorded:
            raise ValueError("not finite")
        recorded.append(searching_record(*args, **kwargs))
        return recorded[0]

    searching_record = searching.record
    monkeypatch.setattr(searching, "record", record)
    config = autorep_config(tmp_path, baseline / "last.pth.tar", dapa=DapaConfig(refit_until=0, range_width=0.0))
    assert fit(config)["finished"] and recorded


def test_a_divergence_names_the_layer_in_which_activations_grew():
    model = build_model("resnet8", in_channels=1, image_size=8)
    images, before = torch.rand(4, 1, 8, 8), copy.deepcopy(model.state_dict())
    assert re.fullmatch(r"the largest activations, [\d.]+, are those of \S+", grown_layer(model, images))
    assert_same(model.state_dict(), before)
    with torch.no_grad():
        model.stages[1][0].bn2.weight.mul_(1e30)
    assert "e+30, are those of stages.1.0.bn2" in grown_layer(model, images)
    with torch.no_grad():
        model.stages[1][0].bn2.weight.mul_(1e30)
    assert grown_layer(model, images) == "the first activations that are not finite are those of stages.1.0.bn2"


def test_looking_for_what_grew_gives_no_warning_of_modules_that_gates_replaced():
    model, images = BasicBlock(3, 3), torch.rand(2, 3, 8, 8)  # its one ReLU runs twice
    convert_relus_(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "are those of" in grown_layer(model, images)


def test_it_can_learn_by_heart(tmp_path, monkeypatch):
    data = dataclasses.replace(baseline_config(tmp_path).data, batch_size=32)
    config = baseline_config(tmp_path, epochs=60, data=data)
    def thirty_two_images(*args, **kwargs):
        loaders = make_loaders(*args, **kwargs)
        loaders.train.plan = dataclasses.replace(loaders.train.plan, num_images=32)
        few = loaders.train.without_augmentation()
        return loaders._replace(test=few, validation=None)

    make_loaders = run.make_loaders
    monkeypatch.setattr(run, "make_loaders", thirty_two_images)
    assert fit(config)["test_top1"] == 100.0


def test_bf16_runs_and_fp16_scaler_resumes(baseline, tmp_path, monkeypatch):
    bf16 = autorep_config(tmp_path, baseline / "last.pth.tar", precision="bf16", epochs=0)
    assert fit(bf16)["finished"]
    half = baseline_config(tmp_path, precision="half", epochs=1, ext="half", optim=OptimConfig(lr=0.01))
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        fit(half)
    assert last(half)["state"]["scaler"]["scale"] > 0
    assert fit(dataclasses.replace(half, resume="auto"))["finished"]

def test_coefficients_are_fitted_where_a_search_starts_and_kept_where_a_checkpoint_has_them(baseline, tmp_path):
    dapa = DapaConfig(calibration_batches=1, refit_every=50, refit_until=500)
    late = autorep_config(tmp_path, baseline / "last.pth.tar", dapa=dapa, start_epoch=1, epochs=0,
                          freeze_coefficients=True)
    fit(late)
    coefficients = {k: v for k, v in last(late)["model"].items() if k.endswith(".coefficients")}
    assert all(v[:, 2].abs().min() > 0 for v in coefficients.values())
    start = str(RunFolder.of(late).last)
    again = dataclasses.replace(late, ext="again", start_epoch=0, checkpoint_path=start)
    fit(again)
    assert all(torch.equal(last(again)["model"][k], v) for k, v in coefficients.items())
