"""The gate layer in a search against nn.ReLU and against a plain copy: `python -m benchmarks.gate`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autorep.config import GateConfig
from autorep.gates.gated_relu import GatedReLU
from autorep.machine.device import pick_device
from benchmarks.timing import alternate, awaited, median_ratio

SHAPE = (64, 64, 32, 32)
ROUNDS = 200
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Forward reads x and writes y, backward reads x and the gradient and writes dx; a copy reads once and writes once.
PASSES, COPY_PASSES = 5, 2


def searching_gate(device: torch.device) -> GatedReLU:
    """As in a search: score and coefficient gradients on, degree 2, half of the ReLUs dropped."""
    gate = GatedReLU(SHAPE[1:], GateConfig(replacement="polynomial", degree=2), device=device)
    gate.mask.copy_(torch.rand(SHAPE[1:]) < 0.5)
    return gate


def forward_backward(layer: nn.Module, x: Tensor, grad_y: Tensor) -> Callable[[], None]:
    """One training step's worth of the layer; gradients start from None, as after `zero_grad`."""
    leaves = (x, *layer.parameters())

    def run() -> None:
        layer(x).backward(grad_y)
        for leaf in leaves:
            leaf.grad = None

    return run


def measure(dtype: torch.dtype, layout: torch.memory_format, device: torch.device,
            compiled: bool) -> dict[str, list[float]]:
    """Seconds per round of "gate", "relu" and "copy" on the same tensors."""
    x, grad_y = (torch.randn(SHAPE).to(device, dtype).contiguous(memory_format=layout) for _ in range(2))
    target = torch.empty_like(x)
    x.requires_grad_()
    layers = {"gate": searching_gate(device), "relu": nn.ReLU()}
    if compiled:
        torch.compiler.reset()  # what was compiled for another dtype and layout would count as a recompilation
        layers = {name: torch.compile(layer) for name, layer in layers.items()}
    runs = {name: forward_backward(layer, x, grad_y) for name, layer in layers.items()}
    runs["copy"] = lambda: target.copy_(x.detach())
    return alternate({name: awaited(run, device) for name, run in runs.items()}, ROUNDS)


def parsed() -> tuple[torch.device, bool]:
    """The device, and whether to compile; an unknown device ends the process with one line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--gpu", default="cpu", help="an index, or cpu")
    parser.add_argument("--compile", action="store_true", help="each layer under torch.compile")
    args = parser.parse_args()
    try:
        return pick_device(args.gpu), args.compile
    except ValueError as error:
        parser.error(str(error))


def main() -> None:
    device, compiled = parsed()
    ratios: dict[tuple[str, str], tuple[float, float]] = {}
    print(f"{list(SHAPE)}, compile={compiled}, {device}, {torch.get_num_threads()} threads, "
          f"median of {ROUNDS} alternating rounds")
    print(f"{'':22}{'relu ms':>9}{'gate ms':>9}{'copy ms':>9}{'copy GB/s':>11}{'gate/relu':>11}{'gate/floor':>12}")
    for precision, dtype in DTYPES.items():
        for name, layout in LAYOUTS.items():
            seconds = measure(dtype, layout, device, compiled)
            relu, gate, copy = (statistics.median(seconds[run]) for run in ("relu", "gate", "copy"))
            ratio = median_ratio(seconds["gate"], seconds["relu"])
            floor = median_ratio(seconds["gate"], seconds["copy"]) * COPY_PASSES / PASSES
            ratios[precision, name] = ratio, floor
            bandwidth = COPY_PASSES * torch.Size(SHAPE).numel() * dtype.itemsize / copy / 1e9
            print(f"{precision + ' ' + name:22}{relu * 1e3:9.2f}{gate * 1e3:9.2f}{copy * 1e3:9.2f}{bandwidth:11.1f}"
                  f"{ratio:11.2f}{floor:12.2f}")
    worst = {precision: max(ratios[precision, name][0] for name in LAYOUTS) for precision in DTYPES}
    print(json.dumps({**{f"ratio_{precision}": round(value, 3) for precision, value in worst.items()},
                      "floor_ratio": round(max(ratios["fp32", name][1] for name in LAYOUTS), 3)}))


if __name__ == "__main__":
    main()
