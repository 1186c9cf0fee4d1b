"""Which device a run uses, in which precision and memory layout."""

from __future__ import annotations

import contextlib
import os
import warnings

import torch
from torch import Tensor

from autorep.config import RunConfig
from autorep.machine.distributed import local_rank, world_size_from_environment
from autorep.option import InvalidSetting

_AUTOCAST = {"half": torch.float16, "bf16": torch.bfloat16}


def pick_device(gpu: str) -> torch.device:
    """The device that `RunConfig.gpu` names: an index, or "cpu".

    With several processes each one takes the GPU of its local rank. A task of SLURM that sees one GPU takes that one,
    whatever its rank: SLURM can give every task a GPU of its own.
    Without CUDA an index warns and gives the CPU.

    Raises:
        ValueError: an index that this machine does not have, no index at all, or more processes than GPUs.
    """
    if gpu == "cpu":
        return torch.device("cpu")
    if not gpu.isdecimal():
        raise InvalidSetting(RunConfig, "gpu", gpu, "one index such as 0, or cpu; for several GPUs start torchrun "
                             "--nproc_per_node=N")
    if not torch.cuda.is_available():
        warnings.warn(f"`gpu` {gpu}: this machine has no CUDA device, so the run is on the CPU", stacklevel=2)
        return torch.device("cpu")
    index, num_gpus = int(gpu), torch.cuda.device_count()
    if world_size_from_environment() > 1:
        index = 0 if num_gpus == 1 and "SLURM_PROCID" in os.environ else local_rank()
        if index >= num_gpus:
            raise ValueError(f"local rank {index} has no GPU of its own: this machine has {num_gpus}; start at most as "
                             f"many processes, torchrun --nproc_per_node={num_gpus}")
    if index >= num_gpus:
        raise InvalidSetting(RunConfig, "gpu", gpu, f"an index from 0 to {num_gpus - 1}, the GPUs of this machine")
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
