"""Whole runs on pretended GPUs: no devices are mixed, the host seldom waits, results are those of the CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same, autorep_config, baseline_config, last, stop_after
from pretended_cuda import PretendedTensor, pretended_cuda

from autorep.config import BudgetConfig, DapaConfig, DataConfig, GateConfig, OptimConfig, RunConfig
from autorep.convert.swap import convert_relus_
from autorep.dapa import calibrate
from autorep.dapa.moments import Moments
from autorep.data.cache import array_paths
from autorep.evaluate import report_checkpoint
from autorep.gates.gated_relu import iter_gates
from autorep.gates.reference import gated_relu_reference
from autorep.models.registry import build_model
from autorep.runs.folder import RunFolder
from autorep.training.fit import fit
from autorep.training.searching import Search
from autorep.training.trainer import Trainer

pytestmark = pytest.mark.slow

BUDGET = 2000
SEARCHES = {
    "full precision, Adam, Lookahead": {},
    "bf16, SGD, averaged, clipped, teacher asked once": {
        "precision": "bf16", "data": {"augment": False},
        "optim": OptimConfig(optimizer="sgd", lr=1e-3, score_lr=1000.0, ema_decay=0.9, grad_clip=1.0)},
    "half, saliency, few layers": {  # on fewer images: there are processors on which fp16 takes seconds a step
        "precision": "half", "data": {"batch_size": 8, "validation_fraction": 0.6},
        "gate": GateConfig(replacement="dapa", score_init="saliency"),
        "budget": BudgetConfig(relu_budget=BUDGET, relu_layers=3),
        "optim": OptimConfig(optimizer="adam", lr=2e-3, score_lr=1.0)},
}
PLAIN, AVERAGED, _ = SEARCHES
# What may wait, because it is not in every step.
RARE = [(Search, "_record_"), (Trainer, "_log_interval"), (Trainer, "_validate"), (Trainer, "save")]


class Run(NamedTuple):
    """A run, and where the host waited from the start of a step to that of the next: (phase, step) -> line -> times."""

    config: RunConfig
    summary: dict[str, Any]
    waits: dict[tuple[str, int], Counter]


@contextlib.contextmanager
def computing_on(gpu, num_gpus=1):
    """Pretended GPUs, or the CPU with the formulas that a GPU gets: then results on both can be the same bits."""
    if gpu != "cpu":
        with pretended_cuda(num_gpus) as cuda:
            yield cuda
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autorep.gates.gated_relu.gated_relu", gated_relu_reference)
        for module in ("hysteresis", "reference"):
            patch.setattr(f"autorep.gates.{module}.softplus", lambda x: F.softplus(x, threshold=40.0))
        yield None


@contextlib.contextmanager
def waits_by_step(cuda):
    """Filled within the block with the waits of every step that did nothing of what is `RARE`."""
    found, now = {}, []
    train_step = Trainer._train_step

    def counting(self, phase, *args):
        found.update({step: Counter(cuda.waits) for step in now})
        cuda.waits.clear()
        now[:] = [(phase.name, self.step)]
        return train_step(self, phase, *args)

    def not_counting(method):
        def run(self, *args):
            now.clear()
            return method(self, *args)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", counting)
        for owner, name in RARE:
            patch.setattr(owner, name, not_counting(getattr(owner, name)))
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Arrays in the place of CIFAR-10: at 8 x 8 pixels a fault of the memory layout would not show."""
    folder, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    colours = random.integers(0, 128, (10, 1, 1, 3))
    for split, num in (("train", 100), ("test", 50)):
        images, labels = array_paths(folder, "cifar10", split)
        np.save(labels, np.arange(num) % 10)
        np.save(images, (colours[np.arange(num) % 10] + random.integers(0, 128, (num, 32, 32, 3))).astype(np.uint8))
    return DataConfig(dataset="cifar10", data_path=str(folder), batch_size=16, validation_fraction=0.2)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    config = baseline_config(tmp_path_factory.mktemp("teacher"), data=data, epochs=6)
    fit(config)
    return RunFolder.of(config).last


def baseline_run(out_dir, data, **changes):
    return baseline_config(out_dir, data=data, epochs=2, compile=False, print_freq=1000, **changes)


