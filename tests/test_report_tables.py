"""Reports: statistics by hand, what is grouped and compared, tables, and published points."""

import math

import pytest
from report_tables import cells, study_table, write_table

from autorep.report.groups import Statistic, group_rows
from autorep.report.prices import price_column
from autorep.report.published import published_points
from autorep.report.rows import read_rows
from autorep.report.tables import Table, price_columns, prices_table, results_table


def test_mean_and_sample_deviation_by_hand():
    found = Statistic.of([1.0, 2.0, 4.0])
    assert (found.mean, found.n) == (pytest.approx(7 / 3), 3)
    assert found.std == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))
    assert str(found) == "2.33 ± 1.53"


def test_one_seed_has_no_deviation():
    assert Statistic.of([50.144]) == Statistic(50.144, None, 1)
    assert str(Statistic.of([50.144])) == "50.14"


def test_rows_that_differ_by_seed_alone_are_one_group(tmp_path):
    [(board, groups)] = group_rows(read_rows([study_table(tmp_path)])).items()
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


def test_budgets_are_sorted_within_an_engine_a_link_and_a_unit(tmp_path):
    priced = [("spu-semi2k:wan", "0.5"), ("spu-cheetah", "0.6"), ("spu-semi2k:wan", "0.42"), ("spu-semi2k:wan", "3s"),
              ("spu-semi2k:lan", "0.5"), ("spu-semi2k:wan", "0.8s"), ("spu-cheetah", "1e-2"), ("spu-cheetah", "4MB")]
    rows = [cells(variant="price", relu_budget="", price=price, price_budget=budget) for price, budget in priced]
    rows += [cells(variant="price", relu_budget=budget, price="", price_budget="") for budget in (25_000, 12_900)]
    [groups] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).values()
    assert [group.budget for group in sorted(groups, key=lambda group: group.budget_order)] == [
        "12,900", "25,000", "1e-2 of spu-cheetah", "0.6 of spu-cheetah", "4MB of spu-cheetah", "0.5 of spu-semi2k:lan",
        "0.42 of spu-semi2k:wan", "0.5 of spu-semi2k:wan", "0.8s of spu-semi2k:wan", "3s of spu-semi2k:wan"]


def test_a_missing_accuracy_at_the_chosen_epoch_is_no_zero(tmp_path):
    rows = [cells(), cells(seed=1, test_top1_at_validation_best="")]
    [groups] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).values()
    assert groups[0].top1_chosen is None
    assert results_table(groups).rows[0][4] == "–"


def test_table_of_results(tmp_path):
    [groups] = group_rows(read_rows([study_table(tmp_path)])).values()
    table = results_table(groups)
    assert table.rows[1] == ("identity", "12,900", "3", "65.25 ± 2.08", "69.00 ± 0.00", "12,898 to 12,900 of 491,520",
                             "16")
    assert table.rows[0][1] == "–"


def test_costs_are_read_by_protocol_and_shown_in_their_unit(tmp_path):
    assert price_column("semi2k_wan_seconds").title == "SEMI2K s on WAN"
    assert price_column("seconds") is price_column("semi2k_price") is price_column("other_bytes") is None
    rows = [cells(semi2k_bytes=12_000_000, semi2k_rounds="", cheetah_lan_seconds="1.25"),
            cells(seed=1, semi2k_bytes=14_000_000, semi2k_rounds="", cheetah_lan_seconds="1.75")]
    [groups] = group_rows(read_rows([write_table(tmp_path / "t.csv", rows)])).values()
    table = prices_table(groups, price_columns(groups))
    assert table.header[2:] == ("SEMI2K MB", "CHEETAH s on LAN without its delays")
    assert table.rows[0][2:] == ("13.0", "1.50")


def test_text_of_a_table_cannot_break_it():
    table = Table("t", ("a", "b"), (("x|y", "<b>"),))
    assert "x\\|y" in table.markdown()
    assert "&lt;b&gt;" in table.html() and "<b>" not in table.html()


# Published points by board, as thousands of ReLUs : top-1
PUBLISHED = {
    ("cifar100", "resnet18_in"): {
        ("AutoReP", "quadratic"): "12.9 : 74.92",
        ("AutoReP", "linear"): "12.9 : 67.75, 15 : 68.4, 25 : 71.10, 50 : 73.86",
        ("ReLUPruner", "identity"): "12.9 : 68.28, 24.9 : 71.98, 50 : 77.90, 100 : 78.12",
        ("SENet", "identity"): "24.6 : 70.59, 49.6 : 75.28",
        ("SNL", "identity"): "12.9 : 66.53, 25 : 70.05, 49.4 : 73.75, 99.9 : 75.94"},
    ("cifar100", "wide_resnet_22_8"): {
        ("AutoReP", "linear"): "120 : 76.32, 150 : 77.38, 180 : 77.49",
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
        ("AutoReP", "linear"): "55 : 56.69, 190 : 63.29",
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
