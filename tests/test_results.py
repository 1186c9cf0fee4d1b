"""Tables of runs: repeated rows, old tables, several writers, the command line."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autorep.report.__main__ import main as report
from autorep.results import COLUMNS, append_rows, has_row, main, read_rows, row_of
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder

STUDIES = Path(__file__).parent.parent / "results"


def test_appended_runs_are_read_back_and_repeated_ones_replaced(baseline, tmp_path):
    table = tmp_path / "results" / "study.csv"
    for _ in range(2):
        main([str(table), str(baseline), "--variant", "dense"])
    (row,) = read_rows(table)
    assert row["variant"] == "dense" and row["settings"]
    summary = json.loads((baseline / "summary.json").read_text())
    assert row["test_top1_last_epoch"] == f"{summary['test_top1']:.2f}" and row["selection"] == "last epoch"
    assert row["validation_top1_last_epoch"] == f"{summary['validation_top1']:.2f}"
    assert row["relu_kept"] == row["relu_total"] == "4608" and int(row["semi2k_rounds"]) > 0
    assert row["cheetah_rounds"] == "" and float(row["semi2k_wan_seconds"]) > float(row["semi2k_lan_seconds"])


def test_unfinished_runs_are_refused(baseline, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(baseline, folder)
    (folder / "summary.json").write_text(json.dumps({"finished": False}))
    with pytest.raises(SystemExit) as exit_info:
        main([str(tmp_path / "t.csv"), str(folder)])
    assert exit_info.value.code == 2 and "--resume auto" in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists()


def started_by(folder, words, **settings):
    """The folder of a run, with another command and other settings."""
    for name, changes in (("environment", {"command": ["python", *words]}), ("config", settings)):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return RunFolder(folder)


@pytest.mark.parametrize(("given", "command"), [
    ("--data_path /x/data --out_dir /x/out --teacher_path /x/out/a/b --ext /x",
     "--data_path $DATA --out_dir $OUT --teacher_path $OUT/a/b --ext /x"),
    ("--data_path=/x/data --out_dir=/x/out/ --teacher_path=/x/out/a=b --ext=a=b",
     "--data_path=$DATA --out_dir=$OUT --teacher_path=$OUT/a=b --ext=a=b"),
    ("--ext my\xa0run --out_dir /x/out/\udcff", "--ext 'my\xa0run' --out_dir $OUT'/\\xff'"),
])
def test_the_folders_of_this_machine_do_not_stand_in_the_command(baseline, tmp_path, given, command):
    folder = started_by(shutil.copytree(baseline, tmp_path / "run"), ["/x/train.py", *given.split(" ")],
                        out_dir="/x/out/")
    row = row_of(folder)
    assert row["command"] == f"train.py {command}"
    assert not has_row(tmp_path / "t.csv", folder)
    append_rows(tmp_path / "t.csv", [row])
    assert has_row(tmp_path / "t.csv", folder)


def test_runs_that_one_program_starts_have_a_row_each(baseline, tmp_path):
    folders = []
    for ext, gpu in (("a", "cpu"), ("a", "0"), ("b", "cpu")):
        folders.append(started_by(shutil.copytree(baseline, tmp_path / f"{ext}{gpu}"), ["x.py"], ext=ext, gpu=gpu))
        payload = checkpoint.load(folders[-1].last)
        checkpoint.save(folders[-1].last, payload | {"config": folders[-1].config.read_text()})
    main([str(tmp_path / "t.csv"), *map(str, folders)])
    assert len(read_rows(tmp_path / "t.csv")) == 2  # the place is no setting
    append_rows(tmp_path / "older.csv", [row | {"settings": ""} for row in read_rows(tmp_path / "t.csv")[:1]])
    assert has_row(tmp_path / "older.csv", folders[0])
    append_rows(tmp_path / "older.csv", [row_of(folders[0])])
    assert len(read_rows(tmp_path / "older.csv")) == 1


def test_names_that_are_no_utf8_are_written_as_escapes(baseline, tmp_path):
    folder = shutil.copytree(baseline, tmp_path / "run\udcff")
    table = tmp_path / "t\udcff.csv"
    for _ in range(2):
        main([str(table), str(folder), "--variant", "v\udcff"])
    assert [row["variant"] for row in read_rows(table)] == [r"v\udcff"]
    report([str(table), "--runs", str(folder), "--out", str(tmp_path / "out\udcff")])
    assert r"run\udcff" in (tmp_path / "out\udcff" / "report.html").read_text()


@pytest.mark.parametrize(("name", "changes", "reason"), [
    ("config", {"seed": 5}, "seed 0, 5"), ("summary", {"step": 7}, "step .*, 7"),
    ("summary", {"relu_kept": 4607}, "relu_kept 4608, 4607")])
def test_files_of_several_runs_make_no_row(baseline, tmp_path, name, changes, reason):
    folder = RunFolder(shutil.copytree(baseline, tmp_path / "run"))
    path = folder.path / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=f"holds files of several runs: last.pth.tar and .* differ in {reason}"):
        row_of(folder)


def test_writers_at_once_lose_no_row(tmp_path):
    table = tmp_path / "t.csv"

    def add(number):
        append_rows(table, [{"command": f"run {number}", "commit": "c", "seed": number}])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(add, range(100)))
    assert sorted(int(row["seed"]) for row in read_rows(table)) == list(range(100))
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", ".t.csv.lock"}


def test_a_table_of_fewer_columns_is_read_and_completed(tmp_path):
    table = tmp_path / "t.csv"
    shutil.copy(STUDIES / "cifar100_resnet20_cpu.csv", table)
    before = read_rows(table)
    append_rows(table, [{"command": "new", "commit": "c", "study": "s"}])
    after = read_rows(table)
    assert len(after) == len(before) + 1 and list(after[0]) == COLUMNS
    for old, new in zip(before, after, strict=False):
        assert new.items() >= old.items() and new["study"] == ""
