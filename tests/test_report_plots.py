"""Reports: plots of accuracy against ReLUs and prices, and the picture of README."""

from pathlib import Path

import pytest
import torch
from report_tables import cells, study_table, write_table
from torch import nn

from autorep import GateConfig, RunConfig, convert_relus_
from autorep.config import DataConfig, ModelConfig
from autorep.gates.gated_relu import iter_gates
from autorep.report import accuracy, overview, search_plots, variants
from autorep.report.groups import group_rows
from autorep.report.picture import Omitted, thousands
from autorep.report.published import published_points
from autorep.report.rows import read_rows
from autorep.report.runs import Run
from autorep.report.styles import assign_styles
from autorep.report.tables import price_columns
from autorep.runs.folder import RunFolder


@pytest.fixture
def axes_of(monkeypatch):
    """Title of a panel -> its axes, of the picture that a call draws."""
    def draw(plot, *args):
        for module in (accuracy, overview):
            monkeypatch.setattr(module, "finish", lambda figure, *_: figure)
        found = plot(*args)
        figure = found[0] if isinstance(found, list) else found
        return {axes.get_title() or axes.get_xlabel(): axes for axes in figure.axes}
    return draw


def labels(axes) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])


def test_replacements_are_not_mixed_and_published_points_stand_on_their_own_board(axes_of, tmp_path):
    [(board, groups)] = group_rows(read_rows([study_table(tmp_path)])).items()
    panels = axes_of(accuracy.against_relus, board, groups, published_points("cifar100", "resnet18_in"),
                     assign_styles([]))
    dense = "all ReLUs (491,520)"
    assert {title.split()[-1]: labels(axes) for title, axes in panels.items()} == {
        "identity": {dense, "identity", "SNL (published)", "SENet (published)", "ReLUPruner (published)"},
        "linear": {dense, "AutoReP (published)"},
        "quadratic": {dense, "quadratic, DaPa", "AutoReP (published)"}}
    axes = panels["dropped ReLU → identity"]
    assert axes.get_xscale() == "log" and "[%]" in axes.get_ylabel()
    [bar] = axes.containers
    assert bar.lines[0].get_xydata()[0] == pytest.approx([12899, 63.58 + 5 / 3])
    low, high = bar.lines[2][0].get_segments()[0][:, 1]  # one deviation to either side
    assert (high - low) / 2 == pytest.approx(2.081666)


def test_names_of_variants_are_drawn_as_they_are_written(axes_of, tmp_path):
    rows = [cells(variant=name) for name in ('$x_{$ "b"', "_best")]
    [(board, groups)] = group_rows(read_rows([write_table(tmp_path / "study.csv", rows)])).items()
    drawn = board, groups, [], assign_styles(group.label for group in groups)
    assert accuracy.against_relus(*drawn).png and variants.by_variant(board, groups, drawn[-1]).svg
    found = set.union(*map(labels, axes_of(accuracy.against_relus, *drawn).values()))
    assert found == {r'\$x_{\$ "b" (quadratic)', " _best (quadratic)"}


@pytest.mark.parametrize("row", [{"step": 1, "relu_kept": 5}, {"step": 1, "relu_kept": 5, "flips": None}])
def test_rows_of_metrics_that_lack_a_number_are_left_out(tmp_path, row):
    with pytest.raises(Omitted, match="no row of a search"):
        search_plots.flips_over_time(Run(tmp_path, RunConfig(), [row], {}, None, 0, 0), assign_styles([]))


def test_a_network_without_relus_is_drawn(axes_of, tmp_path):
    rows = [cells(relu_budget=b, relu_kept=b) for b in (0, 2000, 50_000)]
    [(board, groups)] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).items()
    [axes] = axes_of(accuracy.against_relus, board, groups, [], assign_styles([])).values()
    left, *_, right = axes.transData.transform(axes.containers[0].lines[0].get_xydata())[:, 0]
    assert axes.bbox.x0 <= left < right <= axes.bbox.x1
    assert [thousands(x) for x in axes.get_xticks()][:5] == ["0", "1K", "2K", "5K", "10K"]


def test_cost_axes_name_their_units(tmp_path, axes_of):
    rows = [cells(relu_budget=b, relu_kept=b, semi2k_bytes=1000 * b, semi2k_lan_seconds=b / 1e4,
                  cheetah_lan_seconds=b / 1e4) for b in (100, 2000)]
    [(board, groups)] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).items()
    columns = {protocol: [column for column in price_columns(groups) if column.protocol == protocol]
               for protocol in ("SEMI2K", "CHEETAH")}
    panels = axes_of(accuracy.against_prices, board, groups, columns["CHEETAH"], assign_styles([]))
    assert set(panels) == {"time of the link alone, LAN without its delays [s]"}
    panels = axes_of(accuracy.against_prices, board, groups, columns["SEMI2K"], assign_styles([]))
    assert set(panels) == {"traffic, both directions [MB]", "time of the link alone, LAN [s]"}
    drawn = panels["traffic, both directions [MB]"].containers[0].lines[0]
    assert drawn.get_xdata() == pytest.approx([0.1, 2.0])


