"""A search step against a plain distillation step of the same network: `python -m benchmarks.step`.

Both run through the trainer with the same frozen teacher, batch, precision and compilation; alternating medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from autorep.config import BudgetConfig, DataConfig, DistillConfig, GateConfig, ModelConfig, OptimConfig, RunConfig
from autorep.convert.swap import convert_relus_
from autorep.data.batch import Batch
from autorep.machine.device import pick_device
from autorep.models.registry import build_model
from autorep.runs.folder import RunFolder
from autorep.search.masks import project_to_budget_
from autorep.training.objective import Distillation
from autorep.training.trainer import Trainer
from benchmarks.timing import alternate, awaited, median_ratio

CLASSES, KINDS = 100, ("search", "plain")


def trainer_of(kind: str, args: argparse.Namespace) -> tuple[Trainer, Batch]:
    """A trainer inside its first phase, and a batch for it."""
    device = pick_device(args.gpu)
    gate = GateConfig(replacement="polynomial", score_init="uniform") if kind == "search" else None
    config = RunConfig(
        data=DataConfig(batch_size=args.batch_size), model=ModelConfig(arch=args.arch), precision=args.precision,
        gate=gate, compile=args.compile, gpu=args.gpu,
        distill=DistillConfig(teacher_arch=args.arch, teacher_path="none"), epochs=0 if gate else 1000,
        search_epochs=1000 if gate else 0, optim=OptimConfig(optimizer="adam", lr=1e-4),
        budget=BudgetConfig(relu_budget=12_900, schedule="constant") if gate else None)
    torch.manual_seed(0)
    networks = [build_model(args.arch, CLASSES).to(device, memory_format=torch.channels_last) for _ in range(2)]
    if gate:
        convert_relus_(networks[0], torch.zeros(1, 3, 32, 32, device=device), gate)
        project_to_budget_(networks[0], sum(m.numel() for n, m in networks[0].named_buffers() if "mask" in n) // 2)
    loaders = SimpleNamespace(train=SimpleNamespace(device=device, steps_per_epoch=1000), validation=None)
    trainer = Trainer(config, networks[0], Distillation(networks[1], 4.0), loaders, {}, RunFolder(Path("none")))
    trainer._enter(trainer.phases[0])
    images = torch.randn(args.batch_size, 3, 32, 32, device=device)
    return trainer, Batch(images, torch.randint(CLASSES, (args.batch_size,), device=device))


def step_of(kind: str, args: argparse.Namespace):
    """A callable that runs one step and waits for it."""
    trainer, batch = trainer_of(kind, args)
    return awaited(lambda: trainer._train_step(trainer.phases[0], batch), trainer.device)


def peak_memory(kind: str, args: argparse.Namespace) -> int:
    """Peak bytes of tensors over a few steps of a run, by torch's allocator on either device."""
    def steps() -> None:
        run = step_of(kind, args)
        for _ in range(3):
            run()

    if torch.cuda.is_available() and args.gpu != "cpu":
        steps()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        steps()
    events, todo = [], profiler.profiler.kineto_results.experimental_event_tree()
    while todo:
        event = todo.pop()
        todo += event.children
        if event.tag == _EventType.Allocation:  # negative where memory is freed
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(accumulate(size for _, size in sorted(events, key=itemgetter(0))))


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"invalid {text!r}: expected a whole number of 1 or more")
    return int(text)


def step_parser(description: str) -> argparse.ArgumentParser:
    """The flags that choose the step; `parse` reads them."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--arch", default="resnet18_in")
    parser.add_argument("--batch_size", type=positive, default=64)
    parser.add_argument("--precision", default="bf16", choices=("full", "half", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gpu", default="cpu")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; an unknown network or device ends the process with one line."""
    args = parser.parse_args()
    try:
        pick_device(args.gpu)
        build_model(args.arch, CLASSES)
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    parser = step_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=30)
    parser.add_argument("--memory_of", choices=KINDS, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return
    memory = {}
    for kind in KINDS:  # a process each, because the first may still hold memory
        child = subprocess.run([sys.executable, "-m", "benchmarks.step", *sys.argv[1:], "--memory_of", kind],
                               capture_output=True, text=True)
        if child.returncode:
            sys.exit(child.stderr)
        memory[kind] = int(child.stdout.split()[-1])
    seconds = alternate({kind: step_of(kind, args) for kind in KINDS}, args.rounds)
    ratio, memory_ratio = median_ratio(seconds["search"], seconds["plain"]), memory["search"] / memory["plain"]
    print(f"{args.arch}, batch {args.batch_size}, {args.precision}, compile={args.compile}, {args.gpu}, "
          f"{torch.get_num_threads()} threads, median of {args.rounds} alternating rounds")
    print(f"{'':8}{'ms':>9}{'images/s':>10}{'peak MiB':>10}")
    for kind in KINDS:
        median = statistics.median(seconds[kind])
        print(f"{kind:8}{median * 1e3:9.1f}{args.batch_size / median:10.0f}{memory[kind] / 2**20:10.0f}")
    print(f"{'ratio':8}{ratio:9.3f}{'':10}{memory_ratio:10.3f}")
    print(json.dumps({"ratio": round(ratio, 3), "peak_memory_ratio": round(memory_ratio, 3)}))


if __name__ == "__main__":
    main()
