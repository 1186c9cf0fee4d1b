"""Images/s of a search step on 1, 2, 4, ... N processes: `python -m benchmarks.scaling --processes 2`.

Each process has its own GPU, or on the CPU a number of threads that does not depend on the number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
from copy import copy

import torch
import torch.multiprocessing as mp

from autorep.machine.device import pick_device
from autorep.machine.distributed import destroy_process_group, init_process_group, is_main
from benchmarks.step import parse, positive, step_parser, trainer_of
from benchmarks.timing import alternate, awaited

BATCHES = ("same batch per process", "same global batch")
WARMUP = 3


def measure(rank: int, processes: int, port: int, args: argparse.Namespace, rates: mp.SimpleQueue) -> None:
    """One process of a group: search steps of the trainer, timed together; rank 0 reports images/s of all."""
    torch.set_num_threads(args.threads)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    init_process_group(pick_device(args.gpu))
    trainer, batch = trainer_of("search", args)

    def step() -> None:
        trainer._train_step(trainer.phases[0], batch)
        trainer._should_stop()  # with several processes it sends a message

    seconds = alternate({"step": awaited(step, trainer.device)}, args.steps, WARMUP)["step"]
    if is_main():
        rates.put(processes * args.batch_size / statistics.median(seconds))
    destroy_process_group()


def rate(processes: int, batch_size: int, args: argparse.Namespace) -> float:
    """Images/s of a group of processes with `batch_size` images each. If one dies, the others end too."""
    args = copy(args)
    args.batch_size = batch_size
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rates = mp.get_context("spawn").SimpleQueue()
    mp.spawn(measure, args=(processes, port, args, rates), nprocs=processes)
    return rates.get()


def counts(processes: int) -> list[int]:
    """1, 2, 4, ... and the number itself."""
    return sorted({*(2**i for i in range(processes.bit_length())), processes})


def parsed() -> argparse.Namespace:
    parser = step_parser(__doc__.splitlines()[0])
    gpus = torch.cuda.device_count()
    parser.set_defaults(gpu="0" if gpus else "cpu", precision="bf16" if gpus else "full")
    parser.add_argument("--processes", type=int, default=gpus or 2, help="at most (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="of each process")
    parser.add_argument("--steps", type=positive, default=10, help="measured in each group of processes")
    parser.add_argument("--rounds", type=positive, default=3)
    args = parse(parser)
    if args.processes < 2 or args.batch_size % args.processes:
        parser.error(f"invalid --processes {args.processes}: expected 2 or more, and a divisor of --batch_size "
                     f"{args.batch_size}")
    return args


def main() -> None:
    args = parsed()
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):  # alternating, so that a slow moment of the machine affects all of them
        alone = rate(1, args.batch_size, args)
        for batch in BATCHES:
            rates.setdefault((batch, 1), []).append(alone)
            for n in counts(args.processes)[1:]:
                size = args.batch_size if batch == BATCHES[0] else args.batch_size // n
                rates.setdefault((batch, n), []).append(rate(n, size, args))
    print(f"{args.arch}, batch {args.batch_size}, {args.precision}, compile={args.compile}, {args.gpu}, "
          f"{args.threads} threads a process, median of {args.rounds} alternating rounds")
    print(f"{'':24}{'processes':>10}{'images/s':>10}{'ratio':>8}")
    ratios = {}
    for (batch, n), found in rates.items():
        ratios[batch, n] = statistics.median(a / (n * b) for a, b in zip(found, rates[batch, 1], strict=True))
        print(f"{batch:24}{n:10}{statistics.median(found):10.0f}{ratios[batch, n]:8.3f}")
    weak, strong = (round(ratios[batch, args.processes], 3) for batch in BATCHES)
    print(json.dumps({"ratio": weak, "ratio_same_global_batch": strong, "processes": args.processes}))


if __name__ == "__main__":
    main()
