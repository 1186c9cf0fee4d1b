"""A search step on the CPU with and without freed memory being kept: `python -m benchmarks.memory`."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from autorep.machine.memory import keep_freed_memory_
from benchmarks.step import parse, positive, step_of, step_parser
from benchmarks.timing import median_ratio

KINDS = ("kept", "freed")


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds and page faults of a step, in this process."""
    if args.child == "kept" and not keep_freed_memory_():
        sys.exit("this C library is not glibc: nothing to compare")
    step = step_of("search", args)
    for _ in range(3):
        step()
    seconds, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"ms": 1e3 * statistics.median(seconds), "faults": faults / args.steps}


def main() -> None:
    parser = step_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=10, help="of every round")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.child:
        print(json.dumps(measured(args)))
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):  # a process each: what it has done to the allocator cannot be undone
        for kind in KINDS:
            child = subprocess.run([sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--child", kind],
                                   capture_output=True, text=True)
            if child.returncode:
                sys.exit(child.stderr)
            found[kind].append(json.loads(child.stdout.splitlines()[-1]))
    print(f"{args.arch}, batch {args.batch_size}, {args.precision}, median of {args.rounds} alternating processes\n"
          f"{'memory':8}{'ms':>9}{'page faults':>13}")
    for kind in KINDS:
        ms, faults = (statistics.median(each[key] for each in found[kind]) for key in ("ms", "faults"))
        print(f"{kind:8}{ms:9.1f}{faults:13,.0f}")
    ratio = median_ratio(*([each["ms"] for each in found[kind]] for kind in KINDS))
    print(json.dumps({"ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