def search_run(out_dir, data, teacher, name=PLAIN, **changes):
    """Five steps an epoch, a refit in the fifth."""
    chosen = {"optim": OptimConfig(optimizer="adam", lr=2e-3, score_lr=0.5, lookahead=True),
              "budget": BudgetConfig(relu_budget=BUDGET), **SEARCHES[name]}
    data = dataclasses.replace(data, **chosen.pop("data", {}))
    return autorep_config(out_dir, teacher, data=data, search_epochs=2, epochs=1, compile=False, print_freq=1000,
                          **chosen, **changes)


@pytest.fixture(scope="module")
def run(data, teacher, tmp_path_factory):
    """Callable (name, gpu) -> `Run`, which runs once."""
    @functools.cache
    def run(name, gpu):
        folder = tmp_path_factory.mktemp("run")
        config = (baseline_run(folder, data, gpu=gpu) if name == "baseline" else
                  search_run(folder, data, teacher, name, gpu=gpu))
        with computing_on(gpu) as cuda, waits_by_step(cuda) if cuda else contextlib.nullcontext({}) as waits:
            return Run(config, fit(config), waits)

    return run


REFUSED = {
    "operands": lambda gpu, cpu: gpu + cpu,
    "a list of tensors": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "two GPUs": lambda gpu, cpu: gpu + gpu.to("cuda:1"),
    "a GPU that is not there": lambda gpu, cpu: gpu.to("cuda:2"),
    "written to the CPU": lambda gpu, cpu: torch.zeros(()).add_(gpu.sum()),
    "indexed by a GPU": lambda gpu, cpu: cpu[gpu > 0],
    "numpy": lambda gpu, cpu: gpu.numpy(),
    "an address": lambda gpu, cpu: gpu.data_ptr(),
}
WAITS = {
    "arithmetic": (0, lambda gpu, cpu: torch.where(gpu > 0, gpu * 2, 0).sum()),
    "item": (1, lambda gpu, cpu: gpu.sum().item()),
    "condition": (1, lambda gpu, cpu: bool(gpu.isfinite().all())),
    "list": (1, lambda gpu, cpu: gpu.tolist()),
    "nonzero": (1, lambda gpu, cpu: gpu.nonzero()),
    "mask": (1, lambda gpu, cpu: gpu[gpu > 0]),
    "number set by a mask": (0, lambda gpu, cpu: gpu.__setitem__(gpu > 0, 1.0)),
    "number set by an index": (1, lambda gpu, cpu: gpu.__setitem__(gpu.argsort(), 1.0)),
    "number filled in": (0, lambda gpu, cpu: gpu.index_fill_(0, gpu.argsort(), 1.0)),
    "index of the CPU": (1, lambda gpu, cpu: gpu[cpu.argsort()]),
    "to the CPU": (1, lambda gpu, cpu: gpu.cpu()),
    "into a tensor of the CPU": (1, lambda gpu, cpu: cpu.copy_(gpu)),
    "to a GPU": (1, lambda gpu, cpu: cpu.to("cuda:0")),
    "to a GPU, not blocking": (0, lambda gpu, cpu: cpu.to("cuda:0", non_blocking=True)),
    "into a tensor of a GPU": (1, lambda gpu, cpu: gpu.copy_(cpu)),
    "into a tensor of a GPU, not blocking": (0, lambda gpu, cpu: gpu.copy_(cpu, non_blocking=True)),
    "new number": (1, lambda gpu, cpu: torch.tensor(1.0, device="cuda:0")),
    "new number, filled": (0, lambda gpu, cpu: torch.full((), 1.0, device="cuda:0")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name):
    with pretended_cuda(2), pytest.raises((RuntimeError, TypeError)):
        REFUSED[name](torch.ones(4, device="cuda:0"), torch.ones(4))


@pytest.mark.parametrize("name", WAITS)
def test_what_the_host_waits_for_is_counted(name):
    times, operation = WAITS[name]
    with pretended_cuda() as cuda:
        operation(torch.ones(4, device="cuda:0"), torch.ones(4))
    assert cuda.waits.total() == times, cuda.waits


@pytest.mark.parametrize("name", ["baseline", *SEARCHES])
def test_a_run_on_a_gpu_gives_the_same_bits_as_on_the_cpu(name, run):
    ours, theirs = run(name, "0"), run(name, "cpu")
    assert ours.summary["finished"] and ours.summary["test_top1"] > 20
    assert_same(ours.summary | {"seconds": 0}, theirs.summary | {"seconds": 0})
    ours_saved, theirs_saved = last(ours.config), last(theirs.config)
    for what in ("model", "state", "best", "search"):
        assert_same(ours_saved[what], theirs_saved[what])
    if budget := ours.config.budget:
        assert 0.8 * BUDGET < ours.summary["relu_kept"] <= BUDGET
        assert ours.summary["layers_with_relu"] <= (budget.relu_layers or 7)


@pytest.mark.parametrize("name", ["baseline", *SEARCHES])
def test_the_host_waits_for_the_gpu_a_few_times_a_step(name, run):
    config, _, waits = run(name, "0")
    # Whether the loss is finite; how many ReLUs are kept, which of the others may come back; those kept by layer; and
    # whether a gradient in half precision was finite.
    few_layers = config.budget is not None and config.budget.relu_layers is not None
    bounds = {"search": 3 + few_layers, "finetune": 1} if config.gate else {"baseline": 1}
    for phase, bound in bounds.items():
        bound += config.precision == "half"
        steps = [found for (at, _), found in waits.items() if at == phase]
        assert len(steps) >= 4, f"only {len(steps)} steps of {phase} did nothing of {RARE}"
        worst = max(steps, key=Counter.total)
        lines = "\n".join(f"{times} x autorep/{line}" for line, times in worst.most_common())
        assert worst.total() <= bound, f"the host waits {worst.total()} times in a step of {phase}:\n{lines}"


def test_moments_of_other_ranks_come_from_their_gpus(monkeypatch):
    def of_other_gpu(moments):
        """As all_gather_object gives them: what lay on a GPU is on that of its sender."""
        return {name: Moments(*(PretendedTensor(t.values, torch.device("cuda", 1)) if t.is_cuda else t
                                for t in vars(found).values())) for name, found in moments.items()}

    def fitted(device):
        """Coefficients fitted to two batches, of which another rank has seen the first one."""
        torch.manual_seed(0)
        model = build_model("resnet8", 10, in_channels=3, image_size=16).to(device)
        convert_relus_(model, torch.zeros(1, 3, 16, 16, device=device), GateConfig(degree=2, replacement="dapa"))
        theirs, ours = torch.randn(2, 8, 3, 16, 16).to(device)
        sent = []
        monkeypatch.setattr(calibrate, "gather", lambda moments: sent.append(moments) or [moments])
        calibrate.calibrate_(model, [theirs], DapaConfig(fit="recorded"))
        monkeypatch.setattr(calibrate, "gather", lambda moments: [moments, of_other_gpu(*sent)])
        calibrate.calibrate_(model, [ours], DapaConfig(fit="recorded"))
        return [gate.coefficients.detach().cpu() for _, gate in iter_gates(model)]

    with computing_on("cpu"):
        expected = fitted("cpu")
    with computing_on("0", 2):
        found = fitted("cuda:0")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "stop", "before", "after"), [
    (PLAIN, 7, ("cpu", 0), ("0", 1)), (PLAIN, 7, ("0", 1), ("cpu", 0)), (PLAIN, 12, ("0", 2), ("1", 2)),
    (AVERAGED, 12, ("1", 2), ("0", 1))])
