"""Small runs that the tests share."""

from __future__ import annotations

import dataclasses
import signal
import time

import pytest
import torch
from mpc_keys import make_all_keys

from autorep.config import (
    BudgetConfig,
    DapaConfig,
    DataConfig,
    DistillConfig,
    GateConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from autorep.runs import checkpoint
from autorep.runs.folder import RunFolder
from autorep.training.fit import fit
from autorep.training.trainer import Trainer

# A shell that starts the suite in the background lets it ignore Ctrl-C, and then whatever it starts would do so too.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # the nets here are so small that a second thread costs more than it brings
DIGITS = DataConfig(dataset="digits", data_path=None, batch_size=128)


def baseline_config(out_dir, **changes) -> RunConfig:
    """A baseline on the digits that takes a second or two."""
    config = RunConfig(data=DIGITS, model=ModelConfig(arch="resnet8"), epochs=3, gpu="cpu", out_dir=str(out_dir),
                       print_freq=5, ext="test")
    return dataclasses.replace(config, **changes)


def autorep_config(out_dir, teacher, **changes) -> RunConfig:
    """An AutoReP run from that baseline: DaPa, hysteresis, distillation, search and fine-tuning."""
    config = RunConfig(
        data=DIGITS, model=ModelConfig(arch="resnet8", pretrained_path=str(teacher)),
        optim=OptimConfig(optimizer="adam", lr=2e-3, score_lr=0.1, lookahead=True),
        gate=GateConfig(score_init="uniform"),
        dapa=DapaConfig(calibration_batches=2, refit_every=4, refit_until=8, scale_x2=0.1),
        budget=BudgetConfig(relu_budget=230, schedule="linear"),
        distill=DistillConfig(teacher_arch="resnet8", teacher_path=str(teacher)), search_epochs=3, epochs=2, gpu="cpu",
        out_dir=str(out_dir), print_freq=5, ext="test")
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="session")
def baseline(tmp_path_factory):
    """Run folder of a trained digits baseline."""
    config = baseline_config(tmp_path_factory.mktemp("baseline"))
    fit(config)
    return RunFolder.of(config).path


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Folders of keys, of parties of all kinds."""
    return make_all_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def expect_said(capfd):
    """Waits for words that another thread writes to stderr; whatever else was written there is lost."""
    def wait(*words):
        deadline, text = time.monotonic() + 20, ""
        while missing := [each for each in words if each not in text]:
            assert time.monotonic() < deadline, f"nobody said {missing}, but: {text}"
            time.sleep(0.02)
            text += capfd.readouterr().err

    return wait


def last(config):
    """The last checkpoint of a run."""
    return checkpoint.load(RunFolder.of(config).last)


def rows(config):
    """What a run logged, a dict a row."""
    return RunFolder.of(config).read_metrics()


def assert_same(a, b):
    """Equal bit for bit, whatever is nested in it."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def stop_after(monkeypatch, step):
    """Make runs stop after a step, as a signal does."""
    original = Trainer._should_stop

    def should_stop(self):
        self._stop_requested = self._stop_requested or self.step == step
        return original(self)

    monkeypatch.setattr(Trainer, "_should_stop", should_stop)
