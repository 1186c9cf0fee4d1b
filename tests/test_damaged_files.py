"""What accidents leave in a run folder is one line that names the file; numbers that are not finite are told."""

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import baseline_config

from autorep.config import BudgetConfig, GateConfig, OptimConfig
from autorep.convert.swap import convert_relus_
from autorep.evaluate import main as evaluate_main
from autorep.mpc.__main__ import main as mpc_main
from autorep.results import main as results_main
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.training.fit import fit

pytestmark = pytest.mark.slow
DAMAGES = {"empty": b"", "zeros": bytes(200), "binary": bytes(range(256)), "list": b"[1, 2]", "number": b"3",
           "text": b'"finished"', "null": b"null", "deep": b"[" * 100_000, "cut": None}


def damage(path: Path, how: str) -> None:
    path.write_bytes(path.read_bytes()[:60] if DAMAGES[how] is None else DAMAGES[how])


@pytest.fixture
def folder(baseline, tmp_path):
    return RunFolder(Path(shutil.copytree(baseline, tmp_path / "run")))


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["summary.json", "environment.json", "config.json"])
def test_a_damaged_json_file_is_named_in_one_line(folder, name, how, tmp_path, capsys):
    damage(folder.path / name, how)
    with pytest.raises(SystemExit) as caught:
        results_main([str(tmp_path / "table.csv"), str(folder)])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and name in said and said.count("\n") == 1
    assert not (tmp_path / "table.csv").exists()


def test_a_folder_without_its_environment_has_no_row(folder, tmp_path, capsys):
    (folder.path / "environment.json").unlink()
    with pytest.raises(SystemExit):
        results_main([str(tmp_path / "table.csv"), str(folder)])
    assert "environment.json is missing" in (said := capsys.readouterr().err) and said.count("\n") == 1


@pytest.mark.parametrize("key", ["relu_kept", "test_top1", "selection"])
def test_a_summary_without_a_key_is_named(folder, key):
    summary = folder.read_summary()
    del summary[key]
    folder.summarise_(summary)
    with pytest.raises(ValueError, match=rf"summary.json is damaged .*'{key}'"):
        folder.read_summary()


@pytest.mark.parametrize(("name", "key", "value"), [
    ("summary", "best", None), ("summary", "best", [1]),
    ("summary", "best", {"validation_top1": 9.0, "test_top1": None}), ("summary", "mpc", "x"),
    ("summary", "relu_budget", {}), ("summary", "price_used", None),
    ("environment", "command", []), ("environment", "command", [1, 2]),
    ("config", "data", None), ("config", "gpu", 0), ("config", "epochs", True), ("config", "out_dir", None)])
def test_a_value_of_another_type_is_named(folder, name, key, value, tmp_path, capsys):
    path = folder.path / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(SystemExit):
        results_main([str(tmp_path / "table.csv"), str(folder)])
    said = capsys.readouterr().err
    assert f"{name}.json" in said and key in said and said.count("\n") == 1


def test_damaged_rows_of_metrics_are_left_out_and_counted(folder):
    rows = folder.read_metrics()
    lines = folder.metrics.read_bytes().splitlines()
    lines[1], lines[3] = b"\x00\xff" * 9, b"17"
    folder.metrics.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match="2 damaged rows are left out, the first is line 2"):
        assert folder.read_metrics() == [rows[0], rows[2], *rows[4:]]
    folder.metrics.write_bytes(b"\n".join(lines[4:]) + b'\n{"step": 9')
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none for a last row that a kill cut short
        assert folder.read_metrics() == rows[4:]


@pytest.mark.parametrize("key", ["version", "model_args", "gate", "model", "config", "state", "search", "rng", "step"])
@pytest.mark.parametrize("how", ["missing", "ill-typed"])
def test_a_checkpoint_with_a_wrong_key_is_refused_in_one_line(folder, key, how, tmp_path):
    payload = checkpoint.load(folder.last)
    if how == "missing":
        del payload[key]
    else:
        payload[key] = {"name": 3.5} if key in ("version", "config", "step") else [3.5]
    config = dataclasses.replace(baseline_config(tmp_path), resume="auto")
    target = RunFolder.of(config)
    target.path.mkdir(parents=True)
    torch.save(payload, target.last)
    if key == "search":  # a baseline has no use for it
        assert "step" in fit(config)
        return
    with pytest.raises(ValueError) as caught:
        fit(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"step": 10**9}, {"num_steps": 7, "step": 7}, {"step": -5}])
def test_a_checkpoint_from_a_run_of_other_steps_is_refused(folder, changes, tmp_path):
    config = dataclasses.replace(baseline_config(tmp_path), resume="auto")
    target = RunFolder.of(config)
    target.path.mkdir(parents=True)
    torch.save(checkpoint.load(folder.last) | changes, target.last)
    with pytest.raises(ValueError, match="this run has .* steps: the data set has changed"):
        fit(config)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_finished_run_without_its_checkpoint_is_not_overwritten(folder, tmp_path, resume):
    config = dataclasses.replace(baseline_config(tmp_path), resume=resume)
    target = RunFolder.of(config)
    shutil.copytree(folder.path, target.path)
    target.last.unlink()
    with pytest.raises(ValueError, match="holds a finished run without its last.pth.tar"):
        fit(config)
    assert target.best.read_bytes() == folder.best.read_bytes()


def test_a_damaged_last_checkpoint_leaves_the_best_to_go_back_to(folder, tmp_path):
    config = dataclasses.replace(baseline_config(tmp_path), resume="auto")
    target = RunFolder.of(config)
    shutil.copytree(folder.path, target.path)
    target.last.write_bytes(b"")
    with pytest.raises(ValueError, match="last.pth.tar .*it is empty. Or remove it, and go back to `resume`=.*best"):
        fit(config)


