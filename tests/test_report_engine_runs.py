"""A report takes every table of the project: of trained networks, of several lengths, of runs under an engine."""

import csv
from pathlib import Path

import pytest
from report_tables import baseline_cells, cells, write_table

from autorep.report.__main__ import main, make_sections
from autorep.report.rows import read_rows

TABLES = sorted((Path(__file__).parent.parent / "results").glob("*.csv"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_table_of_the_project_has_a_section(path):
    sections = make_sections([path], [], None)
    assert sections and all(section.tables for section in sections)


@pytest.mark.parametrize("engine", ["spu-semi2k", "spu-cheetah"])
def test_measured_runs_are_shown_as_they_are(engine):
    path = next(path for path in TABLES if path.stem == "private_inference")
    with path.open(newline="") as file:
        i, first = next((i, row) for i, row in enumerate(csv.DictReader(file)) if row["engine"] == engine)
    (section,) = make_sections([path], [], None)
    (table,) = section.tables
    cell = dict(zip(table.header, table.rows[i], strict=True))
    assert (cell["engine"], cell["link"], cell["masking"]) == (first["protocol"], first["net"], "all ReLU")
    assert float(cell["seconds"]) == pytest.approx(float(first["seconds_median"]), abs=0.005)
    total = int(first["bytes_to_client"]) + int(first["bytes_to_server"])
    assert float(cell["MB"]) == pytest.approx(total / 1e6, abs=0.05)
    assert cell["rounds or messages"] == f"{first['rounds']} {'messages' if 'cheetah' in engine else 'rounds'}"
    assert cell["images with the class of plaintext"].startswith("100.0 %")


@pytest.mark.parametrize(("change", "message"), [
    (lambda row: row.pop("rounds"), "has no column rounds"),
    (lambda row: row.update(seconds_median="fast"), "line 2: could not convert string to float: 'fast'"),
    (lambda row: row.update(variant="some"), "line 2: 'some'; the table is damaged"),
])
def test_a_damaged_table_of_runs_is_named(tmp_path, change, message, capsys):
    with next(path for path in TABLES if path.stem == "private_inference").open(newline="") as file:
        row = next(csv.DictReader(file))
    change(row)
    with pytest.raises(SystemExit):
        main([str(write_table(tmp_path / "runs.csv", [row])), "--out", str(tmp_path / "report")])
    assert message in capsys.readouterr().err and not (tmp_path / "report").exists()


def test_lengths_tell_runs_apart_only_where_nothing_else_does(tmp_path):
    two = [baseline_cells(epochs=n, seed=seed) for n in (400, 100) for seed in (0, 1)]
    assert [row.variant for row in read_rows([write_table(tmp_path / "two.csv", two)])] == [
        "400 epochs", "400 epochs", "100 epochs", "100 epochs"]
    usual = [baseline_cells(epochs=400), cells(epochs=0)]
    assert [row.variant for row in read_rows([write_table(tmp_path / "usual.csv", usual)])] == ["", ""]
