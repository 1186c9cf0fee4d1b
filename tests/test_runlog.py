"""The run folder's metrics: rows of a killed attempt disappear, TensorBoard holds what is promised."""

import json

import torch
from tensorboard_reader import read_tags
from torch import nn

from autorep.config import GateConfig
from autorep.gates.gated_relu import GatedReLU
from autorep.runs.folder import RunFolder
from autorep.runs.log import Interval, RunLog


def test_rows_beyond_the_resumed_step_and_a_torn_row_are_dropped(tmp_path):
    log = RunLog(RunFolder(tmp_path), 0, 100)
    for step in (10, 20, 30):
        log.scalars(step, {"loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    log = RunLog(RunFolder(tmp_path), 20, 100)
    log.scalars(21, {"loss": 2.1})
    log.close()
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 21]


def test_rows_are_json_whatever_the_numbers(tmp_path):
    log = RunLog(RunFolder(tmp_path), 0, 100)
    log.scalars(1, {"phase": "search", "loss": float("inf"), "kd": float("nan"), "flips": 3})
    log.close()

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "phase": "search", "loss": None, "kd": None, "flips": 3}


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = RunLog(None, 0, 10)
    log.scalars(1, {"loss": 1.0})
    log.gates(1, nn.Sequential(GatedReLU((2, 3, 3), GateConfig())))
    log.progress(1, "line")
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_scalars_layers_coefficients_and_masks(tmp_path):
    log = RunLog(RunFolder(tmp_path), 0, 10)
    log.scalars(5, {"loss": 1.0, "phase": "search"})
    log.gates(5, nn.Sequential(GatedReLU((2, 3, 3), GateConfig())))
    log.close()
    assert read_tags(tmp_path / "tb") == {"loss", "relus/0", "coefficients/0/c0", "coefficients/0/c1",
                                          "coefficients/0/c2", "masks/0"}


def test_an_interval_averages_parts_and_adds_flips():
    interval = Interval(torch.device("cpu"))
    interval.add({"loss": torch.tensor(1.0)}, torch.tensor(3), 8)
    interval.add({"loss": torch.tensor(2.0)}, None, 8)
    assert interval.means() == {"loss": 1.5, "flips": 3}
    assert interval.images_per_second() > 0
