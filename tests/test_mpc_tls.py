"""Mutual TLS with pinned certificates, and a service that strangers knock at: no engine needed."""

import contextlib
import errno
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpc_keys import identity, needs_openssl
from mpc_nets import RESIDUAL, make_net

from autorep.mpc.__main__ import main
from autorep.mpc.bundle.files import load_graph, save_bundle
from autorep.mpc.bundle.graph import fingerprint
from autorep.mpc.parties import one_party, tls
from autorep.mpc.parties import service as services
from autorep.mpc.parties.addresses import free_ports
from autorep.mpc.parties.asking import Question, _own_links
from autorep.mpc.parties.channel import PeerError, connect, listen
from autorep.mpc.parties.framing import JSON, parse_json, receive_message, send_message
from autorep.mpc.parties.handshake import StrangerError
from autorep.mpc.parties.keys import CERTIFICATE, KEY, load_identity, make_keys
from autorep.mpc.parties.launch import RunError
from autorep.mpc.parties.negotiation import Offer, hear, parse_offer, parse_request
from autorep.mpc.parties.service import Service
from autorep.mpc.parties.tls import secure
from autorep.mpc.ring.fixed_point import FixedPoint

pytestmark = needs_openssl
HOST, SECRET = "127.0.0.1", b"of this session"


def verdict(work):
    try:
        return work()
    except StrangerError as error:
        return str(error)


def handshake(of_server, of_client):
    """What both sides get: a connection, or the words of a refusal."""
    here, there = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(verdict, lambda: secure(here, of_server, server_side=True))
        return verdict(lambda: secure(there, of_client, server_side=False)), server.result(20)


def test_the_pinned_parties_talk(keys):
    client, server = handshake(identity(keys, "server", "client"), identity(keys, "client", "server"))
    data = os.urandom(3_000_000)
    with ThreadPoolExecutor(2) as pool:  # both at once in both directions, more than any buffer holds
        for one in (client, server):
            pool.submit(send_message, one, JSON, data)
        for one in (server, client):
            assert receive_message(one, (JSON,), len(data))[1] == data
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv_into(memoryview(bytearray(1)))
    server.close()
    with pytest.raises(PeerError, match="closed the connection"):
        receive_message(client, (JSON,), 10)
    client.close()


NOT_PINNED, REFUSED_BY_OTHER = "its certificate is not the pinned one", "it refuses the certificate of this party"


@pytest.mark.parametrize(("server", "client", "of_client", "of_server"), [
    (("server", "client"), ("impostor", "server"), REFUSED_BY_OTHER, NOT_PINNED),
    (("impostor", "client"), ("client", "server"), NOT_PINNED, REFUSED_BY_OTHER),
    (("server", "expired"), ("expired", "server"), "this party, which has expired", "its certificate has expired"),
    (("expired", "client"), ("client", "expired"), "its certificate has expired", "this party, which has expired"),
], ids=["impostor client", "impostor server", "expired client", "expired server"])
def test_a_wrong_certificate_is_refused_and_both_are_told(keys, server, client, of_client, of_server):
    at_client, at_server = handshake(identity(keys, *server), identity(keys, *client))
    assert of_client in at_client and of_server in at_server


def test_a_client_without_certificate_is_refused(keys):
    here, there = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(verdict, lambda: secure(here, identity(keys, "server", "client"), server_side=True))
        with context.wrap_socket(there) as anonymous, pytest.raises(ssl.SSLError, match="(?i)certificate.required"):
            anonymous.recv(1)
        assert server.result(10) == "it shows no certificate"


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize(("said", "words"), [
    (b"GET / HTTP/1.1\r\n\r\n", "it does not speak TLS"), (b"\0" * 4096, "it does not speak TLS"),
    (b"ARPI\0" + bytes(16), "it does not speak TLS"), (None, "it ended the connection during the handshake"),
    (b"", "it said nothing for 0.5 s")], ids=["http", "zeros", "plain text", "closed", "silent"])
def test_a_stranger_is_refused_with_words(keys, monkeypatch, server_side, said, words):
    monkeypatch.setattr(tls, "ADMIT_S", 0.5)
    here, there = socket.socketpair()
    if said is None:
        there.close()
    else:
        there.sendall(said)
    who = ("server", "client") if server_side else ("client", "server")
    with pytest.raises(StrangerError, match=words):
        secure(here, identity(keys, *who), server_side)
    assert here.fileno() == -1
    there.close()


def test_the_channel_of_the_parties_runs_under_tls(keys, expect_said):
    address = (HOST, free_ports(HOST, 1)[0])
    with ThreadPoolExecutor(2) as pool:
        server = pool.submit(listen, address, 20, SECRET, identity(keys, "server", "client"))
        for stranger in (None, identity(keys, "impostor", "server")):
            with pytest.raises(PeerError):
                connect(address, 1.0, SECRET, stranger)
        client = connect(address, 20, SECRET, identity(keys, "client", "server"))
        client.send_blobs([bytes(1_000_000), b"x"])
        assert server.result().receive_blobs(2_000_000) == [bytes(1_000_000), b"x"]
        list(pool.map(lambda channel: channel.part(), (client, server.result())))
    expect_said("does not speak TLS")


