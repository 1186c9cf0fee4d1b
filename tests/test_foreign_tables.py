"""Tables that spreadsheets and people have touched: no row is lost, and what is no table is named in one line."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from report_tables import baseline_cells, write_table

from autorep.report.__main__ import main as report
from autorep.results import append_rows, read_rows

ROW = {"command": "train_baseline.py --ext größe", "commit": "abc", "study": "s"}


def test_a_column_of_the_user_is_kept(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("command,commit,notes\ntrain.py,abc,good\n")
    append_rows(table, [ROW])
    assert [(row["command"], row["notes"]) for row in read_rows(table)] == [("train.py", "good"), (ROW["command"], "")]


def test_a_mark_that_spreadsheets_put_first_does_no_harm(tmp_path):
    append_rows(tmp_path / "table.csv", [ROW])
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "table.csv").read_bytes())
    append_rows(tmp_path / "table.csv", [ROW | {"study": "t"}])
    assert [row["study"] for row in read_rows(tmp_path / "table.csv")] == ["t"]


def test_a_link_to_a_table_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "table.csv").symlink_to("elsewhere/real.csv")
    append_rows(tmp_path / "table.csv", [ROW])
    assert (tmp_path / "table.csv").is_symlink() and len(read_rows(tmp_path / "elsewhere" / "real.csv")) == 1
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real.csv"]


def test_letters_survive_a_locale_that_lacks_them(tmp_path):
    append_rows(tmp_path / "table.csv", [ROW])
    code = ("from pathlib import Path; from autorep.results import append_rows; "
            f"append_rows(Path({str(tmp_path / 'table.csv')!r}), [{ROW | {'commit': 'def'}!a}])")
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], check=True, cwd=Path(__file__).parent.parent,
                   env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin:/bin"})
    assert [row["command"] for row in read_rows(tmp_path / "table.csv")] == [ROW["command"]] * 2


@pytest.mark.parametrize(("content", "reason"), [
    (b"a;b\n1;2\n", "has no column command, commit"), (b"my notes", "has no column command, commit"),
    (b"\xff\xfe\x00", "damaged or no CSV"),
    (b"command,commit\nx,\0y\n", "damaged|column"), (b"command,commit\nonly\n", "more or fewer cells"),
    (b"command,commit\n" + b"x" * 200_000 + b",y\n", "damaged or no CSV"),
])
def test_what_is_no_table_is_named_and_left_alone(tmp_path, content, reason):
    (tmp_path / "table.csv").write_bytes(content)
    try:
        append_rows(tmp_path / "table.csv", [ROW])
    except ValueError as error:
        assert "table.csv" in str(error)
        with pytest.raises(ValueError, match=reason):
            raise
        assert (tmp_path / "table.csv").read_bytes() == content
    else:
        assert b"\0" in content and len(read_rows(tmp_path / "table.csv")) == 2  # Python 3.11 reads the zero


@pytest.mark.parametrize(("name", "value"), [
    *(("test_top1_last_epoch", value) for value in ("nan", "inf", "1e308")), ("relu_kept", "1" + 400 * "0")])
def test_numbers_beyond_sense_are_refused(tmp_path, name, value, capsys):
    write_table(tmp_path / "table.csv", [baseline_cells(**{name: value})])
    with pytest.raises(SystemExit):
        report([str(tmp_path / "table.csv"), "--out", str(tmp_path / "out")])
    assert f"line 2: {name}='{value}' is not a number of at most 1" in capsys.readouterr().err


def test_a_table_in_another_encoding_is_named(tmp_path, capsys):
    write_table(tmp_path / "table.csv", [baseline_cells(study="größe")])
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with (tmp_path / "table.csv").open("w", newline="", encoding="latin-1") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(SystemExit):
        report([str(tmp_path / "table.csv"), "--out", str(tmp_path / "out")])
    assert "table.csv is damaged or no CSV file in UTF-8" in capsys.readouterr().err
