"""Tables of runs: repeated rows, old tables, several writers, the command line."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autorep.results import COLUMNS, append_rows, has_row, main, read_rows, row_of
from autorep.runs.folder import RunFolder

STUDIES = Path(__file__).parent.parent / "results"


def test_appended_runs_are_read_back_and_repeated_ones_replaced(baseline, tmp_path):
    table = tmp_path / "results" / "study.csv"
    for _ in range(2):
        main([str(table), str(baseline)])
    (row,) = read_rows(table)
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


def test_the_folders_of_this_machine_do_not_stand_in_the_command(baseline, tmp_path):
    folder = tmp_path / "out" / "run"
    shutil.copytree(baseline, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"out_dir": "/x/out"}))
    values = json.loads((folder / "environment.json").read_text())
    command = "python /x/train_autorep.py --data_path /x/data --out_dir /x/out --teacher_path /x/out/a/b --ext /x"
    (folder / "environment.json").write_text(json.dumps(values | {"command": command.split()}))
    row = row_of(RunFolder(folder))
    assert row["command"] == "train_autorep.py --data_path $DATA --out_dir $OUT --teacher_path $OUT/a/b --ext /x"
    assert not has_row(tmp_path / "t.csv", RunFolder(folder))
    append_rows(tmp_path / "t.csv", [row])
    assert has_row(tmp_path / "t.csv", RunFolder(folder))


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
