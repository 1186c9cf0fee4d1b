"""The scripts, as a user starts them: in the background with a log, in slices, by SLURM, and again to go on."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autorep.cli.configuration import config_from, idle_flags
from autorep.cli.parser import build_parser
from autorep.config import ModelConfig, RunConfig
from autorep.data.datasets import dataset_info
from autorep.training.build import relu_total

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


@pytest.mark.slow
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


# ---- published scale

ROWS = {  # script: network, data set, ReLU budget, ReLUs in all
    "cifar10_resnet18_12.9k": ("resnet18_in", "cifar10", 12_900, 491_520),
    "cifar10_resnet18_25k": ("resnet18_in", "cifar10", 25_000, 491_520),
    "cifar10_resnet18_50k": ("resnet18_in", "cifar10", 50_000, 491_520),
    "cifar100_resnet18_12.9k": ("resnet18_in", "cifar100", 12_900, 491_520),
    "cifar100_resnet18_25k": ("resnet18_in", "cifar100", 25_000, 491_520),
    "cifar100_resnet18_50k": ("resnet18_in", "cifar100", 50_000, 491_520),
    "cifar100_wrn22_8_120k": ("wide_resnet_22_8", "cifar100", 120_000, 1_359_872),
    "cifar100_wrn22_8_150k": ("wide_resnet_22_8", "cifar100", 150_000, 1_359_872),
    "tiny_imagenet_resnet18_55k": ("resnet18_in", "tiny_imagenet", 55_000, 1_966_080),
    "tiny_imagenet_wrn22_8_150k": ("wide_resnet_22_8", "tiny_imagenet", 150_000, 5_439_488),
    "imagenet_efficientnet_b2_50k": ("torchvision:efficientnet_b2", "imagenet", 50_000, 8_804_162),
}
REPRODUCE = ROOT / "scripts" / "reproduce"
SCRIPTS = [*REPRODUCE.glob("*.sh"), ROOT / "scripts" / "reproduce_cifar100_resnet18.sh"]


@pytest.fixture(scope="module")
def relu_totals():
    """ReLUs per image by network and data set, each built once for all its rows."""
    return {(arch, dataset): relu_total(RunConfig(model=ModelConfig(arch=arch), epochs=1), dataset_info(dataset, None))
            for arch, dataset in {row[:2] for row in ROWS.values()}}


def planned(script, tmp_path, **environment):
    """What a script would run: the configurations by script name. Its Python is one that prints its arguments."""
    python = executable(tmp_path / "python", 'echo "$@"')
    result = subprocess.run(["bash", str(script)], env={**os.environ, "PYTHON": str(python), "DRY_RUN": "1",
                                                        **environment},
                            text=True, capture_output=True, check=True)
    commands = (line.split() for line in result.stdout.splitlines())
    kinds = {"train_baseline.py": "baseline", "train_autorep.py": "autorep"}
    given = {kinds[name]: vars(build_parser(kinds[name]).parse_args(flags)) for name, *flags in commands}
    for flags in given.values():
        assert flags.pop("dry_run")
    configs = {kind: config_from(kind, flags) for kind, flags in given.items()}
    for kind, config in configs.items():
        assert not idle_flags(given[kind], config)
    return configs


def executable(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def test_every_row_of_the_board_has_its_script():
    assert {path.stem for path in REPRODUCE.glob("*.sh")} == {*ROWS, "_row"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_bash_and_say_what_they_cost(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    for entry in ("time:", "memory:", "accuracy:", "usage:"):
        assert script.stem == "_row" or f"\n# {entry:9} " in script.read_text(), entry


@pytest.mark.parametrize("name", ROWS)
def test_rows_train_what_they_are_named_after(name, tmp_path, relu_totals):
    arch, dataset, budget, total = ROWS[name]
    script = REPRODUCE / f"{name}.sh"
    configs = planned(script, tmp_path)
    assert ("baseline" in configs) == (not arch.startswith("torchvision:"))  # a library's network is its own teacher
    for config in configs.values():
        assert (config.model.arch, config.data.dataset) == (arch, dataset)
    search = configs["autorep"]
    assert (search.budget.relu_budget, search.gate.degree, search.distill.teacher_arch) == (budget, 2, arch)
    assert relu_totals[arch, dataset].total == total and f"{total:,}" in script.read_text()


def test_settings_of_a_row(tmp_path):
    row = REPRODUCE / "cifar100_resnet18_12.9k.sh"
    line = planned(row, tmp_path, REPLACEMENT="line", SEED="3")
    assert line["autorep"].gate.degree == 1
    assert {(config.seed, config.ext) for config in line.values()} == {(3, "reference_seed3")}
    assert planned(row, tmp_path, REPLACEMENT="identity")["autorep"].gate.replacement == "identity"
    fast = planned(ROOT / "scripts" / "reproduce_cifar100_resnet18.sh", tmp_path)
    assert fast["autorep"].budget.relu_budget == 12_900 and fast["baseline"].epochs <= 100
    assert all(config.compile is None and config.precision == "bf16" for config in fast.values())


@pytest.mark.slow
def test_a_row_is_finished_in_slices(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "REDUCED": "1",
                   "OMP_NUM_THREADS": "1"}

    def call(**more):
        return subprocess.run(["bash", str(REPRODUCE / "cifar10_resnet18_12.9k.sh")], env={**environment, **more},
                              capture_output=True, text=True, check=False)

    first = call(MINUTES="0.001")
    assert first.returncode == 75 and "run the same command again" in first.stderr, first.stderr
    assert list(tmp_path.rglob("last.pth.tar")) and not (tmp_path / "reduced.csv").exists()
    second = call()
    assert second.returncode == 0, second.stderr
    with (tmp_path / "reduced.csv").open(newline="") as file:
        teacher, searched = csv.DictReader(file)
    assert (teacher["act_type"], teacher["relu_kept"]) == ("nn.ReLU", "491520")
    assert (searched["relu_kept"], searched["relu_budget"], searched["degree"]) == ("12900", "12900", "2")


def test_reduced_images_of_imagenet_are_a_folder(tmp_path):
    folder = tmp_path / "data" / "imagenet"
    subprocess.run([sys.executable, str(REPRODUCE / "reduced_data.py"), "imagenet", str(folder)], check=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    info = dataset_info("folder", folder)
    assert (info.image_size, info.in_channels, info.num_classes) == (224, 3, 2)


# ---- SLURM

STUBS = {  # srun: two tasks, which a SIGTERM to srun kills; scancel: signals all of their processes, as SLURM does
    "srun": """while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 setsid "$@" &
    echo $! >>"$STUB_FOLDER/tasks"
