"""Two gloo processes equal one process at the same global batch; masks, scores and coefficients agree on every rank.

In float64, with fitted and then trained coefficients, hysteresis, distillation and Lookahead.
"""

import os
import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import autorep
from autorep.config import BudgetConfig, DapaConfig, GateConfig, OptimConfig, RunConfig
from autorep.gates.gated_relu import GatedReLU
from autorep.machine import distributed
from autorep.runs.folder import RunFolder
from autorep.training.accuracy import evaluate
from autorep.training.objective import Distillation
from autorep.training.trainer import Trainer

pytestmark = pytest.mark.slow

CONFIG = RunConfig(search_epochs=3, epochs=1,
                   gate=GateConfig(replacement="dapa", score_init="saliency"),
                   dapa=DapaConfig(calibration_batches=2, refit_every=2, refit_until=4), gpu="cpu", print_freq=4,
                   budget=BudgetConfig(relu_budget=20, penalty_weight=0.0),  # or its gradients would hide the others
                   optim=OptimConfig(optimizer="adam", lr=1e-2, score_lr=0.4, lookahead=True))


class Loader:
    """Batches of float64 noise, each rank's slice of the same global batches."""

    steps_per_epoch, device = 4, torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.mine = slice(rank * 16 // world_size, (rank + 1) * 16 // world_size)

    def batches(self, epoch: int, start: int = 0):
        for step in range(start, self.steps_per_epoch):
            generator = torch.Generator().manual_seed(100 * epoch + step)
            images = torch.randn(16, 1, 6, 6, dtype=torch.float64, generator=generator)
            yield images[self.mine], images.mean((1, 2, 3)).gt(0).long()[self.mine]


class Recorder(Trainer):
    """Keeps the masks and coefficients after every step."""

    def _train_step(self, *args):
        result = super()._train_step(*args)
        gate = self.model[1]
        self.trajectory = [*getattr(self, "trajectory", []), (gate.mask.clone(), gate.coefficients.detach().clone())]
        return result


def train(rank: int, world_size: int, port: int, folder) -> None:
    """One process of a group; leaves its final state in the folder. No batch norm: its statistics are per process."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    distributed.init_process_group(torch.device("cpu"))
    torch.manual_seed(0)
    gate = GatedReLU((4, 4, 4), CONFIG.gate)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), gate, nn.Flatten(), nn.Linear(64, 2)).double()
    model.input_shape = (1, 6, 6)
    loader = Loader(rank, world_size)
    loaders = SimpleNamespace(train=loader, calibration=loader, validation=None, test=None)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    trainer = Recorder(CONFIG, model, Distillation(teacher, 4.0), loaders, {"model_args": {}},
                       RunFolder(folder / f"world{world_size}"))
    assert trainer.run()
    assert distributed.any_rank(rank == world_size - 1) and not distributed.any_rank(False)
    if world_size > 1:  # gradients of different parameters cannot be averaged
        uneven = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
        uneven[rank].grad = torch.ones(3)
        with pytest.raises(RuntimeError, match="different parameters"):
            distributed.require_same_gradients(uneven)
    masks, coefficients = (torch.stack(values) for values in zip(*trainer.trajectory, strict=True))
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36)).double()
    norm[1].running_var += rank  # statistics of its own
    loss = torch.tensor(evaluate(norm, loader).loss, dtype=torch.float64)
    assert (norm[1].running_var == 1 + rank).all()  # it keeps them
    torch.save({**model.state_dict(), "loss": loss, "masks": masks, "all_coefficients": coefficients},
               folder / f"{world_size}_{rank}.pth")
    if world_size > 1:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for world_size in (1, 2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        mp.spawn(train, args=(world_size, port, folder), nprocs=world_size)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pth")}


def test_two_processes_equal_one(states):
    for name, one in states["1_0"].items():
        two = states["2_0"][name]
        if name.endswith(("mask", "masks")):
            assert torch.equal(one, two), name
        else:
            torch.testing.assert_close(two, one, rtol=0, atol=1e-5 if name == "loss" else 1e-10)  # that is float32


def test_masks_moved_both_ways_to_the_budget_and_coefficients_were_fitted_twice_and_trained(states):
    masks, coefficients = states["1_0"]["masks"], states["1_0"]["all_coefficients"]
    before, after = masks[:-1], masks[1:]
    assert (before & ~after).any() and (after & ~before).any() and 0 < masks[-1].sum() <= 20
    changed = [not torch.equal(a, b) for a, b in pairwise(coefficients[:7])]
    assert changed == [False, True, False, True, True, True]  # fits before steps 0, 2 and 4; from there on training


def test_every_rank_holds_the_same_bits(states):
    for name, first in states["2_0"].items():
        assert torch.equal(first, states["2_1"][name]), name


THREADS = """
import pathlib
from autorep.cli import main as cli

def report(when):
    tasks = pathlib.Path("/proc/self/task").iterdir()
    print(f"{when}: {sum('gloo' in (task / 'comm').read_text() for task in tasks)} ", flush=True)

destroy = cli.destroy_process_group
cli.destroy_process_group = lambda: (report("while"), destroy())
cli.main("autorep")
report("after")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are read from /proc")
def test_no_thread_of_the_process_group_is_left_when_main_returns(baseline, tmp_path):
    """Such a thread would now and then abort the process while its interpreter ends."""
    script = tmp_path / "search.py"
    script.write_text(THREADS)
    teacher = str(baseline / "last.pth.tar")
    root = Path(autorep.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, "--arch",
         "resnet8", "--dataset", "digits", "--gpu", "cpu", "--batch_size", "256", "--ReLU_count", "2", "--mask_epochs",
         "1", "--epochs", "0", "--pretrained_path", teacher, "--distil", "--teacher_path", teacher, "--out_dir",
         str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(while|after): (\d+)", done.stdout)  # two processes write to one pipe
    assert sorted(when for when, _ in found) == ["after", "after", "while", "while"]
    assert all((num == "0") == (when == "after") for when, num in found), found
