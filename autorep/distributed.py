"""The torchrun environment: rank, world size, all-reduce. Everything is a no-op on one process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


def init_process_group(device: torch.device) -> None:
    """Join the group that torchrun describes; nothing happens without torchrun."""
    if world_size_from_environment() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def destroy_process_group() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size_from_environment() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Index of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """Index of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, in place; returns its argument."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def take_from_main_(tensors: Iterable[torch.Tensor]) -> None:
    """Every rank takes the values of rank 0, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def gather(value: Any) -> list[Any]:
    """The value of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