@pytest.mark.parametrize("broken", ["missing", "damaged"])
def test_a_party_whose_keys_are_broken_says_so_and_closes_the_connection(keys, tmp_path, expect_said, broken):
    pem = tmp_path / "peer.pem"
    if broken == "damaged":
        pem.write_text("no certificate")
    address = (HOST, free_ports(HOST, 1)[0])
    with ThreadPoolExecutor(1) as pool:
        own = replace(identity(keys, "server", "client"), peer=str(pem))
        server = pool.submit(listen, address, 1.0, SECRET, own)
        while not server.done():
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address, 10) as stranger:
                assert stranger.recv(1) == b""
                break
        with pytest.raises(PeerError, match="no party of this run came"):
            server.result()
    expect_said("dropped a connection from 127.0.0.1: ", "peer.pem")


@pytest.fixture
def service(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(services, "engine_python", lambda: "none is needed here")
    save_bundle(tmp_path / "bundle", *make_net(RESIDUAL))
    (tmp_path / "bundle" / "samples.npz").unlink()
    address, graph = (HOST, consecutive_ports(4)), load_graph(tmp_path / "bundle")
    found = Service(address, tmp_path / "bundle", graph, "spu-semi2k", FixedPoint(), identity(keys, "server", "client"))
    thread = threading.Thread(target=found.run)
    thread.start()
    try:
        yield address, graph
    finally:
        found.stop()
        thread.join(20)
        assert not thread.is_alive()


def consecutive_ports(number):
    for _ in range(100):
        port = free_ports(HOST, 1)[0]
        try:
            for each in range(port, port + number):
                socket.create_server((HOST, each)).close()
        except (OSError, OverflowError):
            continue
        return port
    raise AssertionError("no ports are free")


def enter(address, who):
    return secure(socket.create_connection(address, 10), who, server_side=False)


def test_strangers_keep_no_client_waiting(service, keys, expect_said):
    (address, graph), pinned = service, identity(keys, "client", "server")
    silent = socket.create_connection(address)
    for hello in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10_000, b""):
        with socket.create_connection(address) as stranger:
            stranger.sendall(hello)
    with pytest.raises(StrangerError, match=REFUSED_BY_OTHER):
        enter(address, identity(keys, "impostor", "server"))
    client = enter(address, pinned)
    offer = parse_offer(hear(client, 10))
    assert offer.bundle == fingerprint(graph) and offer.links == (address[1] + 2, address[1] + 3)
    second = enter(address, pinned)
    assert hear(second, 10) == {"waiting": True}
    send_message(client, JSON, json.dumps({"request": {"batch": 0}}).encode())  # it is dropped, and the next one served
    assert parse_offer(hear(second, 10)) == offer
    for each in (silent, client, second):
        each.close()
    expect_said("does not speak TLS", "ended the connection during the handshake", NOT_PINNED, "invalid request")


REQUEST = {"batch": 1, "queries": 2, "links": [["127.0.0.3", 7000]], "secret": "00" * 32}
FIXED = {"fraction_bits": 16, "coefficient_bits": 16, "truncation": "exact"}
OFFER = {"bundle": "abc", "engine": "spu-cheetah", "fixed": FIXED, "control": 7001, "links": [7002]}


@pytest.mark.parametrize("change", [
    {"batch": 0}, {"batch": True}, {"batch": 10**6}, {"queries": "2"}, {"links": []}, {"links": [["h", 70_000]]},
    {"links": [1]}, {"links": None}, {"secret": "00"}, {"secret": "x" * 64}, {"secret": None}])
def test_invalid_requests_are_refused(change):
    assert parse_request({"request": REQUEST}, 1).links == (("127.0.0.3", 7000),)
    with pytest.raises(PeerError, match="invalid request"):
        parse_request({"request": {**REQUEST, **change}}, 1)


@pytest.mark.parametrize("change", [
    {"engine": "other"}, {"engine": []}, {"fixed": {"fraction_bits": 16}}, {"fixed": None},
    {"fixed": {**FIXED, "truncation": "none"}}, {"fixed": {**FIXED, "fraction_bits": 1}},
    {"links": [1, 2]}, {"control": -1}, {"control": 7000.5}])
def test_invalid_offers_are_refused(change):
    assert parse_offer({"offer": OFFER}).fixed == FixedPoint()
    with pytest.raises(PeerError, match="invalid offer"):
        parse_offer({"offer": {**OFFER, **change}})


SECRET_WORDS = "1.235e+20 in /home/me/weights"


@pytest.mark.parametrize("role", ["server", "client"])
def test_the_other_host_learns_that_a_party_failed_and_not_why(tmp_path, monkeypatch, role):
    def failing(task, role):
        (task.out / f"{role}.err").write_text(f"error: {role}: {SECRET_WORDS}\n")
        return subprocess.Popen(["false"], start_new_session=True)

    monkeypatch.setattr(one_party, "start_party", failing)
    monkeypatch.setattr(one_party, "GRACE_S", 0.1)
    here, there = socket.socketpair()
    with here, there:
        with pytest.raises(RunError, match=re.escape(SECRET_WORDS)):
            one_party._run(SimpleNamespace(out=tmp_path), role, here, None)
        with pytest.raises(PeerError, match=f"says: the {role}'s party failed: its own output says why$"):
            hear(there, 10)


