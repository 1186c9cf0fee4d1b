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
from benchmarks.timing import alternate, median_ratio

SHAPE = (64, 64, 32, 32)
ROUNDS = 200
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Forward reads x and writes y, backward reads x and the gradient and writes dx; a copy reads once and writes once.
PASSES, COPY_PASSES = 5, 2


def searching_gate() -> GatedReLU:
    """As in a search: score and coefficient gradients on, degree 2, half of the ReLUs dropped."""
    gate = GatedReLU(SHAPE[1:], GateConfig(replacement="polynomial", degree=2))
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


def measure(dtype: torch.dtype, layout: torch.memory_format) -> dict[str, list[float]]:
    """Seconds per round of "gate", "relu" and "copy" on the same tensors."""
    x, grad_y = (torch.randn(SHAPE).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    target = torch.empty_like(x)
    x.requires_grad_()
    return alternate({"gate": forward_backward(searching_gate(), x, grad_y),
                      "relu": forward_backward(nn.ReLU(), x, grad_y),
                      "copy": lambda: target.copy_(x.detach())}, ROUNDS)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # no flag is passed over in silence
    ratios: dict[tuple[str, str], tuple[float, float]] = {}
    print(f"{list(SHAPE)}, {torch.get_num_threads()} threads, median of {ROUNDS} alternating rounds")
    print(f"{'':22}{'relu ms':>9}{'gate ms':>9}{'copy ms':>9}{'copy GB/s':>11}{'gate/relu':>11}{'gate/floor':>12}")
    for precision, dtype in DTYPES.items():
        for name, layout in LAYOUTS.items():
            seconds = measure(dtype, layout)
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
