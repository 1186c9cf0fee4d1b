"""Reports: statistics by hand, what is compared with what, a page that needs nothing beside it, and bad input."""

import csv
import dataclasses
import json
import math
import shutil
from html.parser import HTMLParser

import pytest
import torch
from conftest import autorep_config
from torch import nn

from autorep import GateConfig, convert_relus_
from autorep.config import DataConfig
from autorep.dapa.moments import record_moments
from autorep.data.loader import make_loaders
from autorep.gates.gated_relu import iter_gates
from autorep.report import accuracy
from autorep.report.__main__ import main
from autorep.report.activation_plots import activations, record_channels
from autorep.report.channels import by_kept, spread
from autorep.report.costs import cost_column
from autorep.report.groups import Statistic, group_rows
from autorep.report.picture import Omitted, thousands
from autorep.report.published import published_points
from autorep.report.rows import REQUIRED, read_rows
from autorep.report.runs import read_run
from autorep.report.search_plots import flips_over_time, scores
from autorep.report.sections import run_section
from autorep.report.styles import assign_styles
from autorep.report.tables import Table, cost_columns, costs_table, results_table
from autorep.runs.folder import RunFolder
from autorep.training.fit import fit

RUN_FIGURES = {"flips", "scores", "layers", "masks_mean", "masks_channels", "activations"}


def cells(**changes) -> dict:
    """A row of a results table."""
    return {"dataset": "cifar100", "arch": "resnet18_in", "act_type": "ReLU_masked_dapa_relay", "degree": 2,
            "relu_budget": 12900, "relu_kept": 12900, "relu_total": 491520, "layers_with_relu": 16, "seed": 0,
            "test_top1_last_epoch": "70.00", "test_top1_at_validation_best": "69.00", **changes}


def baseline_cells(**changes) -> dict:
    return cells(**{"act_type": "nn.ReLU", "degree": "", "relu_budget": "", "relu_kept": 491520, **changes})


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def study(tmp_path):
    """Two methods at two budgets with three seeds, and one baseline."""
    rows = [baseline_cells(test_top1_last_epoch="78.00")]
    for degree, act_type in ((1, "ReLU_masked_relay"), (2, "ReLU_masked_dapa_relay")):
        for budget in (25000, 12900):
            rows += [cells(act_type=act_type, degree=degree, relu_budget=budget, relu_kept=budget - seed, seed=seed,
                           test_top1_last_epoch=f"{60 + degree + budget / 5000 + seed ** 2:.2f}") for seed in range(3)]
    return write_table(tmp_path / "study.csv", rows)


@pytest.fixture(scope="module")
def run_path(baseline, tmp_path_factory):
    """Run folder of a finished AutoReP run on the digits."""
    config = autorep_config(tmp_path_factory.mktemp("autorep"), baseline / "last.pth.tar", epochs=1)
    fit(config)
    return RunFolder.of(config).path


# ---- statistics and groups


def test_mean_and_sample_deviation_by_hand():
    found = Statistic.of([1.0, 2.0, 4.0])
    assert (found.mean, found.n) == (pytest.approx(7 / 3), 3)
    assert found.std == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))
    assert str(found) == "2.33 ± 1.53"


def test_one_seed_has_no_deviation():
    assert Statistic.of([50.144]) == Statistic(50.144, None, 1)
    assert str(Statistic.of([50.144])) == "50.14"


def test_rows_that_differ_by_seed_alone_are_one_group(study):
    [(board, groups)] = group_rows(read_rows([study])).items()
    assert board == ("study", "cifar100", "resnet18_in")
    assert [(g.label, g.relu_budget, len(g.rows)) for g in groups] == [
        ("all ReLUs", None, 1), ("identity", 12900, 3), ("identity", 25000, 3),
        ("quadratic, DaPa", 12900, 3), ("quadratic, DaPa", 25000, 3)]
    top1 = groups[1].top1_last  # 63.58 + 0, 1, 4
    assert top1.mean == pytest.approx(63.58 + 5 / 3) and top1.std == pytest.approx(2.081666)


def test_variants_and_studies_are_kept_apart(tmp_path):
    rows = [cells(variant=variant, study=study) for study in "ab" for variant in ("best", "no distillation")]
    boards = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)]))
    assert [board.study for board in boards] == ["a", "b"]
    assert [g.label for g in boards["a", "cifar100", "resnet18_in"]] == ["best (quadratic)",
                                                                        "no distillation (quadratic)"]


def test_a_missing_accuracy_at_the_chosen_epoch_is_no_zero(tmp_path):
    rows = [cells(), cells(seed=1, test_top1_at_validation_best="")]
    [groups] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).values()
    assert groups[0].top1_chosen is None
    assert results_table(groups).rows[0][4] == "–"


