"""Several processes, as torchrun or SLURM starts them: rank, world size, messages. Without them all of it is a no-op.

Every rank computes on its own slice of a global batch and holds its own copy of the model. What they share:

| what | how | when |
|---|---|---|
| initial weights, scores, order of the images | the same seed on every rank | start |
| gradients | mean over the ranks | every step, after the backward pass |
| floating buffers (batch-norm statistics) | those of rank 0 | during a fit, a saliency pass, an evaluation |
| recorded moments, saliency | summed in rank order | every fit, start of a search |
| the wish to stop, a loss that is not finite | one rank stops all | every step |
| accuracy, teacher's logits | sums over the ranks | evaluation, start |

So weights, scores, coefficients and masks are the same bits on every rank and are never sent. Rank 0 alone writes
files and prints; its losses are those that are logged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def init_process_group(device: torch.device) -> None:
    """Join the group that torchrun describes; nothing happens without torchrun."""
    if world_size_from_environment() > 1 and not dist.is_initialized():
        # Its functions have the group of that moment as a default, and would keep its threads after it is destroyed.
        import torch.distributed.nn  # noqa: F401

        # gloo for what lies on the CPU (moments, the wish to stop): the GPU need not be waited for.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


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


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over the ranks, in place; returns its argument."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def average_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Every rank takes the mean of the gradients over the ranks, in place, with one message per dtype.

    All ranks must have gradients of the same parameters (`require_same_gradients`).

    DistributedDataParallel would send parts of them during the backward pass. A compiled backward pass leaves nothing
    to overlap with; the wrapper would break its graph, and keep the process group alive beyond `destroy_process_group`.
    """
    if not dist.is_initialized():
        return
    gradients: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            gradients.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for same_dtype in gradients.values():
        message = torch.cat([gradient.flatten() for gradient in same_dtype]).div_(world_size())
        dist.all_reduce(message)
        parts = message.split([gradient.numel() for gradient in same_dtype])
        for gradient, part in zip(same_dtype, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def require_same_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Raises RuntimeError unless every rank has gradients of the same parameters, in the same order."""
    patterns = gather([parameter.grad is not None for parameter in parameters])
    if any(pattern != patterns[0] for pattern in patterns):
        raise RuntimeError("the ranks have gradients of different parameters, which cannot be averaged: every rank "
                           "must compute with the same layers")


@contextmanager
def buffers_of_main(model: nn.Module) -> Iterator[None]:
    """Within the block the floating buffers, such as batch-norm statistics, are those of rank 0 on every rank."""
    if not dist.is_initialized():
        yield
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        dist.broadcast(buffer, 0)
    try:
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)


def any_rank(wish: bool) -> bool:
    """Whether any rank wishes it: the same answer on every rank."""
    if not dist.is_initialized():
        return wish
    return bool(all_reduce_sum(torch.tensor(float(wish))) > 0)


def gather(value: Any) -> list[Any]:
    """The value of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
