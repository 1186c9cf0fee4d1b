"""A party's certificate and private key, made by the openssl command."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from autorep.mpc.bundle.files import make_folder
from autorep.mpc.parties.tls import Identity, pinned, tls_context

CERTIFICATE, KEY = "certificate.pem", "key.pem"
_MOST_DAYS = 36_500
# No certificate authority: whoever accepts this certificate accepts nothing that its owner signs.
_REQUEST = """
[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = autorep party
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
"""


def make_keys(folder: str | Path, days: int = 365) -> str:
    """Write a self-signed certificate and its private key, which only its owner may read; returns the fingerprint.

    Raises:
        ValueError: the folder cannot be made, has a key already, or openssl is missing or fails.
    """
    folder = make_folder(folder)
    certificate, key = folder / CERTIFICATE, folder / KEY
    if not 1 <= days <= _MOST_DAYS:
        raise ValueError(f"invalid days={days}: expected 1 to {_MOST_DAYS}")
    for path in (certificate, key):
        if path.exists():
            raise ValueError(f"{path} exists: remove it first, or choose another --out")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", str(days), "-config", "/dev/stdin", "-keyout", str(key), "-out", str(certificate)]
    try:
        made = subprocess.run(command, input=_REQUEST, capture_output=True, text=True, umask=0o077)
    except FileNotFoundError as error:
        raise ValueError("keys are made by the command openssl, which is not installed") from error
    if made.returncode:
        for path in (certificate, key):
            path.unlink(missing_ok=True)
        raise ValueError(f"openssl made no keys: {' '.join(made.stderr.split())}")
    certificate.chmod(0o644)
    return fingerprint_text(str(certificate))


def fingerprint_text(certificate: str) -> str:
    """SHA-256 of a certificate, as openssl writes it: what two people compare on the telephone."""
    return hashlib.sha256(pinned(certificate)).digest().hex(":").upper()


def load_identity(folder: str | Path, peer: str | Path) -> Identity:
    """The identity in a folder that `make_keys` wrote, and the only peer that it accepts.

    Raises:
        ValueError: a file is missing, holds something else, or others may read the private key.
    """
    folder = Path(folder)
    identity = Identity(str((folder / CERTIFICATE).resolve()), str((folder / KEY).resolve()), str(Path(peer).resolve()))
    for path in (identity.certificate, identity.key, identity.peer):
        if not os.path.isfile(path):
            raise ValueError(f"{path} is no file: python -m autorep.mpc keys --out DIR makes a certificate and a key; "
                             "--peer is the certificate of the other party")
    if os.stat(identity.key).st_mode & 0o077:
        raise ValueError(f"others may read the private key: chmod 600 {identity.key}")
    tls_context(identity, server_side=False)
    return identity