# ---- tables


def test_table_of_results(study):
    [groups] = group_rows(read_rows([study])).values()
    table = results_table(groups)
    assert table.rows[1] == ("identity", "12,900", "3", "65.25 ± 2.08", "69.00 ± 0.00", "12,898 to 12,900 of 491,520",
                             "16")
    assert table.rows[0][1] == "–"


def test_costs_are_read_by_protocol_and_shown_in_their_unit(tmp_path):
    assert cost_column("semi2k_wan_seconds").title == "SEMI2K s on WAN"
    assert cost_column("seconds") is cost_column("semi2k_price") is cost_column("other_bytes") is None
    rows = [cells(semi2k_bytes=12_000_000, semi2k_rounds="", cheetah_lan_seconds="1.25"),
            cells(seed=1, semi2k_bytes=14_000_000, semi2k_rounds="", cheetah_lan_seconds="1.75")]
    [groups] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).values()
    table = costs_table(groups, cost_columns(groups))
    assert table.header[2:] == ("SEMI2K MB", "CHEETAH s on LAN")
    assert table.rows[0][2:] == ("13.0", "1.50")


def test_text_of_a_table_cannot_break_it():
    table = Table("t", ("a", "b"), (("x|y", "<b>"),))
    assert "x\\|y" in table.markdown()
    assert "&lt;b&gt;" in table.html() and "<b>" not in table.html()


# ---- published points, in the form of the comparison they come from: thousands of ReLUs : top-1

PUBLISHED = {
    ("cifar100", "resnet18_in"): {
        ("AutoReP", "quadratic"): "12.9 : 74.92",
        ("AutoReP", "line"): "12.9 : 67.75, 15 : 68.4, 25 : 71.10, 50 : 73.86",
        ("ReLUPruner", "identity"): "12.9 : 68.28, 24.9 : 71.98, 50 : 77.90, 100 : 78.12",
        ("SENet", "identity"): "24.6 : 70.59, 49.6 : 75.28",
        ("SNL", "identity"): "12.9 : 66.53, 25 : 70.05, 49.4 : 73.75, 99.9 : 75.94"},
    ("cifar100", "wide_resnet_22_8"): {
        ("AutoReP", "line"): "120 : 76.32, 150 : 77.38, 180 : 77.49",
        ("ReLUPruner", "identity"): "120 : 77.36, 150 : 78.61, 180 : 79.54",
        ("SENet", "identity"): "150 : 78.32",
        ("SNL", "identity"): "150 : 77.35, 180 : 77.65"},
    ("cifar10", "resnet18_in"): {
        ("AutoReP", "quadratic"): "12.9 : 94.31",
        ("ReLUPruner", "identity"): "12.9 : 90.12, 50 : 94.02",
        ("SENet", "identity"): "82 : 93.05",
        ("SNL", "identity"): "12.9 : 88.23, 49.4 : 92.27"},
    ("tiny_imagenet", "resnet18_in"): {
        ("AutoReP", "quadratic"): "55 : 63.69",
        ("AutoReP", "line"): "55 : 56.69, 190 : 63.29",
        ("ReLUPruner", "identity"): "30 : 56.13, 55 : 56.84, 200 : 64.58, 300 : 65.13",
        ("SENet", "identity"): "298 : 64.96",
        ("SNL", "identity"): "59.4 : 54.24, 198 : 63.39"},
}


@pytest.mark.parametrize("board", PUBLISHED, ids="/".join)
def test_published_points_are_those_of_their_board(board):
    expected = {(*key, round(1000 * float(k)), float(top1)) for key, text in PUBLISHED[board].items()
                for k, top1 in (point.split(":") for point in text.split(","))}
    points = published_points(*board)
    assert {(p.method, p.replacement, p.relus, p.top1) for p in points} == expected
    assert len(points) == len(expected) and all(p.source for p in points)


def test_an_unknown_board_has_no_published_points():
    assert published_points("digits", "resnet8") == []


# ---- plots of accuracy


@pytest.fixture
def axes_of(monkeypatch):
    """Title of a panel -> its axes, of the picture that a call draws."""
    def draw(plot, *args):
        monkeypatch.setattr(accuracy, "finish", lambda figure, *_: figure)
        found = plot(*args)
        figure = found[0] if isinstance(found, list) else found
        return {axes.get_title() or axes.get_xlabel(): axes for axes in figure.axes}
    return draw


def labels(axes) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])


