"""Studies: what a file stands for, and what is refused."""

import pytest
from tiny_study import ROOT, TINY, load, write

from autorep.sweep.__main__ import main
from autorep.sweep.runner import with_baselines
from autorep.sweep.study import load_study


def test_seeds_are_outermost_and_a_variant_replaces_the_values_of_the_grid(tmp_path):
    text = TINY.replace("[1.0]", "[1.0, 2.0]") + 'ReLU_count = 3\n'
    assert [run.name for run in load(tmp_path, text).runs] == [
        f"{variant} seed={seed} ReLU_count={count}" for seed in (0, 1)
        for variant, count in (("identity", 1.0), ("quadratic", 3.0), ("identity", 2.0))]


def test_a_recipe_sets_the_defaults_of_all_runs_or_of_a_variant(tmp_path):
    text = TINY.replace("mask_epochs = 1", 'recipe = "best"\nmask_epochs = 1') + 'recipe = "reference"\n'
    identity, quadratic = (run.config for run in load(tmp_path, text).runs[:2])
    assert (identity.gate.score_init, quadratic.gate.score_init) == ("saliency", "uniform")
    assert identity.search_epochs == quadratic.search_epochs == 1


def test_several_baselines_are_taken_by_seed_and_one_by_all(tmp_path):
    several = load(tmp_path, TINY.replace("epochs = 1\n[common]", "epochs = 1\nseed = [0, 1, 2]\n[common]"))
    assert {run.config.seed: run.baseline.config.seed for run in several.runs} == {0: 0, 1: 1}
    assert {run.baseline.config.seed for run in load(tmp_path).runs} == {0}
    run = several.runs[-1]
    assert run.config.distill.teacher_path == run.config.model.pretrained_path == str(
        run.baseline.folder.last)


def test_runs_start_from_weights_that_are_there_and_train_no_baseline(tmp_path):
    (tmp_path / "dense.pth").touch()
    study = load(tmp_path, TINY.replace("epochs = 1\n[common]", 'weights = "dense.pth"\n[common]'))
    assert with_baselines(study.runs) == study.runs
    assert study.runs[-1].config.distill.teacher_path == study.runs[-1].config.model.pretrained_path == str(
        tmp_path / "dense.pth")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("epochs = 1\n[common]", 'weights = "none.pth"\n[common]', "none.pth': expected the path of a file"),
    ("epochs = 1\n[common]", 'epochs = 1\nweights = "w"\n[common]', "epochs=1 has no effect beside weights='w'"),
    ("study =", "studdy =", "'studdy': expected one of study, baseline"),
    ("study =", "study", "tiny.toml: "),
    ('"tiny"', '"a/b"', "study='a/b': expected letters"),
    ("mask_epochs", "mask_epoch", "did you mean mask_epochs"),
    ("mask_epochs = 1", "mask_epochs = 1.5", "mask_epochs=1.5: expected a whole number"),
    ("mask_epochs = 1", "mask_epochs = true", "mask_epochs=True: expected a whole number"),
    ("w_mask_lr = 0.5", 'w_mask_lr = "0.5"', "w_mask_lr='0.5': expected a finite number"),
    ("w_mask_lr = 0.5", "w_mask_lr = inf", "w_mask_lr=inf: expected a finite number"),
    ("w_mask_lr = 0.5", "w_mask_lr = nan", "w_mask_lr=nan: expected a finite number"),
    ("w_mask_lr = 0.5", "w_mask_lr = -0.5", "--w_mask_lr=-0.5: expected more than 0"),
    ("w_mask_lr = 0.5", 'optim = "step"', "optim='step': expected one of cosine, "),
    ("w_mask_lr = 0.5", 'recipe = "fastest"', "--recipe=fastest: expected one of reference, best"),
    ("w_mask_lr = 0.5", "seed = 3", r"seed=3 is in \[grid\] too"),
    ("w_mask_lr = 0.5", 'arch = "resnet20"', r"arch is not allowed here: it belongs in \[baseline\]"),
    ("w_mask_lr = 0.5", 'gpu = "0"', "gpu is not allowed here: it is an option of the sweep"),
    ("w_mask_lr = 0.5", 'pretrained_path = "x"', "every run starts from the baseline"),
    ("[1.0]", "1.0", "ReLU_count=1.0: expected a list"), ("[1.0]", "[]", "a list of at least one value"),
    ("ReLU_count = [1.0]", "", "--ReLU_count is missing"),
    ("[1.0]", "[1.0, 1]", "share the run folder"), ("[0, 1]", "[0, 0]", "share the run folder"),
    ('"quadratic"', '"identity"', "names identity, identity: expected"),
    ('"quadratic"', '"quadratic"\n[[variant]]\nname = "same"\nthreshold = 0.003', "share every setting"),
    ('"quadratic"', '"baseline"', "name='baseline': expected"), ('name = "quadratic"', "degree = 1", "name=None"),
    ('distil = false', "degree = 1", "degree=1 has no effect: the identity is fixed"),
    ("epochs = 1\n[common]", "epochs = 1\nlamda = 1\n[common]", "lamda=1.0 has no effect"),
    ("epochs = 1\n[common]", "epochs = 1\nseed = [1, 2]\n[common]", "seed=0: with several baselines"),
    ("epochs = 1\n[common]", "epochs = 1\nseed = [1, 1]\n[common]", "every seed once"),
    ("[[variant]]\nname = \"identity\"", "[variant.a]\nname = \"identity\"", "tiny.toml"),
])
def test_bad_studies_are_refused_with_value_and_remedy(tmp_path, old, new, message, capsys):
    path = write(tmp_path, **{old: new})
    with pytest.raises(ValueError, match=message):
        load_study(path, {})
    with pytest.raises(SystemExit) as exit_info:
        main([str(path), "--dry_run"])
    assert exit_info.value.code == 2 and "tiny.toml" in capsys.readouterr().err


