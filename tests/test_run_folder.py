"""What a run folder is kept from, and what it holds."""

import dataclasses
import json
import shutil

import pytest
import torch
from conftest import autorep_config, baseline_config, last, rows, stop_after

from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.search.price import TracedPrices
from autorep.training.fit import fit
from autorep.training.resuming import find_checkpoint

pytestmark = pytest.mark.slow


def test_a_folder_in_use_and_another_configuration_are_refused(baseline):
    config = baseline_config(baseline.parents[2])
    with pytest.raises(ValueError, match="already holds a run"):
        fit(config)
    with pytest.raises(ValueError, match=r"seed 0, 1"):
        fit(dataclasses.replace(config, seed=1, resume="auto"))
    before = (baseline / "last.pth.tar").stat().st_mtime_ns
    assert fit(dataclasses.replace(config, resume="auto", gpu="cpu", print_freq=7))["finished"]
    assert (baseline / "last.pth.tar").stat().st_mtime_ns == before


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    names = (".last.pth.tar.4711", ".sweep.lock", "sweep.log")
    for name in names:
        (tmp_path / name).touch()
    with RunFolder(tmp_path).locked():
        assert {path.name for path in tmp_path.iterdir()} == {".lock", *names[1:]}


def test_two_processes_cannot_write_one_folder(tmp_path):
    config = baseline_config(tmp_path, epochs=1)
    with RunFolder.of(config).locked(), pytest.raises(ValueError, match="another process is writing"):
        fit(config)
    assert fit(config)["finished"]  # the lock does not outlive its holder


def test_going_on_from_a_copy_elsewhere_makes_a_whole_folder(baseline, tmp_path, monkeypatch):
    config = autorep_config(tmp_path / "first", baseline / "last.pth.tar")
    with monkeypatch.context() as patch:
        stop_after(patch, 30)
        fit(config)
    source = RunFolder.of(config).last
    copy = dataclasses.replace(config, out_dir=str(tmp_path / "second"), resume=str(source))
    with monkeypatch.context() as patch:
        stop_after(patch, 31)
        fit(copy)
    assert {p.name for p in RunFolder.of(copy).path.iterdir()} >= {"last.pth.tar", "best.pth.tar"}
    assert last(copy)["step"] == 31
    with pytest.raises(ValueError, match="further along"):
        fit(copy)
    assert fit(dataclasses.replace(copy, resume="auto"))["finished"]
    steps = [row["step"] for row in rows(copy) if "loss" in row]
    assert steps[0] <= 30 and steps == sorted(steps)


def test_a_run_does_not_resume_with_other_weights_under_the_same_name(baseline, tmp_path, monkeypatch):
    teacher = shutil.copy(baseline / "last.pth.tar", tmp_path / "dense.pth")
    config = autorep_config(tmp_path, teacher)
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        fit(config)
    resumed = dataclasses.replace(config, resume="auto")
    dense = checkpoint.load(teacher)
    checkpoint.save(teacher, dense | {"model": {name: value * 2 for name, value in dense["model"].items()}})
    with pytest.raises(ValueError, match="began with other weights .* `model.pretrained_path`, `distill.teacher_path`"):
        fit(resumed)
    checkpoint.save(teacher, dense | {"seconds": dense["seconds"] + 1.5})  # trained again, in other time
    assert find_checkpoint(resumed, RunFolder.of(config))
    older = last(config)
    assert older.pop("weight_sums")
    checkpoint.save(RunFolder.of(config).last, older)
    assert fit(resumed)["finished"]
    teacher.unlink()
    assert fit(resumed)["finished"]


def test_a_best_checkpoint_of_another_epoch_or_run_is_left_out(baseline, tmp_path):
    config = baseline_config(tmp_path / "new", resume=str(tmp_path / "old" / "last.pth.tar"))
    shutil.copytree(baseline, tmp_path / "old")
    payload = checkpoint.load(baseline / "best.pth.tar")
    checkpoint.save(tmp_path / "old" / "best.pth.tar", payload | {"step": payload["step"] + 1})
    with pytest.warns(UserWarning, match=r"old/best.pth.tar is not from step .* of this run"):
        assert "best" not in fit(config)
    assert not RunFolder.of(config).best.exists()


def test_a_checkpoint_from_elsewhere_does_not_overwrite_another_run(baseline, tmp_path):
    other = dataclasses.replace(baseline_config(tmp_path), seed=1, epochs=1)
    here = baseline_config(tmp_path, epochs=1)
    fit(here)
    before = RunFolder.of(here).last.read_bytes()
    moved = tmp_path / "moved.pth.tar"
    fit(dataclasses.replace(other, out_dir=str(tmp_path / "elsewhere")))
    RunFolder.of(dataclasses.replace(other, out_dir=str(tmp_path / "elsewhere"))).last.rename(moved)
    with pytest.raises(ValueError, match=r"other settings \(there, here\): seed 0, 1"):
        fit(dataclasses.replace(other, resume=str(moved)))
    assert RunFolder.of(here).last.read_bytes() == before


def test_autorep_refuses_to_start_from_random_weights(tmp_path):
    config = autorep_config(tmp_path, "missing.pth.tar")
    with pytest.raises(ValueError, match="starts from a trained network"):
        fit(dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained_path=None)))
    with pytest.raises(FileNotFoundError, match="missing.pth.tar"):
        fit(config)
    assert not RunFolder.of(config).path.exists()


def test_costs_of_private_inference_are_logged_once_an_epoch_and_summarised(baseline, tmp_path):
    config = autorep_config(tmp_path, baseline / "last.pth.tar")
    summary = fit(config)
    logged = [row for row in rows(config) if "mpc/spu-semi2k/bytes" in row]
    assert len(logged) == config.search_epochs + config.epochs
    costs = TracedPrices(checkpoint.build_from(last(config)), torch.zeros(1, 1, 8, 8)).now()["trained"]
    for engine, found in costs.items():
        row = {key.removeprefix(f"mpc/{engine}/"): value for key, value in logged[-1].items() if engine in key}
        short = {"bytes": found["bytes"], "rounds": found["rounds"], "link_seconds": found["link_seconds"]}
        assert summary["mpc"][engine] == short
        assert row["bytes"] == found["bytes"] and row.get("rounds") == found["rounds"]
        assert (row["lan_seconds"], row["wan_seconds"]) == tuple(found["link_seconds"].values())
    assert logged[0]["mpc/spu-semi2k/bytes"] > logged[-1]["mpc/spu-semi2k/bytes"]
    assert "mpc" in json.loads((baseline / "summary.json").read_text())


def test_a_network_that_private_inference_does_not_know_trains_without_its_costs(baseline, tmp_path, monkeypatch,
                                                                                 capsys):
    def refuse(*args):
        raise ValueError("no such operation\nsomewhere")

    monkeypatch.setattr("autorep.mpc.export.trace.trace_model", refuse)
    config = autorep_config(tmp_path, baseline / "last.pth.tar", epochs=0)
    assert "mpc" not in fit(config) and not any("mpc" in key for row in rows(config) for key in row)
    assert capsys.readouterr().out.count("no private-inference prices: no such operation\n") == 1


def test_the_run_folder_explains_itself(baseline):
    names = {p.name for p in baseline.iterdir()}
    assert names >= {"config.json", "environment.json", "metrics.jsonl", "summary.json", "tb", "last.pth.tar",
                     "best.pth.tar"}
    summary = json.loads((baseline / "summary.json").read_text())
    assert summary["selection"] == "last epoch" and summary["best"]["selection"] == "validation top-1"
    assert summary["relu_kept"] == summary["relu_total"] == 4608
