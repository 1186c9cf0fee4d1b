"""Which device a run uses, in which precision and memory layout."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as partitioner
from torch import Tensor

from autorep.distributed import local_rank, world_size_from_environment

_AUTOCAST = {"half": torch.float16, "bf16": torch.bfloat16}


def pick_device(gpu: str) -> torch.device:
    """The device that `--gpu` names: an index, or "cpu". Under torchrun each process takes the GPU of its local rank.

    Without CUDA an index warns and gives the CPU.

    Raises:
        ValueError: an index that this machine does not have, or no index at all.
    """
    if gpu == "cpu":
        return torch.device("cpu")
    if not gpu.isdecimal():
        raise ValueError(f"--gpu {gpu!r} is not legal: one index such as 0, or cpu; for several GPUs start "
                         "torchrun --nproc_per_node=N")
    if not torch.cuda.is_available():
        warnings.warn(f"--gpu {gpu}: no CUDA device here, running on the CPU", stacklevel=2)
        return torch.device("cpu")
    index = local_rank() if world_size_from_environment() > 1 else int(gpu)
    if index >= torch.cuda.device_count():
        raise ValueError(f"--gpu {index}: this machine has {torch.cuda.device_count()} GPUs, from 0 to "
                         f"{torch.cuda.device_count() - 1}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The autocast block of a precision: nothing for "full", fp16 for "half", bfloat16 for "bf16"."""
    if precision == "full":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """The images [N, C, H, W] on the device, channels last: the layout in which convolutions are fastest."""
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)


def compiled(step: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`step` by torch.compile, whose backward pass forms input and output of each gate anew from what is kept anyway.

    The output of a ReLU, a cheap operation, is formed anew from the convolution's before it, and needs no memory. The
    compiler does not know that a gate is as cheap, and would keep its input and its output, two activations per layer.

    Raises:
        ValueError: the device is the CPU, and the C++ compiler that torch.compile calls there is missing.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(f"--compile needs a C++ compiler, and there is no {compiler!r}: install g++, or let the "
                         "environment variable CXX name another one, or leave --compile out")
    compiled_step = torch.compile(step)

    def run(*args: Any) -> Any:
        with partitioner.patch(ban_recompute_materialized_backward=False, ban_recompute_not_in_allowlist=False):
            return compiled_step(*args)

    return run
