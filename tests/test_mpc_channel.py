"""The parties' own connections and the shaped link: no engine needed."""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from autorep.mpc.engines import CLIENT, SERVER, Network
from autorep.mpc.parties import channel as channels
from autorep.mpc.parties import handshake, launch, negotiation
from autorep.mpc.parties.addresses import free_ports
from autorep.mpc.parties.channel import PeerError, check_free, connect, listen
from autorep.mpc.parties.framing import BLOB, HEADER, JSON, send_message
from autorep.mpc.parties.handshake import StrangerError, admit
from autorep.mpc.parties.meter import Traffic, parse_profile
from autorep.mpc.parties.negotiation import hear
from autorep.mpc.parties.one_party import _listen
from autorep.mpc.parties.proxy import ShapedLink
from autorep.mpc.parties.report import num_cpus

HOST, SECRET = "127.0.0.1", b"of this run"


def free_port(host):
    return free_ports(host, 1)[0]


def pair(listen_at, dial):
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(listen, listen_at, 20, SECRET)
        client = connect(dial, 20, SECRET)
        return server.result(), client


def part(*channels):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda channel: channel.part(), channels))


def test_messages_arrive_unchanged_and_are_counted():
    address = (HOST, free_port(HOST))
    server, client = pair(address, address)
    blobs = [b"", b"\0" * 3, os.urandom(100_000)]
    client.send_json({"a": [1, 2.5, None]})
    client.send_blobs(blobs)
    assert server.receive_json() == {"a": [1, 2.5, None]}
    assert server.receive_blobs(200_000) == blobs
    assert client.sent == server.received > 100_003
    part(client, server)


@contextlib.contextmanager
def dripping(data, pause_s):
    """A connection whose other end sends these pieces one after another, with a pause after each."""
    here, there = socket.socketpair()

    def drip():
        for piece in data:
            with contextlib.suppress(OSError):
                there.sendall(piece)
            time.sleep(pause_s)

    with here, there, ThreadPoolExecutor(1) as pool:
        pool.submit(drip)
        yield here
        here.close()


def bytes_of(data):
    return [data[i:i + 1] for i in range(len(data))]


def test_who_sends_a_byte_at_a_time_gains_no_time(monkeypatch):
    monkeypatch.setattr(negotiation, "ADMIT_S", 0.2)
    monkeypatch.setattr(handshake, "ADMIT_S", 0.2)
    with dripping(bytes_of(HEADER.pack(b"ARPI", JSON, 10)), 0.05) as connection, \
            pytest.raises(PeerError, match="began a message and did not end it within 0.2 s"):
        hear(connection, 0.2)
    with dripping(bytes_of(hello_of()), 0.05) as connection, pytest.raises(StrangerError, match="timed out"):
        admit(connection, SECRET, (0,))


def test_a_message_that_arrives_in_pieces_is_read_whole():
    body = json.dumps({"error": "the reason"}).encode()
    with dripping([HEADER.pack(b"ARPI", JSON, len(body)), body], 0.3) as connection:
        assert _listen(connection, 0.1) == ["the other host says: the reason"]


def test_a_message_of_another_kind_is_refused():
    address = (HOST, free_port(HOST))
    server, client = pair(address, address)
    client.send_json(1)
    with pytest.raises(PeerError, match="does not speak"):
        server.receive_blobs(100)
    for channel in (client, server):
        channel._closing.set()  # They are out of step now, and would end this process as they end a party's.


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 4 + bytes(20), struct.pack(">I", 1),
                                  struct.pack(">IQ", 1, 2**63) + b"x", struct.pack(">I", 0) + b"x"])
def test_parts_that_do_not_add_up_are_refused(data):
    address = (HOST, free_port(HOST))
    server, client = pair(address, address)
    send_message(client._main, BLOB, data)
    with pytest.raises(PeerError, match="the peer sent a message"):
        server.receive_blobs(100)
    part(server, client)


