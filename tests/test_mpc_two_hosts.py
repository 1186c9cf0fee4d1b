"""The commands serve and ask under the real engine, each with its own address, files and temporary folder."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mpc_keys import identity, make_all_keys, needs_openssl
from mpc_nets import RESIDUAL, make_net

from autorep.mpc.bundle.files import load_graph, samples_file, save_bundle
from autorep.mpc.cost.estimate import estimate
from autorep.mpc.parties import launch
from autorep.mpc.parties.addresses import free_ports
from autorep.mpc.parties.handshake import StrangerError
from autorep.mpc.parties.keys import CERTIFICATE
from autorep.mpc.parties.launch import RunError
from autorep.mpc.parties.tls import secure
from autorep.mpc.ring.fixed_point import FixedPoint

try:
    launch.engine_python()
    launch.check_hosts(2)
except RunError as error:
    pytest.skip(str(error), allow_module_level=True)

needs_ps = pytest.mark.skipif(shutil.which("ps") is None, reason="processes are found by the command ps")
pytestmark = [pytest.mark.engine, needs_openssl, needs_ps]
LONG = 100_000  # queries: more than any test waits for
SERVER, CLIENT = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two folders, in which each host has its own keys and its own part of the bundle, and no more."""
    folder = tmp_path_factory.mktemp("hosts")
    make_all_keys(folder / "keys")
    graph, weights, samples = make_net(RESIDUAL)
    graph = replace(graph, meta={"local_agreement": 1.0})
    for role, secret_of_the_other in (("server", "samples.npz"), ("client", "model.npz")):
        save_bundle(folder / role, graph, weights, samples)
        (folder / role / secret_of_the_other).unlink()
    many = np.resize(samples.images, (LONG, *graph.input_shape))
    np.save(folder / "many.npy", many)
    return folder


class Host:
    """A command with its own temporary folder."""

    def __init__(self, role, arguments, hosts, tmp_path):
        # Not below tmp_path: the path of a Unix socket may not be that long.
        self.role, self.temporary = role, Path(tempfile.mkdtemp(prefix="autorep-test-"))
        self.said = tmp_path / f"{self.temporary.name}.txt"
        other = {"server": "client", "client": "server", "impostor": "server"}[role]
        command = [sys.executable, "-m", "autorep.mpc", *arguments, "--key", str(hosts / "keys" / role),
                   "--peer", str(hosts / "keys" / other / CERTIFICATE)]
        with open(self.said, "w") as file:
            self.process = subprocess.Popen(command, cwd=launch._ROOT, stdout=file, stderr=file,
                                            env={**os.environ, "TMPDIR": str(self.temporary)})

    def output(self):
        return self.said.read_text()

    def party(self):
        """The pid of this host's party, if it runs."""
        listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
        found = [int(line.split()[0]) for line in listing.stdout.splitlines()
                 if "autorep.mpc.parties.party" in line and f"{self.temporary}/" in line]
        return found[0] if found else None

    def computes(self):
        """Whether its party is in the middle of its queries."""
        return any("SPU execution unit" in log.read_text(errors="replace")
                   for log in self.temporary.glob("autorep-mpc-*/*/engine.log"))

    def has_left_nothing(self):
        return self.party() is None and not list(self.temporary.iterdir())

    def end(self):
        party = self.party()
        for pid in filter(None, (party, self.process.pid if self.process.poll() is None else None)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.temporary)


def wait_until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(0.05)


def consecutive_ports(number):
    for _ in range(100):
        port = free_ports(SERVER, 1)[0]
        with contextlib.suppress(OSError, OverflowError):
            for each in range(port, port + number):
                socket.create_server((SERVER, each)).close()
            return port
    raise AssertionError("no ports are free")


@pytest.fixture
def start(hosts, tmp_path):
    """Start a service, or ask the one that was started last."""
    started, port = [], consecutive_ports(4)

    def start(role, *arguments):
        command = {"server": ["serve", str(hosts / "server"), "--listen", f"{SERVER}:{port}"]}
        of_client = ["ask", str(hosts / "client"), "--connect", f"{SERVER}:{port}"]
        started.append(Host(role, [*command.get(role, of_client), *arguments], hosts, tmp_path))
        if role == "server":
            wait_until(lambda: "until Ctrl-C" in started[-1].output(), "the service listens")
        return started[-1]

    yield start
    for host in started:
        host.end()


def answers(client):
    assert client.process.wait(150) == 0, client.output()  # the engine's links are given up after 60 s, with words
    return json.loads(client.output().splitlines()[-1])


def test_one_client_after_another_and_a_clean_end(hosts, start, tmp_path):
    server = start("server", "--truncation", "exact")
    client = start("client", "--listen", f"{CLIENT}:{free_ports(CLIENT, 1)[0]}")
    last = answers(client)
    expected = estimate(load_graph(hosts / "client"), FixedPoint(), [])["spu-semi2k"]
    assert last["agreement"] == 1.0 and last["max_error"] < 1e-3 and last["images"] == 5
    assert last["rounds"] == expected["rounds"] and last["bytes"] == pytest.approx(expected["bytes"], rel=0.02)
    assert len(re.findall(r"image \d: class \d, logit ", client.output())) == 5
    assert "TRUST: The server deals" in client.output() and "All connections are encrypted" in client.output()
    assert client.has_left_nothing()

    impostor = start("impostor")
    assert impostor.process.wait(30) == 2 and "it refuses the certificate of this party" in impostor.output()
    with np.load(samples_file(hosts / "client")) as samples:
        np.save(tmp_path / "own.npy", samples["images"][3:])
    own = answers(start("client", "--images", str(tmp_path / "own.npy"), "--batch", "2"))
    assert own["classes"] == last["classes"][3:] and own["agreement"] is None

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert "stopped" in server.output() and server.has_left_nothing()


