"""Memory order of activations and masks: [N, C, ...] or, with channels last, [N, ..., C]."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channel of x [N, C, ...] varies fastest in memory; False where both orders are the same."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def ordered(t: Tensor, channels_last: bool, channel: int = 1) -> Tensor:
    """`t` as a contiguous tensor with its dimensions in memory order: channels last moves `channel` to the end."""
    return (t.movedim(channel, -1) if channels_last else t).contiguous()


def restored(t: Tensor, channels_last: bool, channel: int = 1) -> Tensor:
    """The inverse view of `ordered`."""
    return t.movedim(-1, channel) if channels_last else t


def mask_in_order_of(x: Tensor, mask: Tensor) -> Tensor:
    """`mask` [C, ...] in the memory order of x [N, C, ...]; the same values.

    The first argument of torch.where decides the layout of its result, and a pixel's mask is read once per image.
    """
    last = is_channels_last(x)
    return restored(ordered(mask, last, 0), last, 0)


def strides_of_relu(x: Tensor) -> tuple[int, ...]:
    """The strides of F.relu(x). A gate must return the same, or it would change the output of the model.

    Later layers choose the order of their sums by the strides, even where dimensions of size 1 leave that order open.
    """
    order = torch.preserve_format
    if x.is_contiguous():
        order = torch.contiguous_format
    elif x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        order = torch.channels_last
    return torch.empty_like(x, device="meta", memory_format=order).stride()


def in_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """`y`, of the shape of x, with the strides that F.relu(x) has; a copy only where they differ."""
    if torch._C._are_functorch_transforms_active():
        return y  # Inside vmap a tensor does not tell its layout.
    strides = strides_of_relu(x)
    return y if y.stride() == strides else y.new_empty_strided(y.shape, strides).copy_(y)
