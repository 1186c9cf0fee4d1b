"""What summary.json says of a run."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from autorep.runs import checkpoint
from autorep.search.price import in_short
from autorep.search.relu_count import count_relus
from autorep.training.accuracy import evaluate
from autorep.training.resuming import best_checkpoint
from autorep.training.trainer import Trainer

_FEW_LOST = 0.001


def summarise(trainer: Trainer, finished: bool) -> dict[str, Any]:
    """Step, seconds and ReLUs; of a finished run also its accuracy.

    The reported accuracy is that of the last epoch on the test set, which chose nothing; "best" is the epoch that
    validation chose.
    """
    if broken := checkpoint.not_finite(trainer.model):
        warnings.warn(f"the network holds numbers that are not finite, in {', '.join(broken[:3])}: training diverged; "
                      "start again with another `ext` and a lower `optim.lr`", stacklevel=2)
    elif finished and trainer.diverged:
        warnings.warn(f"training diverged: its loss ended at {trainer.last_loss:.3g}; start again with another `ext` "
                      "and a lower `optim.lr`", stacklevel=2)
    relus = count_relus(trainer.model)
    summary: dict[str, Any] = {"finished": finished, "step": trainer.step, "num_steps": trainer.num_steps,
                               "seconds": trainer.seconds(), "relu_kept": relus.kept, "relu_total": relus.total,
                               "layers_with_relu": relus.layers_with_relu}
    if trainer.prices:
        summary["mpc"] = in_short(trainer.prices.now())
    return summary | _accuracy(trainer) if finished else summary


def _accuracy(trainer: Trainer) -> dict[str, Any]:
    config, loaders = trainer.config, trainer.loaders
    test = evaluate(trainer.model, loaders.test, precision=config.precision)
    if test.num_lost > _FEW_LOST * test.num_images:
        warnings.warn(f"{test.num_lost:,} of {test.num_images:,} test images have logits that are not finite, and "
                      "count as wrong: quadratics overshoot; start again with a smaller `dapa.range_width`, a lower "
                      "`dapa.scale_x2` or a lower `optim.lr`", stacklevel=2)
    found: dict[str, Any] = {"selection": "last epoch", "test_top1": test.top1, "test_top5": test.top5,
                             "test_loss": test.loss, "test_num_lost": test.num_lost}
    # Often validation chose the last epoch: then nothing is evaluated twice.
    last_is_best = trainer.best.get("step") == trainer.step
    if loaders.validation is not None:
        found["validation_top1"] = trainer.best["validation_top1"] if last_is_best else evaluate(
            trainer.model, loaders.validation, precision=config.precision).top1
    if config.budget:
        found |= {"relu_budget": config.budget.relu_budget, "relu_layers": config.budget.relu_layers,
                  "relus_dropped_by_projection": trainer.search.dropped_at_the_end, **trainer.search.summary()}
    if (best := best_checkpoint(trainer.folder, trainer)) is not None:
        top1 = test.top1 if last_is_best else _top1(best, trainer)
        found["best"] = {**trainer.best, "selection": "validation top-1", "test_top1": top1}
    return found


def _top1(payload: dict[str, Any], trainer: Trainer) -> float:
    model = checkpoint.build_from(payload, trainer.folder.best)
    model = model.to(trainer.device, memory_format=torch.channels_last)
    return evaluate(model, trainer.loaders.test, precision=trainer.config.precision).top1