def test_the_client_takes_the_format_of_the_server_which_is_local_by_default(hosts, start):
    server, client = start("server"), start("client", "--num", "2")
    last = answers(client)
    assert all(host.output().startswith("local truncation, with 12 fraction bits") for host in (server, client))
    expected = estimate(load_graph(hosts / "client"), FixedPoint.of("local"), [])["spu-semi2k"]
    assert last["agreement"] == 1.0 and last["rounds"] == expected["rounds"]


def test_the_dealer_free_engine_works_and_can_be_insisted_on(start):
    server = start("server", "--engine", "spu-cheetah")
    refusing = start("client", "--engine", "spu-semi2k")
    assert refusing.process.wait(30) == 2 and "this client accepts spu-semi2k alone" in refusing.output()
    last = answers(start("client", "--num", "2", "--engine", "spu-cheetah"))
    assert last["engine"] == "spu-cheetah" and last["agreement"] == 1.0
    assert "this client accepts spu-semi2k alone" in server.output()


@pytest.mark.parametrize("stopping", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_service_ends_its_client(hosts, start, stopping):
    server, client = start("server"), start("client", "--images", str(hosts / "many.npy"))
    wait_until(lambda: server.computes() and client.computes(), "both compute")
    server.process.send_signal(stopping)
    assert server.process.wait(20) == 0 and client.process.wait(20) == 2
    assert server.has_left_nothing() and client.has_left_nothing()
    assert "the service was stopped" in client.output()


@pytest.mark.parametrize("victim", ["command of the client", "party of the client", "party of the server"])
def test_a_killed_process_ends_the_session_and_the_next_client_is_served(hosts, start, victim):
    server, client = start("server"), start("client", "--images", str(hosts / "many.npy"))
    wait_until(lambda: server.computes() and client.computes(), "both compute")
    parties = [server.party(), client.party()]
    os.kill({"command of the client": client.process.pid, "party of the client": parties[1],
             "party of the server": parties[0]}[victim], signal.SIGKILL)
    assert client.process.wait(20) == (-signal.SIGKILL if victim == "command of the client" else 2)
    wait_until(lambda: server.party() is None and client.party() is None, "both parties have ended", 20)
    left = [path.read_bytes() for path in client.temporary.rglob("*") if path.is_file()]
    assert not any(b"secret" in content for content in left)  # nothing removes files after a SIGKILL
    if victim != "command of the client":
        assert client.has_left_nothing()
        expected = {"party of the client": "client: killed by signal 9",
                    "party of the server": "the other host says: the server's party failed"}
        assert expected[victim] in client.output()
    assert answers(start("client", "--num", "1"))["agreement"] == 1.0
    assert server.process.poll() is None
    wait_until(server.has_left_nothing, "the server has removed its files", 20)


def test_a_party_that_hangs_is_ended_with_its_client(hosts, start):
    server, client = start("server"), start("client", "--images", str(hosts / "many.npy"))
    wait_until(lambda: server.computes() and client.computes(), "both compute")
    os.kill(server.party(), signal.SIGSTOP)
    waiting = start("client", "--num", "1")
    wait_until(lambda: "waiting: the server serves another client" in waiting.output(), "it is told to wait")
    client.process.send_signal(signal.SIGINT)
    assert client.process.wait(20) == 128 + signal.SIGINT and client.has_left_nothing()
    assert answers(waiting)["agreement"] == 1.0


def test_a_killed_server_ends_the_client(hosts, start):
    server, client = start("server"), start("client", "--images", str(hosts / "many.npy"))
    wait_until(lambda: server.computes() and client.computes(), "both compute")
    server.process.kill()
    assert client.process.wait(20) == 2 and client.has_left_nothing()
    assert "the other party closed the connection" in client.output() or "is gone" in client.output()
    wait_until(lambda: server.party() is None, "its party has ended", 20)


@pytest.mark.parametrize("stranger", ["impostor", "expired"])
def test_no_port_of_a_session_admits_a_stranger(hosts, start, stranger):
    listen = free_ports(CLIENT, 1)[0]
    server = start("server")
    client = start("client", "--images", str(hosts / "many.npy"), "--listen", f"{CLIENT}:{listen}")
    wait_until(lambda: server.computes() and client.computes(), "both compute")
    port = int(re.search(rf"{SERVER}:(\d+) until", server.output())[1])
    for role, address in [("server", (SERVER, port)), *(("server", (SERVER, port + 2 + lane)) for lane in (0, 1)),
                          *(("client", (CLIENT, listen + lane)) for lane in (0, 1))]:
        with pytest.raises(StrangerError, match="it refuses the certificate|it closed|it ended"):
            secure(socket.create_connection(address, 10), identity(hosts / "keys", stranger, role), server_side=False)
        for pretended in (b"", b"\x16\x03\x01\x00\x05\x01"):  # in plain text, and as if it were TLS
            with socket.create_connection(address, 15) as plain:
                plain.sendall(pretended + b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    assert b"HTTP" not in plain.recv(4096)
    assert client.process.poll() is None and server.process.poll() is None


def test_what_a_host_lacks_is_named(hosts, start):
    files = {path.name for path in Path(hosts / "client").iterdir()}
    assert files == {"graph.json", "public.npz", "samples.npz"}
    client = start("client", "--num", "6")
    assert client.process.wait(20) == 2 and "invalid num=6: expected at most 5" in client.output()
    client = start("client")
    assert client.process.wait(20) == 2 and f"no server answers at {SERVER}" in client.output()
