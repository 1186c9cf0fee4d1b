"""What two hosts tell each other before their parties start: the server offers, and the client asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from autorep.mpc.engines import ENGINES
from autorep.mpc.parties.addresses import LAST_PORT
from autorep.mpc.parties.channel import Address
from autorep.mpc.parties.framing import (
    JSON,
    LARGEST_JSON,
    Connection,
    PeerError,
    parse_json,
    receive_message,
    send_message,
)
from autorep.mpc.parties.handshake import ADMIT_S
from autorep.mpc.ring.fixed_point import FixedPoint

LARGEST_BATCH, _MOST_QUERIES = 1024, 10**9
_SECRET_BYTES = 32
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Offer:
    """What a server has.

    Args:
        bundle: the fingerprint of the public part.
        control, links: the ports of its party, at the address that the client dialled: of the parties' own channel,
            and of each lane of the engine.
    """

    bundle: str
    engine: str
    fixed: FixedPoint
    control: int
    links: tuple[int, ...]

    def send(self, connection: Connection) -> None:
        """Send it to the client."""
        tell(connection, {"offer": asdict(self)})


@dataclass(frozen=True)
class Request:
    """What a client wants.

    Args:
        batch: images per query.
        queries: without the warm-up.
        links: where its party listens, per lane of the engine.
        secret: of this session, hexadecimal.
    """

    batch: int
    queries: int
    links: tuple[Address, ...]
    secret: str

    def send(self, connection: Connection) -> None:
        """Send it to the server."""
        tell(connection, {"request": asdict(self)})


def tell(connection: Connection, message: dict[str, Any]) -> None:
    """Send one message. Raises PeerError if the other host is gone."""
    send_message(connection, JSON, json.dumps(message).encode())


def hear(connection: Connection, timeout_s: float | None) -> dict[str, Any]:
    """The next message of the other host, once begun, within `ADMIT_S`.

    Raises:
        PeerError: it says that something went wrong, is gone, or stops within a message.
        TimeoutError: it begins none within `timeout_s`; None: waited for ever.
    """
    message = parse_json(receive_message(connection, (JSON,), LARGEST_JSON, timeout_s, ADMIT_S)[1])
    if not isinstance(message, dict):
        raise PeerError("the other host sent a message that is no object")
    if "error" in message:
        said = "".join(c if c.isprintable() else " " for c in str(message["error"]))
        raise PeerError(f"the other host says: {said}")
    return message


def parse_offer(message: dict[str, Any]) -> Offer:
    """The offer in a message. Raises PeerError if it is none that this version understands."""
    def parse(found: dict[str, Any]) -> Offer:
        if found["engine"] not in ENGINES or ENGINES[found["engine"]].parties != 2:
            raise ValueError(f"the engine {found['engine']!r}")
        bits = (_whole(found["fixed"][key], 0, 64) for key in ("fraction_bits", "coefficient_bits"))
        fixed = FixedPoint(*bits, found["fixed"]["truncation"])
        links = tuple(_port(port) for port in found["links"])
        if len(links) != ENGINES[found["engine"]].lanes:
            raise ValueError(f"{len(links)} links")
        return Offer(str(found["bundle"]), found["engine"], fixed, _port(found["control"]), links)

    return _parsed(message, "offer", parse)


def parse_request(message: dict[str, Any], lanes: int) -> Request:
    """The request in a message. Raises PeerError if it is none that this version understands."""
    def parse(found: dict[str, Any]) -> Request:
        links = tuple((str(host), _port(port)) for host, port in found["links"])
        secret = bytes.fromhex(found["secret"])
        if len(links) != lanes or len(secret) != _SECRET_BYTES:
            raise ValueError(f"{len(links)} links, {len(secret)} bytes of secret")
        return Request(_whole(found["batch"], 1, LARGEST_BATCH), _whole(found["queries"], 1, _MOST_QUERIES), links,
                       secret.hex())

    return _parsed(message, "request", parse)


def _parsed(message: dict[str, Any], kind: str, parse: Callable[[Any], _Parsed]) -> _Parsed:
    try:
        return parse(message[kind])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PeerError(f"the other host sent an invalid {kind} ({error}): another version of this toolkit?") from error


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r}, expected a whole number from {low} to {high}")
    return value


def _port(value: Any) -> int:
    return _whole(value, 1, LAST_PORT)
