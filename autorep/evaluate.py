"""Accuracy, ReLU count and private-inference prices of a checkpoint; the model stays as it was."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from autorep.data.loader import make_loaders
from autorep.machine.device import pick_device
from autorep.machine.distributed import rank, world_size
from autorep.machine.files import user_path
from autorep.machine.terminal import accept_any_text
from autorep.mpc.cost.estimate import estimate_table
from autorep.mpc.tables import TITLES
from autorep.runs import checkpoint
from autorep.search.price import in_short, trace_prices
from autorep.search.price_model import PriceModel
from autorep.search.relu_count import count_relus
from autorep.training.accuracy import evaluate


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m autorep.evaluate --checkpoint PATH`: accuracy, ReLUs per layer, prices; ends with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m autorep.evaluate", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=user_path, required=True, help="a last.pth.tar or best.pth.tar")
    parser.add_argument("--data_path", type=user_path, help="where the data set lies; default: where the run had it")
    parser.add_argument("--gpu", "--gpus", default="0", help="index of the GPU, or cpu")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--precision", choices=("full", "half", "bf16"), default="full")
    args = parser.parse_args(argv)
    accept_any_text()
    try:
        report_checkpoint(args.checkpoint, data_path=args.data_path, gpu=args.gpu, batch_size=args.batch_size,
                          precision=args.precision)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def report_checkpoint(path: Path, *, data_path: Path | None, gpu: str, batch_size: int, precision: str) -> None:
    """Evaluate a checkpoint on the test split of its own data set and print the report."""
    payload = checkpoint.load(path)
    config = checkpoint.config_of(payload, path)
    data = config.data
    device = pick_device(gpu)
    model = checkpoint.build_from(payload, path).to(device)
    data_path = data_path or data.data_path
    loaders = make_loaders(data.dataset, data_path, batch_size, device=device, seed=0,
                           validation_fraction=0, workers=data.workers, rank=rank(), world_size=world_size())
    found = {"num_classes": loaders.info.num_classes, "in_channels": loaders.info.in_channels,
             "image_size": loaders.info.image_size}
    if found.items() - payload["model_args"].items():
        taken = {name: payload["model_args"].get(name) for name in found}
        raise ValueError(f"the data in {data_path} is {found}, but the network of {path} takes {taken}: give the data "
                         "path of the set that it was trained on")
    if broken := checkpoint.not_finite(model):
        print(f"warning: {path} holds numbers that are not finite, in {', '.join(broken[:3])}: its training diverged",
              file=sys.stderr)
    accuracy = evaluate(model, loaders.test, precision=precision)
    relus = count_relus(model)
    print(relus)
    top1, top5 = accuracy.top1, accuracy.top5
    print(f"{data.dataset} test, {accuracy.num_images:,} images: {accuracy}, top-5 {top5:.2f} %")
    if (traced := trace_prices(model)) is not None:
        prices = traced.now(TITLES)
        print(estimate_table(prices, layers=False), "Truncation is exact.")
    figures = {"top1": top1, "top5": top5, "num_lost": accuracy.num_lost, "relu_kept": relus.kept,
               "relu_total": relus.total, "mpc": in_short(prices) if traced else None}
    budget = config.budget
    if budget and budget.price:
        price = PriceModel(model, torch.zeros(1, *model.input_shape, device=device), budget)
        figures["price"] = {"allowed": price.allowed, "used": price.now(), "unit": price.price.unit}
        print(f"{price}, {price.price.text(price.now())} used")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
