"""Mutual TLS with pinned certificates: each party knows the certificate of the other and accepts no other."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass

from autorep.mpc.parties.handshake import ADMIT_S, StrangerError
from autorep.mpc.parties.tls_connection import TlsConnection

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_WELCOME = b"\1"
_EXPIRED, _NOT_YET_VALID = 10, 9  # OpenSSL's codes of a failed verification


@dataclass(frozen=True)
class Identity:
    """Who a party is and whom it accepts.

    Args:
        certificate, key: PEM files of this party.
        peer: PEM file with the certificate of the only peer that is accepted.
    """

    certificate: str
    key: str
    peer: str


def pinned(path: str) -> bytes:
    """The only certificate in a PEM file, in DER. Raises ValueError if there is none, or several."""
    with open(path, encoding="ascii", errors="replace") as file:
        found = _PEM.findall(file.read())
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} certificates: expected one, in PEM, as the command keys writes it")
    try:
        return ssl.PEM_cert_to_DER_cert(found[0])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its certificate is no base64 ({error})") from error


def tls_context(identity: Identity, server_side: bool) -> ssl.SSLContext:
    """TLS 1.2 or later in which both sides show certificates, and only the peer's own certificate is trusted.

    Raises:
        ValueError: a file holds something else, or certificate and key do not belong together.
        OSError: a file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # a certificate is known as a whole, whatever address its owner has today
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=pinned(identity.peer))
        context.load_cert_chain(identity.certificate, identity.key, password="")  # no prompt for a protected key
    except ssl.SSLError as error:
        raise ValueError(f"{identity.certificate}, {identity.key} and {identity.peer} are not a certificate, its "
                         f"private key and a certificate: {error.reason or error}; make them by the command "
                         "keys") from error
    return context


def secure(connection: socket.socket, identity: Identity, server_side: bool) -> TlsConnection:
    """Put a fresh connection under TLS. Where the handshake fails, the connection is closed.

    Raises:
        ValueError, OSError: the keys of this party cannot be read, as in `tls_context`.
        StrangerError: the peer is not the pinned one, refuses this party, or says nothing for `ADMIT_S`.
    """
    context = tls_context(identity, server_side)
    connection.settimeout(ADMIT_S)
    open_end = connection
    try:
        open_end = tls = context.wrap_socket(connection, server_side=server_side, do_handshake_on_connect=False)
        tls.do_handshake()
        if tls.getpeercert(binary_form=True) != pinned(identity.peer):
            raise StrangerError("its certificate is not the pinned one")
        # In TLS 1.3 a client is done before the server has seen its certificate. So it waits for the verdict.
        if server_side:
            tls.sendall(_WELCOME)
        elif tls.recv(1) != _WELCOME:
            raise StrangerError("it closed the connection")
    except (StrangerError, OSError) as error:
        open_end.close()
        raise (error if isinstance(error, StrangerError) else StrangerError(reason(error))) from error
    return TlsConnection(tls)


def reason(error: OSError) -> str:
    """What went wrong with a handshake, seen from this side."""
    if isinstance(error, TimeoutError):
        return f"it said nothing for {ADMIT_S:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        words = {_EXPIRED: "its certificate has expired: it needs a new one, made by the command keys",
                 _NOT_YET_VALID: "its certificate is not valid yet: compare the clocks of both hosts"}
        return words.get(error.verify_code, f"its certificate is not the pinned one ({error.verify_message})")
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) or not isinstance(error, ssl.SSLError):
        return f"it ended the connection during the handshake ({error.strerror or error})"
    name = (error.reason or str(error)).replace("_", " ").lower()
    if "did not return a certificate" in name:
        return "it shows no certificate"
    if "certificate expired" in name:
        return "it refuses the certificate of this party, which has expired: make a new one by the command keys"
    if "alert" in name:
        return (f"it refuses the certificate of this party ({name.partition('alert ')[2]}): it has to be given this "
                "certificate as --peer")
    return f"it does not speak TLS as this toolkit does ({name})"
