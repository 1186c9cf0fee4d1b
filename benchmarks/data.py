"""Loader images/s over the images/s that a search step consumes: `python -m benchmarks.data`."""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from autorep.data.arrays import ArraySet
from autorep.data.datasets import dataset_info
from autorep.data.loader import ArrayLoader
from autorep.device import pick_device, to_device
from benchmarks.step import step_of, step_parser


def loader_rate(batch_size: int, gpu: str, batches: int = 100) -> float:
    """Images per second of the CIFAR-100 training loader (crop, flip, normalise) on arrays of noise."""
    rng = np.random.default_rng(0)
    arrays = ArraySet(rng.integers(0, 256, (20_000, 32, 32, 3), np.uint8), rng.integers(0, 100, 20_000))
    info = dataset_info("cifar100", None)
    loader = ArrayLoader(arrays, info, batch_size, train=True, device=pick_device(gpu), seed=0)
    for images, _ in loader.batches(0):  # one epoch to warm up
        to_device(images, loader.device)
    done, start = 0, time.perf_counter()
    for epoch in range(1, 1 + -(-batches // loader.steps_per_epoch)):
        for images, _ in loader.batches(epoch):
            to_device(images, loader.device)
            done += len(images)
    if torch.cuda.is_available() and gpu != "cpu":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def step_rate(args: argparse.Namespace, rounds: int = 10) -> float:
    """Images per second of search steps."""
    run = step_of("search", args)
    for _ in range(3):
        run()
    start = time.perf_counter()
    for _ in range(rounds):
        run()
    return args.batch_size * rounds / (time.perf_counter() - start)


def main() -> None:
    args = step_parser(__doc__).parse_args()
    loader, step = loader_rate(args.batch_size, args.gpu), step_rate(args)
    print(f"{args.arch}, batch {args.batch_size}, {args.precision}, {args.gpu}, {torch.get_num_threads()} threads")
    print(f"loader {loader:12.0f} images/s\nstep   {step:12.0f} images/s\nratio  {loader / step:12.1f}")
    print(json.dumps({"ratio": round(loader / step, 1)}))


if __name__ == "__main__":
    main()