done
trap 'for task in $(cat "$STUB_FOLDER/tasks"); do kill -KILL -- -$task; done; exit 1' TERM
wait""",
    "scancel": """[ "$1 $2" = "--signal=USR1 29" ] || exit 1
for task in $(cat "$STUB_FOLDER/tasks"); do kill -USR1 -- -$task; done""",
    "scontrol": """case "$1 $2" in
    "show hostnames") echo 127.0.0.1 ;;
    "requeue 29") echo "$2" >>"$STUB_FOLDER/requeued" ;;
esac""",
}


@pytest.mark.slow
def test_slurm_job_saves_requeues_and_goes_on(tmp_path):
    for name, body in STUBS.items():
        executable(tmp_path / "bin" / name, body)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable,
                   "STUB_FOLDER": str(tmp_path), "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "29",
                   "SLURM_JOB_NODELIST": "node", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "scripts" / "slurm.sh"), "train_baseline.py", "--arch", "resnet8", "--dataset",
               "digits", "--gpu", "cpu", "--epochs", "5000", "--print_freq", "5", "--out_dir", str(tmp_path)]
    steps = []
    for attempt in (1, 2):
        log = tmp_path / f"log{attempt}"
        with log.open("w") as file:
            job = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            wait_until(lambda log=log, job=job: "images/s" in log.read_text() or job.poll() is not None)
            job.send_signal(signal.SIGUSR1)  # as SLURM does to the batch shell
            assert job.wait(60) == 0, log.read_text()
        finally:  # ranks that went on would keep the port, and the next test would wait for it in vain
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        assert log.read_text().count("SIGTERM: saving") == 2  # each rank was told once
        summary = json.loads(next(tmp_path.rglob("summary.json")).read_text())
        assert summary["finished"] is False
        steps.append(summary["step"])
        (tmp_path / "tasks").unlink()
    assert (tmp_path / "requeued").read_text().split() == ["29", "29"]
    assert 0 < steps[0] < steps[1]


def test_slurm_job_without_a_script_says_so():
    job = subprocess.run(["bash", str(ROOT / "scripts" / "slurm.sh")], capture_output=True, text=True)
    assert job.returncode and "name the script" in job.stderr


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