def test_parting_out_of_step_is_refused():
    address = (HOST, free_port(HOST))
    server, client = pair(address, address)
    client.send_json("one more")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(client.part)
        with pytest.raises(PeerError, match="did not finish in step"):
            server.part()
        other.result()


def test_a_dial_is_repeated_until_the_peer_behind_a_proxy_is_there():
    here, there = (HOST, free_port(HOST)), (HOST, free_port(HOST))
    with ShapedLink(Network("test", 1.0, 100.0), [(here, there, CLIENT, SERVER)]), ThreadPoolExecutor(1) as pool:
        client = pool.submit(connect, here, 20, SECRET)
        time.sleep(0.3)
        server = listen(there, 20, SECRET)
        server.send_json("here")
        assert client.result().receive_json() == "here"
        part(client.result(), server)


def dial(address):
    for _ in range(500):
        try:
            return socket.create_connection(address)
        except OSError:
            time.sleep(0.02)
    raise AssertionError("nobody listens")


def hello_of(kind=0):
    return b"ARPI" + bytes([kind]) + bytes(16)


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", None, b"\0" * 4096, hello_of(7),
                                   hello_of() + bytes(32), b"ARPI\0" + struct.pack(">Q", 2**33)],
                         ids=["http", "silent", "closed", "zeros", "other kind", "wrong proof", "large header"])
def test_a_stranger_is_dropped_and_the_party_behind_it_admitted(hello, expect_said):
    address = (HOST, free_port(HOST))
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(listen, address, 20, SECRET)
        stranger = dial(address)
        if hello is None:
            stranger.close()
        else:
            stranger.sendall(hello)
        client = connect(address, 20, SECRET)
        part(server.result(10), client)
        stranger.close()
    expect_said("dropped a connection from 127.0.0.1: it")


def test_who_does_not_know_the_secret_learns_that_and_nothing_else():
    address = (HOST, free_port(HOST))
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(listen, address, 1.5, SECRET)
        with pytest.raises(PeerError, match="wrong peer at .* does not know the secret of this run"):
            connect(address, 20, b"of another run")
        reflecting = dial(address)  # the server's proof is none of the client's
        reflecting.sendall(hello_of())
        answer = reflecting.recv(48, socket.MSG_WAITALL)
        assert len(answer) == 48 and SECRET not in answer
        reflecting.sendall(answer[16:])
        assert reflecting.recv(1) == b""
        with pytest.raises(PeerError, match="no party of this run came"):
            server.result()
        reflecting.close()


def test_a_message_larger_than_the_next_one_may_be_is_refused():
    address = (HOST, free_port(HOST))
    server, client = pair(address, address)
    client.send_blobs([bytes(1000)])
    with pytest.raises(PeerError, match="does not speak"):
        server.receive_blobs(1000)  # with their lengths they are more
    for channel in (client, server):
        channel._closing.set()


@pytest.mark.parametrize("parting", [False, True])
def test_a_silent_peer_is_said_and_given_up(monkeypatch, expect_said, parting):
    monkeypatch.setattr(channels, "_BEAT_S", 60.0)
    monkeypatch.setattr(channels, "_SILENCE_S", 0.2)
    monkeypatch.setattr(channels, "_LONGEST_SILENCE_S", 0.5)
    monkeypatch.setattr(channels, "_LAST_WORDS_S", 0.0)
    ended = threading.Semaphore(0)
    monkeypatch.setattr(channels.os, "_exit", lambda code: ended.release())
    address = (HOST, free_port(HOST))
    both = pair(address, address)
    if parting:
        with pytest.raises(PeerError, match="did not finish within 0.5 s"):
            both[0].part()
    assert ended.acquire(timeout=10) and ended.acquire(timeout=10)
    for channel in both:
        channel._closing.set()
    expect_said("no sign of life for 0.2 s", "error: the other party ended")


def test_signs_of_life_keep_a_channel_open(monkeypatch, capfd):
    monkeypatch.setattr(channels, "_BEAT_S", 0.05)
    monkeypatch.setattr(channels, "_SILENCE_S", 0.5)
    address = (HOST, free_port(HOST))
    server, client = pair(address, address)
    time.sleep(1.2)
    part(server, client)
    assert "no sign of life" not in capfd.readouterr().err


