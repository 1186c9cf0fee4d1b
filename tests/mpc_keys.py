"""Certificates and keys for the tests of two hosts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from autorep.mpc.parties.keys import CERTIFICATE, KEY, load_identity, make_keys
from autorep.mpc.parties.tls import Identity

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="keys are made by the command openssl")
_AUTHORITY = """
[ca]
default_ca = default
[default]
database = index.txt
new_certs_dir = .
default_md = sha256
policy = policy
rand_serial = yes
[policy]
commonName = supplied
"""


def make_all_keys(folder: Path) -> Path:
    """Folders of keys: server, client, impostor, and expired, whose certificate was valid on one day in 2020."""
    for name in ("server", "client", "impostor", "expired"):
        make_keys(folder / name)
    _expire(folder / "expired")
    return folder


def _expire(folder: Path) -> None:
    (folder / "ca.cnf").write_text(_AUTHORITY)
    (folder / "index.txt").write_text("")
    for command in (["req", "-new", "-key", KEY, "-subj", "/CN=expired", "-out", "request.pem"],
                    ["ca", "-batch", "-selfsign", "-notext", "-config", "ca.cnf", "-keyfile", KEY, "-in", "request.pem",
                     "-out", CERTIFICATE, "-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


def identity(keys: Path, own: str, peer: str) -> Identity:
    """Who has the keys `own` and accepts the certificate of `peer`."""
    return load_identity(keys / own, keys / peer / CERTIFICATE)
