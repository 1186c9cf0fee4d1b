"""The download scripts against small archives behind file:// addresses."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "dataset_download"

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "curl", "md5sum", "flock", "tar")),
    reason="the scripts need curl, md5sum, flock and tar",
)

# script, its second argument, prefix of its variables, archive, folder it makes
TINY = ("download_tinyimagenet.sh", None, "TINY_IMAGENET", "tiny-imagenet-200.zip", "tiny-imagenet-200")
CIFAR10 = ("download_cifar.sh", "cifar10", "CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py")
CIFAR100 = ("download_cifar.sh", "cifar100", "CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python")


class Case:
    """One set's script, a small archive on a "server" folder, and an empty destination with a space in its name."""

    def __init__(self, tmp_path: Path, script, choice, variable, archive, folder) -> None:
        self.script, self.choice, self.variable = script, choice, variable
        self.served = tmp_path / "server" / archive
        self.destination = tmp_path / "my data"
        self.folder = self.destination / folder
        self.archive = self.destination / archive
        self.part = self.destination / f"{archive}.part"
        self.content = os.urandom(50_000)
        content_file = tmp_path / "server" / folder / "content"
        content_file.parent.mkdir(parents=True)
        content_file.write_bytes(self.content)
        if archive.endswith(".zip"):
            with zipfile.ZipFile(self.served, "w") as packed:
                packed.write(content_file, f"{folder}/content")
        else:
            with tarfile.open(self.served, "w:gz") as packed:
                packed.add(content_file.parent, folder)
        self.md5 = hashlib.md5(self.served.read_bytes()).hexdigest()

    def run(self, **changed: str) -> subprocess.CompletedProcess:
        variables = {f"{self.variable}_URL": self.served.as_uri(), f"{self.variable}_MD5": self.md5, **changed}
        command = ["bash", SCRIPTS / self.script, self.destination, *([self.choice] if self.choice else [])]
        return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)

    def assert_installed(self, result: subprocess.CompletedProcess) -> None:
        assert result.returncode == 0, result.stderr
        assert (self.folder / "content").read_bytes() == self.content
        assert [path.name for path in self.destination.iterdir() if not path.name.endswith(".bad")] == [
            self.folder.name
        ]


@pytest.fixture(params=[TINY, CIFAR10, CIFAR100], ids=lambda case: case[2].lower())
def case(request, tmp_path):
    return Case(tmp_path, *request.param)


def test_installs_and_leaves_nothing_else(case):
    case.assert_installed(case.run())


def test_second_run_downloads_nothing(case):
    case.run()
    case.served.unlink()
    result = case.run()
    case.assert_installed(result)
    assert "already" in result.stdout


def test_continues_an_interrupted_download(case):
    case.destination.mkdir()
    # Bytes that the server no longer has prove that the head was kept: only then does the checksum come out right.
    whole = case.served.read_bytes()
    case.part.write_bytes(whole[:20_000])
    case.served.write_bytes(b"\0" * 20_000 + whole[20_000:])
    case.assert_installed(case.run())


def test_takes_a_download_that_was_killed_just_before_its_check(case):
    case.destination.mkdir()
    shutil.move(case.served, case.part)
    case.assert_installed(case.run())


@pytest.mark.parametrize("extra", [0, 1000])
def test_a_full_but_wrong_part_does_not_wedge(case, extra):
    case.destination.mkdir()
    case.part.write_bytes(b"x" * (case.served.stat().st_size + extra))
    results = [case.run(), case.run()]
    case.assert_installed(results[-1])


def test_bad_checksum_says_so_and_how_to_go_on(case):
    result = case.run(**{f"{case.variable}_MD5": "0" * 32})
    assert result.returncode != 0
    assert case.md5 in result.stderr and "0" * 32 in result.stderr and "Run this again" in result.stderr
    assert not case.folder.exists() and not case.archive.exists() and not case.part.exists()
    case.assert_installed(case.run())


def test_failed_download_keeps_what_it_has(case):
    case.destination.mkdir()
    case.part.write_bytes(case.served.read_bytes()[:20_000])
    result = case.run(**{f"{case.variable}_URL": "file:///nowhere/at/all"})
    assert result.returncode != 0 and "run this again" in result.stderr
    case.assert_installed(case.run())


def test_half_unpacked_folder_is_never_taken_for_whole(case):
    unpacking = Path(f"{case.folder}.unpacking")
    (unpacking / case.folder.name).mkdir(parents=True)
    (unpacking / case.folder.name / "half").write_text("left by a killed run")
    case.assert_installed(case.run())
    assert not (case.folder / "half").exists()


def test_an_archive_that_cannot_be_unpacked_leaves_no_folder(case):
    case.served.write_bytes(b"no archive")
    result = case.run(**{f"{case.variable}_MD5": hashlib.md5(b"no archive").hexdigest()})
    assert result.returncode != 0
    assert not case.folder.exists()


def test_cifar_all_gets_both(tmp_path):
    one, two = (Case(tmp_path / case[1], *case) for case in (CIFAR10, CIFAR100))
    one.choice, two.destination = "all", one.destination
    result = one.run(CIFAR100_URL=two.served.as_uri(), CIFAR100_MD5=two.md5)
    assert result.returncode == 0, result.stderr
    assert (one.folder / "content").read_bytes() == one.content
    assert (one.destination / "cifar-100-python" / "content").read_bytes() == two.content


def test_unknown_cifar_set_is_refused(tmp_path):
    case = Case(tmp_path, *CIFAR10)
    case.choice = "cifar11"
    result = case.run()
    assert result.returncode != 0 and "cifar11" in result.stderr
    assert not case.destination.exists()
