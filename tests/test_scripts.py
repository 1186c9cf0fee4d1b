"""The drivers, as a user starts them: in the background, with a log, and again to go on."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["--arch", "resnet8", "--batch_size", "50", "--validation_fraction", "0.2"]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the entry points beside a tiny stand-in for Tiny-ImageNet."""
    for name in ("scripts", "train_baseline.py", "train_autorep.py"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = np.repeat(np.arange(200), 5 if split == "train" else 1)
        np.save(tmp_path / "data" / f"tiny_imagenet-{split}-images.npy",
                rng.integers(0, 256, (len(labels), 64, 64, 3), np.uint8))
        np.save(tmp_path / "data" / f"tiny_imagenet-{split}-labels.npy", labels)
    return tmp_path


def start(checkout, script, *flags, **environment):
    """Run a driver; wait for what it started; its own output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "GPU": "cpu",
                   "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(["bash", f"scripts/{script}", *SMALL, *flags], cwd=checkout, env=environment, text=True,
                            capture_output=True, check=False)
    if result.returncode == 0:
        process = int(result.stdout.split("started process ")[1].split()[0])
        while Path(f"/proc/{process}").exists():
            time.sleep(0.1)
    return result


def test_drivers_run_in_the_background_and_resume(checkout):
    first = start(checkout, "scripts_baseline.sh", "--epochs", "1", "--max_minutes", "0.0001")
    assert "log: baseline_wide_resnet_22_8__tiny_imagenet.log" in first.stdout, first.stderr
    folder = checkout / first.stdout.split("run folder: ")[1].strip()
    assert folder == checkout / "train_cifar/resnet8__tiny_imagenet/cosine_baseline_ReLUs0lr0.1ep1_baseline"
    assert json.loads((folder / "summary.json").read_text())["finished"] is False
    start(checkout, "scripts_baseline.sh", "--epochs", "1", "--resume", "auto")
    assert json.loads((folder / "summary.json").read_text())["finished"] is True

    script = "wide_resnet_22_8__tiny_imagenet_dapa2_distil_split_lr_final.sh"
    flags = ["--teacher_arch", "resnet8", "--mask_epochs", "1", "--ReLU_count", "5", "--calibration_batches", "1"]
    second = start(checkout, script, *flags, TEACHER=str(folder / "last.pth.tar"))
    folder = checkout / second.stdout.split("run folder: ")[1].strip()
    assert folder.parts[-3:] == ("train_cifar_dapa2_distil_relay", "resnet8_resnet8_tiny_imagenet_relay_0.003",
                                 "cosine_ReLUs5.0wm_lr0.001mep1_baseline")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["relu_kept"] == 5000


def test_a_bad_flag_starts_nothing(checkout):
    result = start(checkout, "scripts_baseline.sh", "--w_lr", "-1")
    assert result.returncode == 2 and "w_lr=-1.0" in result.stderr and "started" not in result.stdout
    assert not list(checkout.glob("*.log"))