def test_a_run_goes_on_on_another_device(name, stop, before, after, run, data, teacher, tmp_path, monkeypatch):
    config = search_run(tmp_path, data, teacher, name, resume="auto")
    with computing_on(*before), monkeypatch.context() as patch:
        stop_after(patch, stop)
        assert fit(dataclasses.replace(config, gpu=before[0]))["finished"] is False
    with computing_on(*after):
        summary = fit(dataclasses.replace(config, gpu=after[0]))
    assert summary["finished"] and summary["relu_kept"] <= BUDGET
    assert_same(last(config)["model"], last(run(name, "cpu").config)["model"])


def test_a_run_on_the_cpu_leaves_cuda_alone(data, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a run on the CPU asked for CUDA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("_lazy_init", "get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    # Where CUDA is available every optimiser of torch asks whether a graph is being captured.
    for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
        monkeypatch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
    config = dataclasses.replace(baseline_run(tmp_path, data, resume="auto"), epochs=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        fit(config)
    assert fit(config)["finished"]


def test_a_checkpoint_is_reported_on_a_gpu_as_its_run_was_summarised(run, capsys):
    config, summary, _ = run(PLAIN, "0")
    with pretended_cuda():
        report_checkpoint(str(RunFolder.of(config).last), data_path=None, gpu="0", batch_size=20,
                          precision="full")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["top1"] == summary["test_top1"] and report["relu_kept"] == summary["relu_kept"]
