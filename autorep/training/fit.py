"""A whole run from its configuration: build, train, evaluate, summarise. What both command lines call."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from autorep.config import RunConfig
from autorep.data.loader import ArrayLoader, make_loaders
from autorep.machine.device import pick_device
from autorep.machine.distributed import init_process_group, is_main, rank, world_size
from autorep.machine.files import write_atomically
from autorep.runs import checkpoint
from autorep.runs.config_file import from_json, to_json
from autorep.runs.environment import environment
from autorep.runs.folder import locked_folder, run_folder
from autorep.runs.same_run import differences
from autorep.search.price import in_short
from autorep.search.relu_count import count_relus
from autorep.training.accuracy import all_logits, evaluate
from autorep.training.build import build_objective, describe_run, initial_model
from autorep.training.trainer import Trainer


def fit(config: RunConfig) -> dict[str, Any]:
    """Run, or go on with, a run; returns what summary.json holds.

    Raises:
        ValueError: a configuration that this machine, data set or model cannot serve, or a run folder in use.
        FileNotFoundError: missing data or checkpoints.
        FloatingPointError: the loss or a gradient is not finite.
    """
    folder = run_folder(config)
    resumed = _find_checkpoint(config, folder)
    if (summary := _finished_summary(folder, resumed)) is not None:
        print(f"{folder} is finished: nothing to do", flush=True)
        return summary
    device = pick_device(config.gpu)
    init_process_group(device)
    trainer = _build_trainer(config, folder, device)
    if resumed is not None:
        trainer.resume_(resumed)
    elif config.gate:
        _warn_if_scores_cannot_fall(config, trainer.steps_per_epoch)
    with locked_folder(folder) if is_main() else nullcontext():
        if config.resume not in (None, "auto"):
            _bring_over(Path(config.resume), folder, trainer)
        if is_main():
            write_atomically(folder / "config.json", to_json(config))
            write_atomically(folder / "environment.json", json.dumps(environment(device), indent=2))
            print(f"run folder: {folder}", flush=True)
        summary = _summary(trainer, config, trainer.run())
        if is_main():
            write_atomically(folder / "summary.json", json.dumps(summary, indent=2))
    return summary


def _finished_summary(folder: Path, resumed: dict[str, Any] | None) -> dict[str, Any] | None:
    path = folder / "summary.json"
    if resumed is None or resumed["step"] < resumed["num_steps"] or not path.is_file():
        return None
    summary = json.loads(path.read_text())
    return summary if summary["finished"] else None


def _build_trainer(config: RunConfig, folder: Path, device: torch.device) -> Trainer:
    torch.manual_seed(config.seed)
    data = config.data
    loaders = make_loaders(data.dataset, data.data_path, data.batch_size, device=device, seed=config.seed,
                           validation_fraction=data.validation_fraction, workers=data.workers, rank=rank(),
                           world_size=world_size(), augment=data.augment)
    model = initial_model(config, loaders.info, device)
    objective = build_objective(config, loaders.info, device)
    if config.distill and not data.augment and isinstance(loaders.train, ArrayLoader):
        loaders.train.add_target_(all_logits(objective.teacher, loaders.calibration, precision=config.precision))
    torch.manual_seed(config.seed + rank())  # dropout differs between ranks, initial weights and scores do not
    payload = {**describe_run(config, loaders.info), "config": to_json(config)}
    return Trainer(config, model, objective, loaders, payload, folder)


def _bring_over(source: Path, folder: Path, trainer: Trainer) -> None:
    """Make a folder whole that goes on from a checkpoint of another place: its best one comes along, if it is there."""
    if source.resolve().parent == folder.resolve():
        return
    best = source.parent / "best.pth.tar"
    if not best.is_file():
        trainer.best = {}  # on every rank: what is still to be evaluated depends on it
    if not is_main():
        return
    if trainer.best:
        checkpoint.save(folder / best.name, checkpoint.load(best))
    checkpoint.save(folder / "last.pth.tar", checkpoint.load(source))


def _find_checkpoint(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The checkpoint to go on from, after checking that it is of this very run."""
    last = folder / "last.pth.tar"
    if config.resume is None:
        if last.exists():
            raise ValueError(f"{folder} holds a run already: --resume auto goes on with it, --ext NAME starts another "
                             "beside it")
        return None
    path = last if config.resume == "auto" else Path(config.resume)
    if config.resume == "auto" and not last.exists():
        return None
    payload = checkpoint.load(path)
    if path.resolve() != last.resolve() and last.exists() and checkpoint.load(last)["step"] > payload["step"]:
        raise ValueError(f"{last} is further along than {path}: --resume auto goes on with it; remove it to go back")
    if differing := differences(from_json(payload["config"]), config):
        raise ValueError(f"{path} is of another run; these differ (there, here): {'; '.join(differing)}. Give its "
                         "flags, or --ext NAME to start a run of its own")
    return payload


def _summary(trainer: Trainer, config: RunConfig, finished: bool) -> dict[str, Any]:
    """Accuracy of the last epoch on the test set, which chose nothing; the validation-chosen epoch stands beside it."""
    relus = count_relus(trainer.model)
    summary: dict[str, Any] = {"finished": finished, "step": trainer.step, "num_steps": trainer.num_steps,
                               "seconds": trainer.seconds(), "relu_kept": relus.kept, "relu_total": relus.total,
                               "layers_with_relu": relus.layers_with_relu}
    if trainer.costs:
        summary["mpc"] = in_short(trainer.costs.now())
    if not finished:
        return summary
    test = evaluate(trainer.model, trainer.loaders.test, precision=config.precision)
    summary |= {"selection": "last epoch", "test_top1": test.top1, "test_top5": test.top5, "test_loss": test.loss}
    # Often the last epoch is the best one: then both figures of it are known.
    last_is_best = trainer.best.get("step") == trainer.step
    if trainer.loaders.validation is not None:
        summary["validation_top1"] = trainer.best["validation_top1"] if last_is_best else evaluate(
            trainer.model, trainer.loaders.validation, precision=config.precision).top1
    if config.budget:
        summary |= {"relu_budget": config.budget.relu_budget, "relu_layers": config.budget.relu_layers,
                    "relus_dropped_by_projection": trainer.projected}
    best = trainer.folder / "best.pth.tar"
    if trainer.best and best.is_file():
        top1 = test.top1
        if not last_is_best:
            trainer.model.load_state_dict(checkpoint.load(best)["model"])
            top1 = evaluate(trainer.model, trainer.loaders.test, precision=config.precision).top1
        summary |= {"best": {**trainer.best, "selection": "validation top-1", "test_top1": top1}}
    return summary


def _warn_if_scores_cannot_fall(config: RunConfig, steps_per_epoch: int) -> None:
    """Scores move about `w_mask_lr` a step: warn where the search is too short to drop what the budget asks for."""
    reach = config.optim.score_lr * config.search_epochs * steps_per_epoch / 2
    if config.search_epochs and reach < config.gate.score_init_high:
        warnings.warn(f"--w_mask_lr {config.optim.score_lr} moves a score by about {reach:.2g} in this search, but "
                      f"scores start up to {config.gate.score_init_high}: raise it, or the final projection decides",
                      stacklevel=2)
