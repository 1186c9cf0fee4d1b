"""Accuracy, ReLU count and private-inference costs of a checkpoint; leaves the model's state untouched."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autorep import checkpoint
from autorep.budget import count_relus
from autorep.config import from_json
from autorep.data.loader import make_loaders
from autorep.device import autocast, pick_device, to_device
from autorep.distributed import all_reduce_sum, buffers_of_main, rank, world_size
from autorep.mpc.cost import estimate_table
from autorep.mpc.report import TITLES
from autorep.private_costs import in_short, trace_costs


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy [percent], mean cross entropy [nats] and how many images they are over."""

    top1: float
    top5: float
    loss: float
    num_images: int


@torch.no_grad()
def evaluate(model: nn.Module, loader, *, precision: str = "full") -> Accuracy:
    """Accuracy over every image of a loader, once each, over all ranks: that of the network of rank 0, which is saved.

    Top-5 is top-K where there are fewer than five classes. The model is left as it was.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=loader.device)
    try:
        with buffers_of_main(model):
            for images, labels in loader.batches(0):
                with autocast(loader.device, precision):
                    logits = model(to_device(images, loader.device))
                sums += _batch_sums(logits.float(), labels)
    finally:
        for module, flag in training.items():
            module.training = flag
    top1, top5, loss, num = all_reduce_sum(sums).tolist()
    return Accuracy(100 * top1 / num, 100 * top5 / num, loss / num, int(num))


@torch.no_grad()
def all_logits(model: nn.Module, loader, *, precision: str = "full") -> Tensor:
    """Logits float32 [num_images, K] of every image of an unaugmented loader, in its order, on every rank.

    Each rank computes its part of every batch. The model must be in eval mode.
    """
    found = None
    for index, (images, *_) in zip(loader.indices(0), loader.batches(0), strict=True):
        with autocast(loader.device, precision):
            part = model(to_device(images, loader.device)).float()
        if found is None:
            found = part.new_zeros(loader.num_images, part.shape[1])
        found[index.to(loader.device)] = part
    return all_reduce_sum(found)  # the rows of the other ranks are zeros


def _batch_sums(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    top = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices
    hits = top == labels_N[:, None]
    loss = nn.functional.cross_entropy(logits_NK, labels_N, reduction="sum")
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, hits.new_tensor(len(hits), dtype=torch.int64)]).double()


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m autorep.evaluate --checkpoint PATH`: accuracy, ReLUs per layer, costs; ends with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m autorep.evaluate", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="a last.pth.tar or best.pth.tar")
    parser.add_argument("--data_path", help="where the data set lies; default: where the run had it")
    parser.add_argument("--gpu", "--gpus", default="0", help="index of the GPU, or cpu")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--precision", choices=("full", "half", "bf16"), default="full")
    args = parser.parse_args(argv)
    try:
        report_checkpoint(args.checkpoint, data_path=args.data_path, gpu=args.gpu, batch_size=args.batch_size,
                          precision=args.precision)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def report_checkpoint(path: str, *, data_path: str | None, gpu: str, batch_size: int, precision: str) -> None:
    """Evaluate a checkpoint on the test split of its own data set and print the report."""
    payload = checkpoint.load(path)
    data = from_json(payload["config"]).data
    device = pick_device(gpu)
    model = checkpoint.build_from(payload).to(device)
    loaders = make_loaders(data.dataset, data_path or data.data_path, batch_size, device=device, seed=0,
                           validation_fraction=0, workers=data.workers, rank=rank(), world_size=world_size())
    found = {"num_classes": loaders.info.num_classes, "in_channels": loaders.info.in_channels,
             "image_size": loaders.info.image_size}
    if found.items() - payload["model_args"].items():
        raise ValueError(f"the data in {data_path} is {found}, the network of {path} takes {payload['model_args']}")
    accuracy = evaluate(model, loaders.test, precision=precision)
    relus = count_relus(model)
    print(relus)
    top1, top5 = accuracy.top1, accuracy.top5
    print(f"{data.dataset} test, {accuracy.num_images:,} images: top-1 {top1:.2f} %, top-5 {top5:.2f} %")
    if (traced := trace_costs(model)) is not None:
        costs = traced.now(TITLES)
        print(estimate_table(costs, layers=False))
    print(json.dumps({"top1": top1, "top5": top5, "relu_kept": relus.kept, "relu_total": relus.total,
                      "mpc": in_short(costs) if traced else None}))


if __name__ == "__main__":
    main()
