"""A whole run from its configuration: build, train, evaluate, summarise. What both command lines call."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from autorep.config import RunConfig
from autorep.data.loader import ArrayLoader, make_loaders
from autorep.machine.device import pick_device
from autorep.machine.distributed import init_process_group, is_main, rank, world_size
from autorep.runs.config_file import to_json
from autorep.runs.folder import RunFolder
from autorep.runs.same_run import weight_sums
from autorep.training.accuracy import all_logits
from autorep.training.build import build_objective, describe_run, initial_model
from autorep.training.resuming import bring_over_, find_checkpoint
from autorep.training.summary import summarise
from autorep.training.trainer import Trainer


def fit(config: RunConfig) -> dict[str, Any]:
    """Start or resume a run; returns what summary.json holds.

    Raises:
        ValueError: a configuration that this machine, data set or model cannot serve, or a run folder in use.
        FileNotFoundError: missing data or checkpoints.
        FloatingPointError: the loss or a gradient is not finite.
    """
    folder = RunFolder.of(config)
    resumed = find_checkpoint(config, folder)  # before data are read: refusals come at once
    if resumed and resumed["step"] == resumed["num_steps"] and (summary := folder.read_summary()).get("finished"):
        print(f"{folder} is finished: nothing to do", flush=True)
        return summary
    device = pick_device(config.gpu)
    init_process_group(device)
    trainer = _build_trainer(config, folder, device)
    with folder.locked() if is_main() else nullcontext():
        resumed = find_checkpoint(config, folder)  # again: another process may have written since
        if resumed is not None:
            try:
                trainer.resume_(resumed)
            except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(f"the checkpoint that this run resumes from does not fit it ({type(error).__name__}: "
                                 f"{' '.join(str(error).split())[:200]}): it is damaged or of another version; start "
                                 "again with another `ext`") from error
        if config.resume not in (None, "auto"):
            bring_over_(Path(config.resume), folder, trainer)
        if is_main():
            folder.describe_(config, device)
            print(f"run folder: {folder}", flush=True)
        summary = summarise(trainer, trainer.run())
        if is_main():
            folder.summarise_(summary)
    return summary


def _build_trainer(config: RunConfig, folder: RunFolder, device: torch.device) -> Trainer:
    torch.manual_seed(config.seed)
    data = config.data
    loaders = make_loaders(data.dataset, data.data_path, data.batch_size, device=device, seed=config.seed,
                           validation_fraction=data.validation_fraction, workers=data.workers, rank=rank(),
                           world_size=world_size(), augment=data.augment)
    model = initial_model(config, loaders.info, device)
    objective = build_objective(config, loaders.info, device)
    if config.distill and not data.augment and isinstance(loaders.train, ArrayLoader):
        logits = all_logits(objective.teacher, loaders.calibration, precision=config.precision)
        loaders.train.add_teacher_logits_(logits)
    torch.manual_seed(config.seed + rank())  # dropout differs between ranks, initial weights and scores do not
    payload = {**describe_run(config, loaders.info), "config": to_json(config), "weight_sums": weight_sums(config)}
    return Trainer(config, model, objective, loaders, payload, folder)