def test_replacements_are_not_mixed_and_published_points_stand_on_their_own_board(study, axes_of):
    [(board, groups)] = group_rows(read_rows([study])).items()
    panels = axes_of(accuracy.against_relus, board, groups, published_points("cifar100", "resnet18_in"),
                     assign_styles([]))
    dense = "all ReLUs (491,520)"
    assert {title.split()[-1]: labels(axes) for title, axes in panels.items()} == {
        "identity": {dense, "identity", "SNL (published)", "SENet (published)", "ReLUPruner (published)"},
        "line": {dense, "AutoReP (published)"},
        "quadratic": {dense, "quadratic, DaPa", "AutoReP (published)"}}
    axes = panels["dropped ReLU → identity"]
    assert axes.get_xscale() == "log" and "[%]" in axes.get_ylabel()
    [bar] = axes.containers
    assert bar.lines[0].get_xydata()[0] == pytest.approx([12899, 63.58 + 5 / 3])
    low, high = bar.lines[2][0].get_segments()[0][:, 1]  # one deviation to either side
    assert (high - low) / 2 == pytest.approx(2.081666)


def test_cost_axes_name_their_units(tmp_path, axes_of):
    rows = [cells(relu_budget=b, relu_kept=b, semi2k_bytes=1000 * b, semi2k_lan_seconds=b / 1e4) for b in (100, 2000)]
    [(board, groups)] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).items()
    panels = axes_of(accuracy.against_costs, board, groups, cost_columns(groups), assign_styles([]))
    assert set(panels) == {"traffic, both directions [MB]", "time of the link alone, LAN [s]"}
    drawn = panels["traffic, both directions [MB]"].containers[0].lines[0]
    assert drawn.get_xdata() == pytest.approx([0.1, 2.0])


def test_the_same_data_give_the_same_bytes(study):
    [(board, groups)] = group_rows(read_rows([study])).items()
    first, second = (accuracy.against_relus(board, groups, [], assign_styles([])) for _ in range(2))
    assert first == second
    assert first.png.startswith(b"\x89PNG") and b"<svg" in first.svg


def test_no_two_settings_look_alike():
    names = ["identity", *(f"setting {i}" for i in range(24))]
    styles = assign_styles(names)
    assert len({styles[name] for name in names}) == len(names)
    assert styles["identity"] == assign_styles([])["identity"]


def test_numbers_on_axes():
    assert [thousands(v) for v in (0, 500, 1500, 20_000, 2e6)] == ["0", "500", "1.5K", "20K", "2M"]


# ---- run folders


def test_flips_are_set_against_the_fewest_possible(run_path):
    run = read_run(run_path)
    total = sum(gate.num_total for gate in run.gates.values())
    rows = [{"step": 5, "flips": 50, "relu_kept": total - 40, "relu_target": total - 40},
            {"step": 7, "validation_top1": 50.0},
            {"step": 10, "flips": 70, "relu_kept": total - 80, "relu_target": total - 80}]
    caption = flips_over_time(dataclasses.replace(run, metrics=rows), assign_styles([])[run.label]).caption
    assert "120 flips in all for 80 ReLUs fewer: 1.50 flips for each" in caption


def test_scores_over_time_where_they_were_recorded(run_path):
    run, style = read_run(run_path), assign_styles([])["identity"]
    rows = [{"step": s, **{f"score/q{q:02d}": q / 100 - s / 10 for q in (5, 25, 50, 75, 95)}} for s in (1, 2)]
    assert "not recorded" in scores(dataclasses.replace(run, metrics=[]), style).caption
    assert "not recorded" not in scores(dataclasses.replace(run, metrics=rows), style).caption


def test_recorded_channels_have_the_moments_of_their_gate(run_path):
    run = read_run(run_path)
    images = [batch.images for batch in make_loaders("digits", None, 100, device="cpu", seed=0).test.batches(0)]
    chosen = {name: by_kept(gate)[:2] for name, gate in run.gates.items()}
    seen = record_channels(run.model, run.gates, chosen, images)
    with torch.no_grad(), record_moments(run.model) as moments:
        for batch in images:
            run.model(batch)
    for (name, channel), x_NHW in seen.items():
        assert x_NHW.double().mean() == pytest.approx(moments[name].mean[channel].item(), abs=1e-5)
        assert x_NHW.double().var(correction=0) == pytest.approx(moments[name].var[channel].item(), rel=1e-4)


def test_an_inplace_gate_does_not_overwrite_what_was_recorded():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True))
    example = torch.randn(4, 1, 6, 6)
    net = convert_relus_(net, example, GateConfig(degree=2)).model.eval()
    [(name, gate)] = iter_gates(net)
    seen = record_channels(net, {name: gate}, {name: [1]}, [example])
    with torch.no_grad():
        assert torch.equal(seen[name, 1], nn.functional.conv2d(example, net[0].weight, net[0].bias)[:, 1])


