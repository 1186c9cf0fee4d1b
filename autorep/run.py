"""A whole run from its configuration: build, train, evaluate, summarise. What both command lines call."""

from __future__ import annotations

import dataclasses
import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autorep import checkpoint
from autorep.budget import ReLUCount, check_budget, count_relus
from autorep.config import RunConfig, from_json, to_json
from autorep.convert import convert_relus_, iter_gates
from autorep.data.loader import ArrayLoader, make_loaders
from autorep.device import pick_device
from autorep.distributed import init_process_group, is_main, rank, world_size
from autorep.evaluate import all_logits, evaluate
from autorep.models.registry import build_model
from autorep.objective import CrossEntropy, Distillation
from autorep.private_costs import in_short
from autorep.runlog import environment, locked, run_folder, write_atomically
from autorep.trainer import Trainer

# Where and how long a run computes may change between its attempts; what it computes may not.
_MAY_CHANGE = ("gpu", "compile", "resume", "max_minutes", "print_freq", "out_dir")
_DATA_MAY_CHANGE = ("data_path", "workers")


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
    with locked(folder) if is_main() else nullcontext():
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
    objective = _objective(config, loaders.info, device)
    if config.distill and not data.augment and isinstance(loaders.train, ArrayLoader):
        loaders.train.add_target_(all_logits(objective.teacher, loaders.calibration, precision=config.precision))
    torch.manual_seed(config.seed + rank())  # dropout differs between ranks, initial weights and scores do not
    payload = {**_description(config, loaders.info), "config": to_json(config)}
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


def initial_model(config: RunConfig, info: Any, device: torch.device) -> nn.Module:
    """The network that a run starts from, on its device: dense weights, then gates, then those of a checkpoint."""
    model, start = config.model, config.checkpoint_path
    if config.gate and not (model.pretrained or model.pretrained_path or start):
        raise ValueError("AutoReP starts from a trained network: give --pretrained_path RUN_FOLDER/last.pth.tar of a "
                         "baseline, --pretrained for the library's weights, or --checkpoint_path of an AutoReP run")
    if config.gate and config.search_epochs == 0 and not start:
        raise ValueError("--mask_epochs 0 only fine-tunes: give the searched network as --checkpoint_path")
    net = build_model(model.arch, info.num_classes, in_channels=info.in_channels, image_size=info.image_size,
                      pretrained=model.pretrained, dropout=model.dropout)
    if model.pretrained_path and not start:
        checkpoint.load_pretrained_(net, model.pretrained_path)
    net = net.to(device, memory_format=torch.channels_last)
    if config.gate:
        try:
            net = convert_relus_(net, torch.zeros(1, *net.input_shape, device=device), config.gate).model
        except RuntimeError as error:
            raise ValueError(f"--arch {model.arch} cannot run on images {list(net.input_shape)} [channels, height, "
                             f"width] of --dataset {config.data.dataset}: {str(error).splitlines()[0]}") from error
        relus = count_relus(net)
        check_budget(config.budget, relus.total, len(relus.layers))
        for _, gate in iter_gates(net):
            gate.coefficients.requires_grad_(gate.coefficients.requires_grad and not config.freeze_coefficients)
    if start:
        try:
            net.load_state_dict(checkpoint.load(start)["model"])
        except RuntimeError as error:
            raise ValueError(f"{start} does not fit --arch {model.arch} with --act_type {config.act_type}: give the "
                             f"flags of the run that wrote it ({str(error).splitlines()[1].strip()})") from error
    return net


def relu_total(config: RunConfig, info: Any) -> ReLUCount:
    """ReLUs per image of the network that a configuration names. Raises as `check_budget`."""
    relus = count_relus(build_model(config.model.arch, info.num_classes, in_channels=info.in_channels,
                                    image_size=info.image_size))
    if config.budget:
        check_budget(config.budget, relus.total, len(relus.layers))
    return relus


def _description(config: RunConfig, info: Any) -> dict[str, Any]:
    return checkpoint.describe_model(config.model.arch, info.num_classes, info.in_channels, info.image_size,
                                     config.model.dropout, config.gate)


def _objective(config: RunConfig, info: Any, device: torch.device) -> CrossEntropy | Distillation:
    if config.distill is None:
        return CrossEntropy(config.label_smoothing)
    teacher = build_model(config.distill.teacher_arch, info.num_classes, in_channels=info.in_channels,
                          image_size=info.image_size)
    checkpoint.load_pretrained_(teacher, config.distill.teacher_path)
    return Distillation(teacher.to(device, memory_format=torch.channels_last), config.distill.temperature)


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


def differences(there: RunConfig, here: RunConfig) -> list[str]:
    """In what two runs compute different things, as "field there, here"; empty where one may go on with the other."""
    return _differing(_what_it_computes(there), _what_it_computes(here))


def _what_it_computes(config: RunConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    for name in _MAY_CHANGE:
        del values[name]
    for name in _DATA_MAY_CHANGE:
        del values["data"][name]
    return values


def _differing(there: dict, here: dict, prefix: str = "") -> list[str]:
    found = []
    for name in here:
        a, b = there[name], here[name]
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differing(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} {a!r}, {b!r}")
    return found


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
