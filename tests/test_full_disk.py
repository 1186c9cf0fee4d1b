"""A disk that fills up ends a run in one line, at once, and leaves the last checkpoint whole."""

import resource
import subprocess
import sys

import pytest
import torch
from conftest import baseline_config

from autorep.machine.files import write_atomically
from autorep.runs import checkpoint
from autorep.runs.board import Board
from autorep.runs.folder import RunFolder

pytestmark = pytest.mark.slow


def run(out_dir, limit, *flags):
    """A baseline whose files may not grow beyond `limit` bytes."""
    command = [sys.executable, "train_baseline.py", "--arch", "resnet8", "--dataset", "digits", "--gpu", "cpu",
               "--print_freq", "1", "--out_dir", str(out_dir), "--ext", "test", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


@pytest.mark.parametrize(("limit", "file"), [(100_000, "best.pth.tar"), (2_000, "metrics.jsonl")])
def test_a_run_ends_in_one_line_that_names_the_file(tmp_path, limit, file):
    done = run(tmp_path, limit, "--epochs", "3", "--batch_size", "16")
    errors = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert "File too large" in errors[0] and file in errors[0]


def test_the_last_checkpoint_survives_and_the_run_goes_on(tmp_path):
    large = 10**9
    assert run(tmp_path, large, "--epochs", "3", "--max_minutes", "0.0001").returncode == 0
    last = RunFolder.of(baseline_config(tmp_path)).last
    before = last.read_bytes()
    assert run(tmp_path, 100_000, "--epochs", "3", "--resume", "auto").returncode == 2
    assert last.read_bytes() == before
    assert not [path for path in last.parent.iterdir() if path.name.startswith(".last")]
    assert run(tmp_path, large, "--epochs", "3", "--resume", "auto").returncode == 0
    payload = checkpoint.load(last)
    assert payload["step"] == payload["num_steps"]


def test_a_failed_write_of_torch_says_why_and_where(tmp_path):
    path = tmp_path / "weights.pt"

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*weights.pt'"):
        write_atomically(path, lambda file: _through(Full, file))
    assert list(tmp_path.iterdir()) == []


def _through(full, file):
    file._file = full(file._file)
    torch.save({"a": torch.zeros(1000)}, file)


def test_tensorboard_may_fail_alone(tmp_path):
    board = Board(tmp_path / "tb", None)
    board.add_scalar("loss", 1.0, 1)
    board._events._worker.stop()  # as an error in it does
    with pytest.warns(UserWarning, match="this run goes on without TensorBoard"):
        for step in range(3000):  # more than its queue holds
            board.add_scalar("loss", 1.0, step)
    board.close()
