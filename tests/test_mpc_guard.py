"""The guard in front of an engine's port: it passes TLS on and drops the rest. No engine needed."""

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mpc_keys import identity, needs_openssl

from autorep.mpc.parties import guard as guards
from autorep.mpc.parties.addresses import free_ports
from autorep.mpc.parties.channel import PeerError
from autorep.mpc.parties.framing import JSON, receive_message, send_message
from autorep.mpc.parties.guard import Guard
from autorep.mpc.parties.tls import secure

pytestmark = needs_openssl
HOST = "127.0.0.1"


@pytest.fixture
def guarded(tmp_path_factory):
    """An address, and the Unix socket that a guard passes its connections on to."""
    address, path = (HOST, free_ports(HOST, 1)[0]), tmp_path_factory.mktemp("g") / "s"
    with Guard([(address, path)]), socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(path))
        engine.listen()
        engine.settimeout(10)
        yield address, engine


def test_a_guard_passes_tls_on_and_both_ends_with_either(guarded, keys):
    address, engine = guarded
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(lambda: secure(engine.accept()[0], identity(keys, "server", "client"), server_side=True))
        client = secure(socket.create_connection(address, 10), identity(keys, "client", "server"), server_side=False)
        data = os.urandom(1_000_000)
        sent = pool.submit(send_message, server.result(), JSON, data)
        assert receive_message(client, (JSON,), len(data))[1] == data
        sent.result(10)
        server.result().close()
        with pytest.raises(PeerError, match="closed the connection"):
            receive_message(client, (JSON,), 10)
        client.close()


def test_a_guard_drops_plain_text_and_silence(guarded, monkeypatch, expect_said):
    address, engine = guarded
    monkeypatch.setattr(guards, "ADMIT_S", 0.3)
    for hello in (b"GET / HTTP/1.1\r\n\r\n", b"PRPC" + bytes(60), b"\x16\x03\x01\x00\x05\x02 no ClientHello", b"\x16"):
        with socket.create_connection(address, 10) as stranger:
            stranger.sendall(hello)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    engine.settimeout(0.2)
    with pytest.raises(TimeoutError):
        engine.accept()
    expect_said("it does not begin with TLS")


def test_a_guard_waits_for_an_engine_that_does_not_listen_yet(tmp_path_factory):
    address, path = (HOST, free_ports(HOST, 1)[0]), tmp_path_factory.mktemp("w") / "s"
    hello = b"\x16\x03\x01\x00\x05\x01"
    with Guard([(address, path)]), socket.create_connection(address, 10) as peer, \
            socket.socket(socket.AF_UNIX) as engine:
        peer.sendall(hello)
        time.sleep(0.2)
        engine.bind(str(path))
        engine.listen()
        engine.settimeout(10)
        with engine.accept()[0] as passed_on:
            assert passed_on.recv(len(hello), socket.MSG_WAITALL) == hello


def test_the_port_of_a_guard_is_free_behind_it():
    address = (HOST, free_ports(HOST, 1)[0])
    for _ in range(5):
        with Guard([(address, Path("s"))]):
            time.sleep(0.05)  # its thread waits for a connection
            with pytest.raises(OSError, match="in use"):
                socket.create_server(address)
        socket.create_server(address).close()


def test_a_guard_needs_a_short_path_and_a_free_port(tmp_path):
    with pytest.raises(ValueError, match="invalid TMPDIR: expected a shorter path"), \
            Guard([((HOST, 1), tmp_path / ("long" * 30))]):
        pass
    with socket.create_server((HOST, 0)) as holder, pytest.raises(PeerError, match="cannot listen on .*--listen"), \
            Guard([(holder.getsockname(), Path("s"))]):
        pass