def test_weights_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dense.pth").touch()
    study = load(tmp_path, TINY.replace("epochs = 1\n[common]", 'weights = "~/dense.pth"\n[common]'))
    assert study.runs[-1].config.model.pretrained_path == str(tmp_path / "home" / "dense.pth")


@pytest.mark.parametrize("content", [b"a = " + b"[" * 10_000, b"\xff\xfe", b"\x00" * 100, b"", b"study = 1979-05-27"])
def test_a_damaged_study_is_one_line(tmp_path, content, capsys):
    path = tmp_path / "tiny.toml"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as exit_info:
        main([str(path), "--dry_run"])
    said = capsys.readouterr().err
    assert exit_info.value.code == 2 and "tiny.toml: " in said and said.count("\n") == 1


def test_a_study_of_a_windows_editor_is_read(tmp_path):
    write(tmp_path)
    text = (tmp_path / "tiny.toml").read_text()
    (tmp_path / "tiny.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert len(load_study(tmp_path / "tiny.toml", {}).runs) == 4


@pytest.mark.parametrize("table", ["a folder", "foreign", "below a file"])
def test_a_table_that_takes_no_rows_is_seen_before_anything_is_trained(tmp_path, table, capsys, monkeypatch):
    monkeypatch.setattr("autorep.sweep.jobs.subprocess.Popen", None)
    path = tmp_path / "table.csv"
    if table == "a folder":
        path.mkdir()
    else:
        path.write_text("a;b\n1;2\n")
    with pytest.raises(SystemExit) as exit_info:
        main([str(write(tmp_path)), "--out_dir", str(tmp_path / "out"), "--results",
              str(path / "x.csv" if table == "below a file" else path)])
    said = capsys.readouterr().err
    assert exit_info.value.code == 2 and "table.csv" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_studies_and_bad_minutes_end_in_one_line(tmp_path, capsys):
    for argv in ([str(tmp_path / "no.toml")], [str(write(tmp_path)), "--max_minutes", "0"]):
        with pytest.raises(SystemExit) as exit_info:
            main(argv)
        assert exit_info.value.code == 2 and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_that_are_here_can_be_started(path):
    study = load_study(path, {"data_path": "data"})
    assert study.name == path.stem and len(study.runs) >= 2