@pytest.mark.parametrize(("budget", "lines", "said"), [
    ({"relu_budget": 500}, {"kept", "current budget"}, "Hysteresis threshold"),
    ({"price": "spu-semi2k:wan", "price_budget": "0.5"}, {"kept"}, "chosen anew whenever the allowed price falls"),
])
def test_a_search_is_shown_with_its_own_budget(monkeypatch, budget, lines, said):
    drawn = []
    monkeypatch.setattr(search_plots, "finish", lambda figure, *texts: drawn.extend((figure, *texts)))
    rows = [{"step": step, "relu_kept": 1000 - step, "relu_target": 1000, "flips": 9} for step in (100, 200)]
    run = Run(Path(), RunConfig.for_search(**budget), rows, {}, None, 200, 200)
    search_plots.flips_over_time(run, assign_styles([])["identity"])
    figure, *_, caption = drawn
    assert labels(figure.axes[0]) == lines and said in caption


def test_the_same_data_give_the_same_bytes(tmp_path):
    [(board, groups)] = group_rows(read_rows([study_table(tmp_path)])).items()
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


# ---- the picture of README


def price_cells(**changes) -> dict:
    return cells(semi2k_wan_seconds="1.0", **changes)


@pytest.fixture
def gates():
    """Gates of two layers, of which the second keeps the most ReLUs."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.ReLU())
    found = dict(iter_gates(convert_relus_(net, torch.randn(1, 1, 8, 8), GateConfig()).model))
    found["1"].mask.fill_(False)
    found["3"].mask[0].fill_(False)
    return found


def test_the_overview_draws_the_widest_variant_of_each_replacement(tmp_path, axes_of, gates):
    rows = [price_cells(variant="", act_type="nn.ReLU", degree="", relu_budget="")]
    rows += [price_cells(variant="narrow", relu_budget=100)]
    rows += [price_cells(variant="wide", relu_budget=b, relu_kept=b, test_top1_last_epoch=b) for b in (20, 30)]
    rows += [price_cells(variant="line", degree=1, relu_budget=100)]
    [(board, groups)] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).items()
    panels = axes_of(overview.draw_overview, board, groups, gates)
    seconds = panels["time of the link alone, SEMI2K on WAN [s]"]
    assert labels(seconds) == {"all ReLUs (12,900)", "all ReLUs", "quadratic, DaPa", "linear, DaPa"}
    drawn = {bar.get_label(): bar.lines[0].get_ydata().tolist() for bar in seconds.containers if hasattr(bar, "lines")}
    assert drawn["quadratic, DaPa"] == [20, 30]
    layers = panels["pixels of the layer [%]"]
    shares = {bars.get_label(): [bar.get_width() for bar in bars] for bars in layers.containers}
    assert shares == {"ReLU": [0, 75], "quadratic": [0, 0], "linear": [0, 0], "identity": [100, 25]}


def test_an_overview_needs_prices(tmp_path, gates):
    [(board, groups)] = group_rows(read_rows([write_table(tmp_path / "t.csv", [cells()])])).items()
    with pytest.raises(ValueError, match="semi2k_wan_seconds"):
        overview.draw_overview(board, groups, gates)


@pytest.mark.parametrize(("arch", "said"), [
    ("resnet18_in", "expected a search with a checkpoint; it has no gates to draw"),
    ("resnet20", "expected resnet18_in on cifar100, as in the table; it is of resnet20 on cifar100")])
def test_an_overview_needs_a_search_of_the_network_of_the_table(tmp_path, capsys, arch, said):
    config = RunConfig(data=DataConfig(dataset="cifar100"), model=ModelConfig(arch=arch))
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").describe_(config, torch.device("cpu"))
    table = write_table(tmp_path / "t.csv", [price_cells()])
    with pytest.raises(SystemExit):
        overview.main([str(table), str(tmp_path / "run"), str(tmp_path / "out.png")])
    assert said in capsys.readouterr().err and not (tmp_path / "out.png").exists()


def test_an_overview_of_two_studies_is_refused(tmp_path, capsys):
    table = write_table(tmp_path / "t.csv", [price_cells(study="a"), price_cells(study="b")])
    with pytest.raises(SystemExit):
        overview.main([str(table), str(tmp_path), str(tmp_path / "out.png")])
    assert "it holds a/cifar100/resnet18_in, b/cifar100/resnet18_in" in capsys.readouterr().err
