"""Real processes under every engine. Skipped where scripts/setup_mpc.sh has not been run."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mpc_nets import EVERYTHING, RESIDUAL, make_net

from autorep.mpc.__main__ import main
from autorep.mpc.bundle.files import load_graph, save_bundle
from autorep.mpc.bundle.masking import with_masking
from autorep.mpc.bundle.ops import Op
from autorep.mpc.cost.aby3 import aby3_unit
from autorep.mpc.cost.cheetah import CHEETAH_ERROR
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.cost.semi2k import semi2k_unit
from autorep.mpc.engines import find_engine, parse_network
from autorep.mpc.parties import launch
from autorep.mpc.parties.launch import RunError, run_task
from autorep.mpc.parties.results import collect
from autorep.mpc.parties.task import Task
from autorep.mpc.ring.fixed_point import FixedPoint
from autorep.mpc.ring.lowering import lower
from autorep.mpc.ring.prediction import run_fixed
from autorep.mpc.ring.program import units

try:
    launch.engine_python()
    launch.check_hosts(3)
except RunError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.engine
LOOPBACK = parse_network("loopback")
SETTINGS = {"images": 4, "batch": 1, "port": None}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, *make_net(RESIDUAL))
    return str(folder)


@pytest.mark.parametrize(("engine", "trust"), [
    ("spu-semi2k", "The server deals the multiplication triples"),
    ("spu-aby3", "Three parties, no two of which collude")])
def test_a_run_is_right_at_the_price_of_the_closed_form(bundle, tmp_path, capsys, engine, trust):
    arguments = ["run", bundle, "--engine", engine, "--images", "4", "--compare", "--net", "1:1000", "--truncation",
                 "exact"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert f"TRUST: {trust}" in output
    last = json.loads(output.splitlines()[-1])
    assert set(last) == {"engine", "net", "agreement", "max_error", "all_relu", "trained", "no_relu"}
    assert last["agreement"] == 1.0 and last["max_error"] < 1e-3
    report = json.loads((tmp_path / "pi.json").read_text())
    for name, found in report["variants"].items():
        expected = estimate(with_masking(load_graph(bundle), name), FixedPoint(), [])[engine]
        rows = [row for row in found["by_layer"] if row["kind"] != "input and output"]
        assert [(row["layer"], sum(row["sent"].values()), row["messages"]) for row in rows] == \
            [(row["layer"], row["bytes"], row["messages"]) for row in expected["by_layer"]]
        assert found["rounds"] == expected["rounds"] == last[name]["rounds"]
        assert 0 < found["bytes"]["total"] - expected["bytes"] < 600  # the headers of input and output
        roles = find_engine(engine).roles
        assert tuple(found["pids"]) == roles and len({*found["pids"].values(), os.getpid()}) == len(roles) + 1
        assert len({host for host, _ in found["addresses"].values()}) == len(roles)
        assert found["seconds"]["min"] <= found["seconds"]["median"] == last[name]["seconds"]


@pytest.mark.parametrize(("fixed", "error"), [(FixedPoint(), 1e-3), (FixedPoint.of("local"), 2e-2)])
def test_every_operation_under_semi2k(tmp_path, fixed, error):
    graph, weights, samples = make_net(EVERYTHING)
    save_bundle(tmp_path / "bundle", graph, weights, samples)
    task = run_task(str(tmp_path / "bundle"), "trained", "spu-semi2k", LOOPBACK, fixed, out=tmp_path / "run",
                    images=4, batch=2, port=None, queries=2)
    logits = np.load(tmp_path / "run" / "client" / "logits.npy").reshape(4, -1)
    program = lower(graph, fixed)
    predicted = run_fixed(program, weights, samples.images[:4])[graph.output_name]
    assert np.abs(logits - predicted).max() < error
    *rows, _ = collect(task, load_graph(tmp_path / "bundle"), samples)["by_layer"]
    assert [(row["layer"], *row["sent"].values(), row["messages"]) for row in rows] == \
        [(unit.step.op.name, sent, sent, rounds) for unit in units(program)
         for sent, rounds in [semi2k_unit(unit, 2, fixed)]]


HIGH_DEGREES = (
    Op("norm", "affine", ("input",), {}),
    Op("cubic", "gate", ("norm",), {"degree": (3,)}),
    Op("quartic", "gate", ("cubic",), {"degree": (4,)}),
    Op("conv", "conv", ("quartic",), {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1),
                                      "groups": (1,), "out_channels": (3,)}),
    Op("pool", "avg_pool", ("conv",), {"kernel": (4, 4), "stride": (4, 4), "padding": (0, 0, 0, 0)}),
    Op("flat", "flatten", ("pool",), {}),
)


@pytest.mark.parametrize(("ops", "input_shape", "fixed"), [
    (EVERYTHING, (2, 6, 6), FixedPoint()), (EVERYTHING, (2, 6, 6), FixedPoint(17, 16)),
    (HIGH_DEGREES, (5, 4, 4), FixedPoint())], ids=["everything", "33 bits", "degrees 3 and 4"])
def test_every_operation_under_aby3(tmp_path, ops, input_shape, fixed):
    graph, weights, samples = make_net(ops, input_shape=input_shape)
    save_bundle(tmp_path / "bundle", graph, weights, samples)
    task = run_task(str(tmp_path / "bundle"), "trained", "spu-aby3", LOOPBACK, fixed, out=tmp_path / "run", images=4,
                    batch=2, port=None, queries=2)
    logits = np.load(tmp_path / "run" / "client" / "logits.npy").reshape(4, -1)
    program = lower(graph, fixed)
    predicted = run_fixed(program, weights, samples.images[:4])[graph.output_name]
    assert np.abs(logits - predicted.reshape(4, -1)).max() < 1e-3
    *rows, _ = collect(task, load_graph(tmp_path / "bundle"), samples)["by_layer"]
    for row, unit in zip(rows, units(program), strict=True):
        num_bytes, rounds = aby3_unit(unit, 2, fixed)
        assert (row["layer"], sum(row["sent"].values())) == (unit.step.op.name, num_bytes)
        # Who sends most in a truncation is drawn by lot: of several in a row nobody may have sent in each.
        inner = sum(max(0, degree - 2) for degree in unit.step.gate.polynomial) if unit.part == "dropped" else 0
        assert rounds - inner <= row["messages"] <= rounds


def test_cheetah_is_right_at_about_the_estimated_price(bundle, tmp_path, capsys):
    assert main(["run", bundle, "--engine", "spu-cheetah", "--images", "4", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "TRUST: No dealer" in output
    last = json.loads(output.splitlines()[-1])
    assert last["agreement"] == 1.0 and last["max_error"] < 1e-3 and last["all_relu"] is None
    convolutions = [row for row in json.loads((tmp_path / "pi.json").read_text())["variants"]["trained"]["by_layer"]
                    if row["kind"] == "convolution"]
    rows = estimate(load_graph(bundle), FixedPoint(), [])["spu-cheetah"]["by_layer"]
    expected = sum(row["bytes"] for row in rows if row["kind"] == "convolution")
    counted = sum(sum(row["sent"].values()) for row in convolutions)
    assert counted == pytest.approx(expected, rel=CHEETAH_ERROR)


def make_task(bundle, out, engine="spu-semi2k", **changes) -> Task:
    fields, _ = launch.plan_addresses(None, LOOPBACK, find_engine(engine))
    values = {"bundle": bundle, "masking": "trained", "engine": engine, "fixed": FixedPoint(), "images": 4,
              "batch": 1, "queries": 2, "secret": "00ff", "out": str(out), **fields, **changes}
    return Task(**values)


def run_parties(**tasks: Task) -> dict[str, tuple[int, str]]:
    """Run the party of every role with its own task: role -> exit code and what it said."""
    processes = {}
    try:
        for role, task in tasks.items():
            Path(task.out).mkdir()
            processes[role] = (launch.start_party(task, role), Path(task.out) / f"{role}.err")
        return {role: (process.wait(60), said.read_text()) for role, (process, said) in processes.items()}
    finally:
        for process, _ in processes.values():
            launch.end_party(process)


@pytest.mark.parametrize("engine", ["spu-semi2k", "spu-aby3"])
def test_each_party_needs_only_its_own_secret(bundle, tmp_path, engine):
    not_its_own = {"server": ["samples.npz"], "client": ["model.npz"], "helper": ["samples.npz", "model.npz"]}
    task, tasks = make_task(bundle, tmp_path, engine), {}
    for role in find_engine(engine).roles:
        shutil.copytree(bundle, tmp_path / f"{role}-bundle")
        for secret in not_its_own[role]:
            (tmp_path / f"{role}-bundle" / secret).unlink()
        tasks[role] = replace(task, bundle=str(tmp_path / f"{role}-bundle"), out=str(tmp_path / f"{role}-out"))
    ended = run_parties(**tasks)
    assert {code for code, _ in ended.values()} == {0}, ended
    assert [path.parent.name for path in tmp_path.glob("*-out/*/logits.npy")] == ["client"]


@pytest.mark.parametrize("changes", [{"masking": "all_relu"}, {"queries": 3}])
def test_the_wrong_peer_is_refused_by_both(bundle, tmp_path, changes):
    task = make_task(bundle, tmp_path / "server-out")
    ended = run_parties(server=task, client=replace(task, out=str(tmp_path / "client-out"), **changes))
    for code, said in ended.values():
        assert code == 3 and "this is the wrong peer: it differs in" in said


def test_a_busy_port_is_a_clear_error(bundle, tmp_path):
    with socket.create_server((launch.HOSTS[0], 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(RunError, match=f"server: cannot listen on {launch.HOSTS[0]}:{port}.*--port"):
            run_task(bundle, "trained", "spu-semi2k", LOOPBACK, FixedPoint(), out=tmp_path, queries=1,
                     **{**SETTINGS, "port": port})


def parties_of(out: Path) -> dict[str, int]:
    """Role -> pid of the running parties whose folder is `out`."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    found = {}
    for pid, *words in map(str.split, listing.splitlines()):
        if str(out) in words:
            found[words[words.index(str(out)) + 1]] = int(pid)
    return found