def test_layers_and_channels_are_spread_from_end_to_end():
    assert spread(19, 3) == [0, 9, 18]
    assert spread(2, 3) == [0, 1]


def test_a_baseline_says_that_it_has_nothing_to_show(baseline):
    run = read_run(baseline)
    section = run_section(run, 1, assign_styles([]), None)
    assert section.pictures == () and "no masks" in section.omitted[0]


def test_a_run_without_metrics_has_no_flips_to_show(run_path, tmp_path):
    folder = shutil.copytree(run_path, tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(Omitted, match="metrics.jsonl is missing"):
        flips_over_time(read_run(folder), assign_styles([])["identity"])


def test_an_unfinished_run_is_called_so(run_path, tmp_path):
    folder = shutil.copytree(run_path, tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({"finished": False}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99')  # a row that is being written
    whole, cut = read_run(run_path), read_run(folder)
    assert cut.metrics == whole.metrics
    assert cut.state == f"Not finished: at step {whole.step:,} of {whole.num_steps:,}."
    (folder / "last.pth.tar").unlink()
    bare = read_run(folder)
    assert "without a checkpoint" in bare.state
    section = run_section(bare, 1, assign_styles([]), None)
    assert {p.name for p in section.pictures} == {"run1_flips"}
    assert len(section.omitted) == 3 and all("there is no checkpoint" in reason for reason in section.omitted)


def test_activations_are_left_out_where_the_data_are_not(run_path, tmp_path):
    run = read_run(run_path)
    config = dataclasses.replace(run.config, data=DataConfig(dataset="cifar10", data_path=str(tmp_path)))
    with pytest.raises(Omitted, match="--data_path"):
        activations(dataclasses.replace(run, config=config), assign_styles([])["identity"], None)


def test_a_damaged_run_folder_is_named(run_path, tmp_path):
    folder = shutil.copytree(run_path, tmp_path / "run")
    (folder / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="summary.json cannot be read"):
        read_run(folder)


# ---- the command


class Loaded(HTMLParser):
    """What a page loads or points to."""

    def __init__(self):
        super().__init__()
        self.tags, self.targets = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.targets += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_the_page_holds_every_figure_and_needs_nothing_beside_it(study, run_path, tmp_path, capsys):
    out = tmp_path / "out"
    main([str(study), "--runs", str(run_path), "--out", str(out)])
    page = (out / "report.html").read_text()
    loaded = Loaded()
    loaded.feed(page)
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures == {"accuracy_study_cifar100_resnet18_in", *(f"run1_{name}" for name in RUN_FIGURES)}
    assert len(loaded.targets) == len(figures)
    assert all(target.startswith("data:image/png;base64,") for target in loaded.targets)
    assert not loaded.tags & {"script", "link", "iframe", "object"} and "url(" not in page and "@import" not in page
    assert {path.suffix for path in (out / "figures").iterdir()} == {".png", ".svg"}
    assert "Finished: test top-1" in page and "Not shown" not in page.split("Run 1")[1]
    assert (out / "tables.md").read_text() in capsys.readouterr().out
    assert "| identity | 12,900 | 3 | 65.25 ± 2.08 |" in (out / "tables.md").read_text()
    assert not list(tmp_path.rglob(".*"))  # no temporary file is left


BAD_TABLES = {
    "nothing": ("", "has no column dataset"),
    "only a header": (",".join(REQUIRED) + "\n", "holds no runs"),
    "a column short": (",".join(REQUIRED[:-1]) + "\n", "has no column test_top1_at_validation_best"),
    "a word for a number": (",".join(REQUIRED) + "\nc,r,nn.ReLU,,,many,9,1,0,5,\n", "relu_kept='many' is not a number"),
    "a row cut short": (",".join(REQUIRED) + "\nc,r,nn.ReLU,,,9,9\n", "line 2: not as many cells"),
    "a seed twice": (",".join(REQUIRED) + 2 * "\nc,r,nn.ReLU,,,9,9,1,0,5," + "\n", "seed 0 stands in more than one"),
}


@pytest.mark.parametrize("text, message", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_bad_table_is_refused_and_nothing_written(text, message, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(study, tmp_path, capsys):
    for arguments, message in (([str(tmp_path / "none.csv")], "no results table at"),
                               ([str(study), "--runs", str(tmp_path)], "is not a run folder")):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--out", str(tmp_path / "out")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
