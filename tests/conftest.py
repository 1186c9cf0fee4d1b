"""Small runs that the tests share."""

from __future__ import annotations

import dataclasses

import pytest
import torch

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
from autorep.runs.folder import run_folder
from autorep.training.fit import fit

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
    return run_folder(config)