def kill_parties(out: Path) -> None:
    for pid in parties_of(out).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(0.05)


needs_ps = pytest.mark.skipif(shutil.which("ps") is None, reason="processes are found by the command ps")


@needs_ps
@pytest.mark.parametrize(("engine", "victim"), [(name, role) for name in ("spu-semi2k", "spu-aby3")
                                                for role in find_engine(name).roles])
def test_a_killed_party_ends_the_others_and_leaves_nothing(bundle, tmp_path, engine, victim):
    errors = []

    def run():
        try:
            run_task(bundle, "trained", engine, parse_network("300:10"), FixedPoint(), out=tmp_path, queries=50,
                     **SETTINGS)
        except RunError as error:
            errors.append(str(error))

    runner = threading.Thread(target=run)
    runner.start()
    try:
        wait_until(lambda: errors or "SPU execution" in read(tmp_path / "server" / "engine.log"), "the server computes")
        assert not errors
        os.kill(parties_of(tmp_path)[victim], signal.SIGKILL)
        runner.join(20)
        assert not runner.is_alive()
    finally:
        kill_parties(tmp_path)
    assert f"{victim}: killed by signal 9" in errors[0]
    for survivor in {*find_engine(engine).roles} - {victim}:
        assert re.search(f"{survivor}: the other party (ended before|closed the connection|is gone)", errors[0]), errors
    assert parties_of(tmp_path) == {}
    assert not list(tmp_path.glob("BeaverCache*"))


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@needs_ps
@pytest.mark.parametrize(("engine", "stopping"), [
    ("spu-semi2k", signal.SIGTERM), ("spu-semi2k", signal.SIGINT), ("spu-semi2k", signal.SIGKILL),
    ("spu-aby3", signal.SIGKILL)])
def test_a_stopped_launcher_ends_all_parties(bundle, tmp_path, engine, stopping):
    command = [sys.executable, "-m", "autorep.mpc", "run", bundle, "--engine", engine, "--images", "4", "--repeat",
               "100000", "--out", str(tmp_path)]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=launch._ROOT)
    out = tmp_path / "trained"
    try:
        wait_until(lambda: len(parties_of(out)) == find_engine(engine).parties, "all parties run")
        launcher.send_signal(stopping)
        assert launcher.wait(10) == (-stopping if stopping == signal.SIGKILL else 128 + stopping)
        wait_until(lambda: parties_of(out) == {}, "all parties have ended", 5)
    finally:
        launcher.kill()
        launcher.wait()
        kill_parties(out)
