"""The figures of a run: correctness against the oracle, rounds that follow one another."""

from dataclasses import replace

import numpy as np
import pytest
from mpc_nets import RESIDUAL, make_net

from autorep.mpc.bundle.files import load_graph, save_bundle
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.parties import results
from autorep.mpc.parties.meter import Traffic
from autorep.mpc.parties.task import Task
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.tables import critical_rounds, run_table


@pytest.fixture
def finished(tmp_path):
    """A task whose client received the exact logits of the images 0, 1, 2, 0."""
    graph, weights, samples = make_net(RESIDUAL)
    save_bundle(tmp_path / "bundle", graph, weights, samples)
    address = ("127.0.0.1", 1)
    lane = (address, address)
    task = Task(bundle=str(tmp_path / "bundle"), masking="trained", engine="spu-semi2k", fixed=FixedPoint(), images=3,
                batch=2, queries=2, secret="", links=(lane,), links_seen=((lane, lane),), control=(address,),
                control_seen=(address,), out=str(tmp_path))
    (tmp_path / "client").mkdir()
    np.save(tmp_path / "client" / "logits.npy", samples.logits[[0, 1, 2, 0]].reshape(2, 2, -1))
    return task, load_graph(task.bundle), samples


def test_exact_logits_agree(finished):
    task, graph, samples = finished
    found = results._correctness(task, graph, samples)
    top = samples.logits[:3].argmax(1)
    assert found["images"] == 3 and found["agreement"] == 1.0 and found["max_error"] < 1e-5
    assert found["accuracy"] == found["plaintext_accuracy"] == np.mean(top == samples.labels[:3])


def test_a_wrong_answer_is_counted_with_its_margin(finished, tmp_path):
    task, graph, samples = finished
    logits = samples.logits[[0, 1, 2, 0]].copy()
    logits[1, samples.logits[1].argmin()] = 50.0
    np.save(tmp_path / "client" / "logits.npy", logits.reshape(2, 2, -1))
    found = results._correctness(task, graph, samples)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["max_error"] == pytest.approx(50 - samples.logits[1].min(), rel=1e-3)
    assert found["missed_by"] == pytest.approx([np.ptp(samples.logits[1])], rel=1e-3)


def test_unknown_labels_give_no_accuracy(finished):
    task, graph, samples = finished
    found = results._correctness(task, graph, replace(samples, labels=np.full(5, -1)))
    assert found["accuracy"] is None and found["plaintext_accuracy"] is None


def test_a_network_without_finite_logits_has_no_error_figure(finished):
    task, graph, samples = finished
    huge = {**graph.public, "relu1/coefficients": np.full((4, 3), 1e200), "relu2/coefficients": np.full((4, 3), 1e200)}
    wild = with_masking(replace(graph, public=huge), "no_relu")
    found = results._correctness(task, wild, samples)
    assert found["max_error"] is None
    figures = {"relu_kept": 0, "layers_with_relu": 0, "seconds": {"median": 1, "min": 1, "max": 1}, "rounds": 1,
               "bytes": {"total": 1}, **found}
    assert "not finite" in run_table({"no_relu": figures}, "rounds")


def test_units_side_by_side_take_the_rounds_of_the_longer():
    rows = [{"messages": m, "beside": b} for m, b in ((2, False), (8, False), (2, True), (1, False), (3, True))]
    assert critical_rounds(rows) == 2 + 8 + 3
    assert critical_rounds([{**row, "beside": False} for row in rows]) == 16


def test_units_without_a_profile_take_the_counts_of_the_warm_up():
    warm_up = [(f"unit{i}", Traffic(10 * i, i, 1, 1)) for i in range(3)]
    profile = [("cache", Traffic()), *warm_up, ("unit0", Traffic(5, 5, 1, 1)), ("unit2", Traffic(7, 7, 1, 1))]
    local_first = [(f"unit{i + 1}", traffic) for i, (_, traffic) in enumerate(warm_up)] * 2
    assert results.per_query(local_first, 5) == [[Traffic(), *(traffic for _, traffic in warm_up), Traffic()]] * 2
    assert results.per_query(profile, 3)[1] == [Traffic(5, 5, 1, 1), warm_up[1][1], Traffic(7, 7, 1, 1)]
