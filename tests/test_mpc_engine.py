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


def test_semi2k_is_right_at_the_price_of_the_closed_form(bundle, tmp_path, capsys):
    arguments = ["run", bundle, "--images", "4", "--compare", "--net", "1:1000", "--out", str(tmp_path)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "TRUST: The server deals the multiplication triples" in output
    last = json.loads(output.splitlines()[-1])
    assert set(last) == {"engine", "net", "agreement", "max_error", "all_relu", "trained", "no_relu"}
    assert last["agreement"] == 1.0 and last["max_error"] < 1e-3
    report = json.loads((tmp_path / "pi.json").read_text())
    for name, found in report["variants"].items():
        expected = estimate(with_masking(load_graph(bundle), name), FixedPoint(), [])["spu-semi2k"]
        rows = [row for row in found["by_layer"] if row["kind"] != "input and output"]
        assert [(row["layer"], sum(row["sent"].values()), row["messages"]) for row in rows] == \
            [(row["layer"], row["bytes"], row["messages"]) for row in expected["by_layer"]]
        assert found["rounds"] == expected["rounds"] == last[name]["rounds"]
        assert len({*found["pids"].values(), os.getpid()}) == 3
        assert found["addresses"]["server"][0] != found["addresses"]["client"][0]
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
    *rows, _ = collect(task, graph, samples)["by_layer"]
    assert [(row["layer"], *row["sent"].values(), row["messages"]) for row in rows] == \
        [(unit.step.op.name, sent, sent, rounds) for unit in units(program)
         for sent, rounds in [semi2k_unit(unit, 2, fixed)]]


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


def make_task(bundle, out, **changes) -> Task:
    fields, _ = launch.plan_addresses(None, LOOPBACK, find_engine("spu-semi2k"))
    values = {"bundle": bundle, "masking": "trained", "engine": "spu-semi2k", "fixed": FixedPoint(), "images": 4,
              "batch": 1, "queries": 2, "secret": "00ff", "out": str(out), **fields, **changes}
    return Task(**values)


def run_pair(server: Task, client: Task) -> dict[str, tuple[int, str]]:
    """Run both parties, each with its own task: role -> exit code and what it said."""
    processes = {}
    try:
        for role, task in (("server", server), ("client", client)):
            Path(task.out).mkdir()
            task.save(Path(task.out) / "task.json")
            processes[role] = (launch._start(Path(task.out), role), Path(task.out) / f"{role}.err")
        return {role: (process.wait(60), said.read_text()) for role, (process, said) in processes.items()}
    finally:
        for process, _ in processes.values():
            launch._end(process)


def test_each_party_needs_only_its_own_secret(bundle, tmp_path):
    for role, secret in (("server", "samples.npz"), ("client", "model.npz")):
        shutil.copytree(bundle, tmp_path / f"{role}-bundle")
        (tmp_path / f"{role}-bundle" / secret).unlink()
    task = make_task(str(tmp_path / "server-bundle"), tmp_path / "server-out")
    ended = run_pair(task, replace(task, bundle=str(tmp_path / "client-bundle"), out=str(tmp_path / "client-out")))
    assert [code for code, _ in ended.values()] == [0, 0], ended
    assert not (tmp_path / "server-out" / "server" / "logits.npy").exists()
    assert (tmp_path / "client-out" / "client" / "logits.npy").exists()


@pytest.mark.parametrize("changes", [{"masking": "all_relu"}, {"queries": 3}])
def test_the_wrong_peer_is_refused_by_both(bundle, tmp_path, changes):
    task = make_task(bundle, tmp_path / "server-out")
    ended = run_pair(task, replace(task, out=str(tmp_path / "client-out"), **changes))
    for code, said in ended.values():
        assert code == 3 and "this is the wrong peer: it differs in" in said


def test_a_busy_port_is_a_clear_error(bundle, tmp_path):
    with socket.create_server((launch.HOSTS[0], 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(RunError, match=f"server: cannot listen on {launch.HOSTS[0]}:{port}.*--port"):
            run_task(bundle, "trained", "spu-semi2k", LOOPBACK, FixedPoint(), out=tmp_path, queries=1,
                     **{**SETTINGS, "port": port})


def parties_of(out: Path) -> dict[str, int]:
    """Role -> pid of the running parties whose task lies in `out`."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    found, task = {}, str(out / "task.json")
    for pid, *words in map(str.split, listing.splitlines()):
        if task in words:
            found[words[words.index(task) + 1]] = int(pid)
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
@pytest.mark.parametrize("victim", ["server", "client"])
def test_a_killed_party_ends_the_other_and_leaves_nothing(bundle, tmp_path, victim):
    errors = []

    def run():
        try:
            run_task(bundle, "trained", "spu-semi2k", parse_network("300:10"), FixedPoint(), out=tmp_path, queries=50,
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
    survivor = {"server": "client", "client": "server"}[victim]
    assert "killed by signal 9" in errors[0]
    assert re.search(f"{survivor}: the other party (ended before|closed the connection|is gone)", errors[0]), errors
    assert parties_of(tmp_path) == {}
    assert not list(tmp_path.glob("BeaverCache*"))


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@needs_ps
@pytest.mark.parametrize("stopping", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_launcher_ends_both_parties(bundle, tmp_path, stopping):
    command = [sys.executable, "-m", "autorep.mpc", "run", bundle, "--images", "4", "--repeat", "100000",
               "--out", str(tmp_path)]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=launch._ROOT)
    out = tmp_path / "trained"
    try:
        wait_until(lambda: len(parties_of(out)) == 2, "both parties run")
        launcher.send_signal(stopping)
        assert launcher.wait(10) == (-stopping if stopping == signal.SIGKILL else 128 + stopping)
        wait_until(lambda: parties_of(out) == {}, "both parties have ended", 5)
    finally:
        launcher.kill()
        launcher.wait()
        kill_parties(out)