def test_a_missing_peer_is_a_clear_error():
    address = (HOST, free_port(HOST))
    with pytest.raises(PeerError, match="no party answers at"):
        connect(address, 0.2, SECRET)
    with pytest.raises(PeerError, match="no party of this run came to"):
        listen(address, 0.2, SECRET)


def test_a_busy_address_is_named():
    with socket.create_server((HOST, 0)) as holder:
        address = holder.getsockname()
        with pytest.raises(PeerError, match=f"cannot listen on {HOST}:{address[1]}.*--port"):
            check_free(address)


def test_a_computer_without_the_parties_addresses_is_told_how_to_get_them(monkeypatch):
    # An address for documentation, which no computer has.
    monkeypatch.setattr(launch, "HOSTS", ("127.0.0.1", "192.0.2.1"))
    with pytest.raises(launch.RunError, match="address 192.0.2.1, which Linux has.*ifconfig lo0 alias 192.0.2.1"):
        launch.check_hosts(2)


def test_cpus_are_counted_outside_linux_too(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert num_cpus() == os.cpu_count()


def test_the_shaped_link_delays_limits_and_counts():
    here, there = (HOST, free_port(HOST)), (HOST, free_port(HOST))
    link = ShapedLink(Network("test", delay_ms=60.0, mbit=8.0), [(here, there, CLIENT, SERVER)])
    with link:
        server, client = pair(there, here)
        before = link.sent_by[CLIENT].num_bytes
        started = time.monotonic()
        client.send_blobs([bytes(100_000)])
        assert len(server.receive_blobs(200_000)[0]) == 100_000
        server.send_json("thanks")
        client.receive_json()
        # 0.1 s for 100 kB at 8 Mbit/s, and 60 ms each way.
        assert time.monotonic() - started > 0.2
        assert link.sent_by[CLIENT].num_bytes - before == client.sent
        part(client, server)


def test_a_dead_end_closes_both_sides_of_the_link():
    here, there = (HOST, free_port(HOST)), (HOST, free_port(HOST))
    link = ShapedLink(Network("test", 1.0, 100.0), [(here, there, CLIENT, SERVER)])
    with link, socket.create_server(there) as target:
        near = socket.create_connection(here)
        far, _ = target.accept()
        far.close()
        near.settimeout(10)
        assert near.recv(1) == b""
        near.close()


def test_profiles_are_read_execution_by_execution(tmp_path):
    log = tmp_path / "engine.log"
    head = "2026-01-01 00:00:00.000 [info] [api.cc:printProfilingData:172] "
    total = head + "Link details: total send bytes {}, recv bytes {}, send actions {}, recv actions {}\n"
    log.write_text(head + "[Profiling] SPU execution unit0 completed, input processing took 1s\nnoise\n"
                   + total.format(10, 20, 1, 2) + head + "[Profiling] SPU execution unit1 completed, x\n"
                   + total.format(0, 0, 0, 0))
    expected = [("unit0", Traffic(10, 20, 1, 2)), ("unit1", Traffic(0, 0, 0, 0))]
    assert parse_profile(log) == expected
    aside = head + "[Profiling] SPU execution aside completed, x\n"
    whole = log.read_text()
    log.write_text(aside + aside + total.format(1, 1, 1, 1) + total.format(2, 2, 2, 2) + whole + aside)
    assert parse_profile(log) == expected
    log.write_text(whole.rpartition(head)[0])
    with pytest.raises(ValueError, match="'unit1' has no totals"):
        parse_profile(log)


def test_the_link_leaves_no_thread_behind():
    link = ShapedLink(Network("test", 1.0, 100.0), [((HOST, free_port(HOST)), (HOST, free_port(HOST)), CLIENT, SERVER)])
    with link:
        assert link._thread in threading.enumerate()
    assert link._thread not in threading.enumerate()
