"""Kernels and memory traffic of a gate on CUDA, counted without a GPU: `python -m benchmarks.kernels`.

Eager: the operators that are not views, a kernel each. Compiled: what Inductor generates for an H100; nothing runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autorep.gates import reference

SHAPE, DEGREE = (128, 64, 32, 32), 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]


def relu_step(primals: list[Tensor], tangents: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """([y], [gradient of x]) of nn.ReLU; of the primals it takes x, the first."""
    y = torch.relu(primals[0])
    return [y], [torch.ops.aten.threshold_backward(tangents[0], y, 0)]


def gate_step(primals: list[Tensor], tangents: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """([y], [gradients of x, coefficients, score]) of a gate; primals are x, mask, coefficients, score.

    Both passes are called by hand: autograd's engine asks the driver about the device of each gradient.
    """
    ctx = SimpleNamespace(needs_input_grad=(True, False, True, True))
    ctx.save_for_backward = lambda *saved: setattr(ctx, "saved_tensors", saved)
    y = reference._GatedReLU.forward(ctx, *primals)
    return [y], [grad for grad in reference._GatedReLU.backward(ctx, *tangents) if grad is not None]


def inputs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Primals (x [N, C, H, W], mask [C, H, W], coefficients [C, D], score [C, H, W]) and tangents (gradient of y)."""
    x, grad_y = (torch.empty(SHAPE, device="cuda", dtype=dtype, memory_format=torch.channels_last) for _ in range(2))
    mask, score = (torch.empty(SHAPE[1:], device="cuda", dtype=kind) for kind in (torch.bool, torch.float32))
    return [x, mask, torch.empty(SHAPE[1], DEGREE + 1, device="cuda"), score], [grad_y]


class EagerCounter(TorchDispatchMode):
    """Counts kernels, and the bytes of each argument and result; an element that is broadcast counts once."""

    kernels = bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if func.namespace == "aten" and not func.is_view and not func.__name__.startswith(("empty", "new_empty")):
            self.kernels += 1
            for t in tree_leaves((args, kwargs, result)):
                if isinstance(t, Tensor):
                    sizes = (size for size, stride in zip(t.shape, t.stride(), strict=True) if stride)
                    self.bytes += torch.Size(sizes).numel() * t.itemsize
        return result


def eager(step: Step, primals: list[Tensor], tangents: list[Tensor]) -> tuple[int, int]:
    """Kernels and bytes of both passes together."""
    with EagerCounter() as counter:
        step(primals, tangents)
    return counter.kernels, counter.bytes


def counted(dtype: torch.dtype) -> dict[str, list[tuple[int, float]]]:
    """How it runs -> (kernels, bytes over those of one activation) of nn.ReLU and of the gate."""
    from benchmarks.inductor import compiled

    found = []
    with FakeTensorMode():  # tensors without memory, on a device that may be absent
        primals, tangents = inputs(dtype)
        for step, given in ((relu_step, primals[:1]), (gate_step, primals)):
            passes = compiled(step, given, tangents)
            counts = [eager(step, given, tangents), *passes, tuple(map(sum, zip(*passes, strict=True)))]
            found.append([(kernels, size / tangents[0].nbytes) for kernels, size in counts])
    return dict(zip(("eager", "forward", "backward", "compiled"), zip(*found, strict=True), strict=True))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    try:
        found = {precision: counted(dtype) for precision, dtype in DTYPES.items()}
    except Exception as error:  # a torch without Triton, or with other internals
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"torch {torch.__version__} does not show what it would run on CUDA: {reason}")
    print(f"{list(SHAPE)}, channels last, degree {DEGREE}, forward and backward; bytes over those of one activation")
    print(f"{'':14}{'relu kernels':>14}{'gate kernels':>14}{'relu bytes':>12}{'gate bytes':>12}{'gate/relu':>11}")
    for precision, ways in found.items():
        for way, ((relu_kernels, relu), (gate_kernels, gate)) in ways.items():
            print(f"{precision + ' ' + way:14}{relu_kernels:14}{gate_kernels:14}{relu:12.2f}{gate:12.2f}"
                  f"{gate / relu:11.2f}")
    kernels = {way: max(ways[way][1][0] for ways in found.values()) for way in ("compiled", "eager")}
    ratios = {precision: ways["compiled"][1][1] / ways["compiled"][0][1] for precision, ways in found.items()}
    print(json.dumps({"kernels": kernels["compiled"], "kernels_eager": kernels["eager"],
                      **{f"bytes_ratio_{precision}": round(ratio, 3) for precision, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