@pytest.mark.parametrize("error", [RunError, ValueError, OSError])
def test_a_client_learns_that_the_session_ended_and_not_why(service, keys, monkeypatch, expect_said, error):
    def failing(*_):
        raise error(SECRET_WORDS)

    monkeypatch.setattr(services, "run_party", failing)
    client = enter(service[0], identity(keys, "client", "server"))
    hear(client, 10)
    links = [["127.0.0.3", port] for port in (7000, 7001)]
    send_message(client, JSON, json.dumps({"request": {**REQUEST, "links": links}}).encode())
    with pytest.raises(PeerError, match="says: the server ended the session$"):
        hear(client, 10)
    client.close()
    expect_said(SECRET_WORDS)


def test_images_that_no_format_holds_are_refused_before_the_server_is_dialled(keys, tmp_path, capsys):
    graph, weights, samples = make_net(RESIDUAL)
    save_bundle(tmp_path / "bundle", graph, weights, samples)
    np.save(tmp_path / "images.npy", np.full((1, *graph.input_shape), 1e10))
    nobody = f"{HOST}:{free_ports(HOST, 1)[0]}"
    assert main(["ask", str(tmp_path / "bundle"), "--connect", nobody, "--key", str(keys / "client"),
                 "--images", str(tmp_path / "images.npy"), "--peer", str(keys / "server" / CERTIFICATE)]) == 2
    assert "invalid images: they reach 1e+10, expected values below 1.074e+09; normalise" in capsys.readouterr().err


def test_what_is_no_json_is_refused():
    for data in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(PeerError, match="no JSON"):
            parse_json(data)


def test_a_host_that_is_gone_is_told_from_one_that_is_silent():
    class Gone:
        def settimeout(self, seconds):
            pass

        def recv_into(self, buffer):
            raise OSError(errno.ETIMEDOUT, "no answer to any probe")

    with pytest.raises(PeerError, match="is gone: .*no answer to any probe"):
        receive_message(Gone(), (JSON,), 10)


def test_keys_are_private_and_not_overwritten(tmp_path, capsys):
    assert main(["keys", "--out", str(tmp_path / "own")]) == 0
    assert (tmp_path / "own" / KEY).stat().st_mode & 0o777 == 0o600
    assert main(["keys", "--out", str(tmp_path / "own")]) == 2
    assert "exists: remove it first" in capsys.readouterr().err


@pytest.mark.parametrize("days", [0, 3_000_000])
def test_an_impossible_validity_leaves_no_key(tmp_path, days):
    with pytest.raises(ValueError, match=f"invalid days={days}: expected 1 to"):
        make_keys(tmp_path, days)
    assert not list(tmp_path.iterdir())


def test_ports_that_do_not_exist_are_refused_before_the_server_dials_them(keys):
    offer = Offer("", "spu-semi2k", FixedPoint(), 1, (2, 3))
    question = Question(Path(), None, Path(), 1, 1, None, listen=("127.0.0.3", 65535))
    with pytest.raises(ValueError, match="invalid --listen port 65535: expected at most 65534"):
        _own_links(None, offer, question)


def test_unusable_keys_are_named(tmp_path):
    for name in ("own", "other"):
        make_keys(tmp_path / name)
    peer = tmp_path / "other" / CERTIFICATE
    with pytest.raises(ValueError, match="nowhere.*is no file.*keys --out"):
        load_identity(tmp_path / "nowhere", peer)
    with pytest.raises(ValueError, match=f"{KEY} holds 0 certificates: expected one"):
        load_identity(tmp_path / "own", tmp_path / "other" / KEY)
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="damaged.pem is damaged"):
        load_identity(tmp_path / "own", damaged)
    (tmp_path / "own" / KEY).chmod(0o640)
    with pytest.raises(ValueError, match="others may read the private key: chmod 600"):
        load_identity(tmp_path / "own", peer)
    os.replace(tmp_path / "other" / KEY, tmp_path / "own" / KEY)
    with pytest.raises(ValueError, match="(?i)not a certificate, its private key and a certificate: .*mismatch"):
        load_identity(tmp_path / "own", peer)


@pytest.mark.parametrize("address", ["[::1]:7000", "::1:7000", "host", "host:0", ":7000"])
def test_an_address_is_a_host_and_a_port(capsys, address):
    with pytest.raises(SystemExit):
        main(["ask", "bundle", "--connect", address])
    assert "expected HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "--listen", "0.0.0.0:7000"], ["ask", "--connect", "127.0.0.1:7000"]])
def test_two_hosts_need_certificates(tmp_path, capsys, command):
    assert main([command[0], str(tmp_path), *command[1:]]) == 2
    assert "two hosts need certificates: make one on each by python -m autorep.mpc keys" in capsys.readouterr().err
