"""Where people start this: other folders, homes, file systems and shells than the authors'."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autorep.config import DataConfig, RunConfig
from autorep.machine.files import locked, try_lock, user_path

ROOT = Path(__file__).parent.parent


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    config = RunConfig(out_dir="~/runs", resume="auto", data=DataConfig(data_path="~"))
    assert (config.out_dir, config.resume, config.data.data_path) == ("/somewhere/runs", "auto", "/somewhere")
    assert RunConfig(ext="~", out_dir="a~b").out_dir == "a~b"
    assert user_path("~/bundle") == Path("/somewhere/bundle")
    assert user_path("~nobody-of-that-name/x.csv") == Path("~nobody-of-that-name/x.csv")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=f"{tmp_path} has no locks"):
        assert try_lock(tmp_path / ".lock") is not None
    with pytest.warns(UserWarning, match="has no locks"), locked(tmp_path / ".lock"):
        pass


def test_other_failures_of_a_lock_stay_errors(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        try_lock(tmp_path / ".lock")


def test_plots_do_not_need_the_back_end_of_a_notebook(tmp_path):
    code = "import os, autorep.report.picture as p; p.canvas(1, 1); print(os.environ['MPLBACKEND'])"
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False)
    assert result.stdout == "module://matplotlib_inline.backend_inline\n", result.stderr


def test_relative_paths_are_those_of_the_folder_one_stands_in(tmp_path):
    (tmp_path / "data").mkdir()
    environment = {**os.environ, "DATA": "./data", "PYTHON": sys.executable}

    def said(*command):
        return subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True).stdout

    assert "run folder: train_cifar/" in said("bash", f"{ROOT}/scripts/scripts_baseline.sh", "--dry_run")
    code = "OUT=made CHECKPOINT=a/last.pth.tar CHECKPOINT_RESNET20=b; source $0/scripts/here.sh; " \
           "echo $OUT $CHECKPOINT $CHECKPOINT_RESNET20 $PWD"
    assert said("bash", "-c", code, str(ROOT)).split() == [
        f"{tmp_path}/made", f"{tmp_path}/a/last.pth.tar", f"{tmp_path}/b", str(ROOT)]