@pytest.mark.parametrize(("changes", "reason"), [({"config": ""}, "holds no configuration of a run"),
                                                 ({"model_args": {}}, "is not complete"), ({"gate": {}}, "is not")])
def test_commands_name_the_checkpoint(folder, changes, reason, tmp_path, capsys):
    torch.save(checkpoint.load(folder.last) | changes, folder.last)
    with pytest.raises(SystemExit):
        evaluate_main(["--checkpoint", str(folder.last), "--gpu", "cpu"])
    assert mpc_main(["export", "--checkpoint", str(folder.last), "--out", str(tmp_path / "bundle")]) == 2
    said = capsys.readouterr().err
    assert said.count(f"{folder.last} {reason}") == said.count("\n") == 2


def test_numbers_that_are_not_finite_are_not_exported(folder, tmp_path, capsys):
    payload = checkpoint.load(folder.last)
    payload["model"]["fc.bias"][0] = torch.nan
    torch.save(payload, folder.last)
    assert mpc_main(["export", "--checkpoint", str(folder.last), "--out", str(tmp_path / "bundle")]) == 2
    assert "not finite, in fc.bias: its training diverged" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused_in_one_line(folder):
    payload = checkpoint.load(folder.last)
    for change in ({"image_size": "large"}, {"num_classes": 7}, {"color": 1}):
        with pytest.raises(ValueError, match="not complete, or of another version") as caught:
            checkpoint.build_from({**payload, "model_args": {**payload["model_args"], **change}})
        assert "\n" not in str(caught.value)


def test_a_diverged_run_says_so_and_its_summary_is_json(tmp_path):
    config = baseline_config(tmp_path, epochs=1, optim=OptimConfig(lr=1e4))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(config)
    text = (RunFolder.of(config).path / "summary.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert any("training diverged" in str(each.message) for each in said)


def test_an_evaluation_of_numbers_that_are_not_finite_warns(folder):
    payload = checkpoint.load(folder.last)
    payload["model"]["bn1.running_var"][0] = torch.inf
    torch.save(payload, folder.last)
    said = subprocess.run([sys.executable, "-m", "autorep.evaluate", "--checkpoint", str(folder.last), "--gpu", "cpu"],
                          capture_output=True, text=True, check=True).stderr
    assert "not finite, in bn1.running_var: its training diverged" in said


@pytest.mark.parametrize("spelling", ["0.50", ".5", 0.5, "5e-1"])
def test_one_amount_has_one_text(spelling):
    assert BudgetConfig(price="spu-cheetah", price_budget=spelling).price_budget == "0.5"


@pytest.mark.parametrize("flags", [["--w_lr", "1.7e308"], ["--w_weight_decay", "1e100"], ["--epochs", "9" * 30],
                                   ["--calibration_batches", str(2**63), "--ReLU_count", "1"],
                                   ["--ReLU_count", "1e306"]])
def test_numbers_beyond_sense_are_refused_at_birth(flags, capsys):
    from autorep.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main("autorep" if "--ReLU_count" in flags else "baseline", [*flags, "--dry_run"])
    assert caught.value.code == 2
    assert f"invalid {flags[0]}=" in (said := capsys.readouterr().err) and "at most 1e+18" in said


def test_letters_that_a_terminal_lacks_do_not_end_a_run(tmp_path):
    out = tmp_path / "größe_日本"
    done = subprocess.run([sys.executable, "train_baseline.py", "--arch", "resnet8", "--dataset", "digits", "--epochs",
                           "1", "--gpu", "cpu", "--out_dir", str(out)], capture_output=True, text=True,
                          env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin", "LANG": "C"})
    assert done.returncode == 0, done.stderr
    assert r"gr\xf6\xdfe_\u65e5\u672c" in done.stdout and list(out.rglob("summary.json"))


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused_unread(folder):
    with zipfile.ZipFile(folder.last) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder.last, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"last.pth.tar cannot be read .*is compressed"):
        checkpoint.load(folder.last)


def gated(folder):
    model = checkpoint.build_from(checkpoint.load(folder.last))
    gate = GateConfig(degree=2)
    converted = convert_relus_(model, torch.zeros(1, *model.input_shape), gate).model
    payload = checkpoint.load(folder.last)
    return payload | {"model": converted.state_dict(), "gate": dataclasses.asdict(gate)}


@pytest.mark.parametrize("changes", [{"num_classes": 10**9}, {"in_channels": 10**9}, {"image_size": 10**6},
                                     {"name": "torchvision:regnet_y_400mf", "num_classes": 400_000, "in_channels": 3},
                                     {"name": "torchvision:vit_h_14", "in_channels": 3}], ids=str)
def test_a_network_that_is_larger_than_its_weights_is_not_built(folder, changes, monkeypatch):
    payload = gated(folder)
    assert checkpoint.build_from(payload).state_dict().keys() == payload["model"].keys()
    payload["model_args"] |= changes
    payload["model"]["more"] = torch.empty(10**9, 0)  # a size without an element
    monkeypatch.setattr(checkpoint, "convert_relus_", lambda *_: pytest.fail("built"))
    with pytest.raises(ValueError, match="which are not there|image_size"):
        checkpoint.build_from(payload)


def test_a_weight_that_is_larger_than_what_is_stored_is_refused(folder):
    payload = checkpoint.load(folder.last)
    payload["model"]["more"] = torch.zeros(1).expand(10**9)
    with pytest.raises(ValueError, match="larger than what is stored"):
        checkpoint.build_from(payload)
