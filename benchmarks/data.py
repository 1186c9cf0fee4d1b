"""Images/s of the loader divided by those of a search step; images/s from files: `python -m benchmarks.data`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from autorep.data.arrays import ArraySet
from autorep.data.datasets import dataset_info
from autorep.data.folders import ImageList
from autorep.data.loader import ArrayLoader
from autorep.data.streaming import StreamingLoader
from autorep.machine.device import pick_device, to_device
from benchmarks.step import parse, step_of, step_parser


def loader_rate(batch_size: int, gpu: str, batches: int = 100) -> float:
    """Images per second of the CIFAR-100 training loader (crop, flip, normalise) on arrays of noise."""
    rng = np.random.default_rng(0)
    arrays = ArraySet(rng.integers(0, 256, (20_000, 32, 32, 3), np.uint8), rng.integers(0, 100, 20_000))
    info = dataset_info("cifar100", None)
    loader = ArrayLoader(arrays, info, batch_size, train=True, device=pick_device(gpu), seed=0)
    for batch in loader.batches(0):  # one epoch to warm up
        to_device(batch.images, loader.device)
    done, start = 0, time.perf_counter()
    for epoch in range(1, 1 + -(-batches // loader.steps_per_epoch)):
        for batch in loader.batches(epoch):
            to_device(batch.images, loader.device)
            done += len(batch.images)
    if torch.cuda.is_available() and gpu != "cpu":
        torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def picture(number: int) -> Image.Image:
    """A colour picture [350, 400] with coarse and fine waves, about as many pixels and bytes as one of ImageNet has."""
    y, x = np.mgrid[:350, :400] / 20
    waves = [np.sin((1 + channel) * x * y + number) for channel in range(3)]
    return Image.fromarray(np.uint8(127.5 + 127.5 * np.stack(waves, -1)))


def streaming_rate(batch_size: int, gpu: str, workers: int, num_images: int = 2048, num_files: int = 64) -> float:
    """Images per second of an ImageNet training epoch (decode, crop, resize, flip, normalise), its start included."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i}.jpg") for i in range(num_files)]
        for i, path in enumerate(paths):
            picture(i).save(path)
        images = ImageList(paths * (num_images // num_files), np.zeros(num_images, np.int64), ["0"])
        loader = StreamingLoader(images, dataset_info("imagenet", None), batch_size, train=True,
                                 device=pick_device(gpu), seed=0, workers=workers)
        start = time.perf_counter()
        done = sum(len(to_device(batch.images, loader.device)) for batch in loader.batches(0))
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
    parser = step_parser(__doc__)
    parser.add_argument("--workers", type=int, default=4, help="processes that decode files")
    args = parse(parser)
    if args.workers < 0:
        parser.error(f"invalid --workers {args.workers}: expected 0 or more")
    streaming = streaming_rate(args.batch_size, args.gpu, args.workers)
    loader, step = loader_rate(args.batch_size, args.gpu), step_rate(args)
    print(f"{args.arch}, batch {args.batch_size}, {args.precision}, {args.gpu}, {torch.get_num_threads()} threads")
    print(f"loader {loader:12.0f} images/s\nstep   {step:12.0f} images/s\nratio  {loader / step:12.1f}")
    print(f"files  {streaming:12.0f} images/s of 400 x 350 pixels, {args.workers} workers")
    print(json.dumps({"ratio": round(loader / step, 1), "streaming_images_per_second": round(streaming)}))


if __name__ == "__main__":
    main()
