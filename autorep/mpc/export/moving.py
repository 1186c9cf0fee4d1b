"""What moves, chooses or repeats elements, or puts zeros between them, and computes nothing (in evaluation mode)."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from autorep.mpc.export.operation import named, two

# Functions that drop at random, and the position of their argument `training`, or `train`.
_DROPOUTS = dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
                           torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
                          2) | {stochastic_depth: 3}
_PADDINGS = tuple(getattr(nn, f"{mode}Pad{num}d") for num in (1, 2)
                  for mode in ("Zero", "Constant", "Reflection", "Replication", "Circular"))
_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unfold, nn.Identity,
            nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, *_PADDINGS)
_NAMES = ("flatten", "unflatten", "reshape", "transpose", "permute", "movedim", "swapaxes", "chunk", "split", "unbind",
          "select", "squeeze", "unsqueeze", "narrow", "flip", "roll", "clone", "detach", "contiguous", "view", "expand",
          "expand_as", "repeat", "unfold", "tile", "repeat_interleave", "index_select", "rot90", "fliplr", "flipud",
          "tensor_split", "view_as", "reshape_as", "moveaxis", "swapdims", "to", "type", "type_as", "cpu", "cuda")
# Positions stay as they are: other types of numbers would round them.
KEPT = ("to", "type", "type_as", "cpu", "cuda")
_FUNCTIONS = frozenset((
    operator.getitem, F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle, F.pad, F.unfold, *_DROPOUTS,
    *_NAMES, *(getattr(torch, name) for name in _NAMES if hasattr(torch, name)),
))
_ATTRIBUTES = ("T", "mT", "data")
_POOLS = (F.avg_pool2d, F.max_pool2d, torch.max_pool2d)
_JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack,
          torch.column_stack)


def moves(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a module, function or method (by name) only moves elements; a pool of one element does.

    Raises:
        ValueError: a dropout that stays active in evaluation, as `F.dropout(x)` without `training` does; a padding
            with other numbers than zero.
    """
    if not isinstance(target, nn.Module) and target in _DROPOUTS and _drops(_DROPOUTS[target], args, kwargs):
        raise ValueError("a dropout that is active in evaluation cannot be exported: with training=self.training it "
                         "can")
    if isinstance(target, (nn.ConstantPad1d, nn.ConstantPad2d)) or target is F.pad:
        _require_zeros(target, args, kwargs)
    if isinstance(target, (nn.AvgPool2d, nn.MaxPool2d)) or target in _POOLS:
        return _takes_single_elements(target, args, kwargs)
    if isinstance(target, nn.Upsample) or target is F.interpolate:
        given = named(args, kwargs, "input", "size", "scale_factor", "mode")
        mode = target.mode if isinstance(target, nn.Upsample) else given.get("mode", "nearest")
        return mode.startswith("nearest")
    if target is getattr:
        return args[1] in _ATTRIBUTES
    if target == "type":
        return len(args) + len(kwargs) > 1  # without a type it tells that of its operand
    return isinstance(target, _MODULES) if isinstance(target, nn.Module) else target in _FUNCTIONS


def _drops(position: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    by_name = kwargs.get("training", kwargs.get("train", True))
    return (args[position] if len(args) > position else by_name) is not False


def joins(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call puts tensors side by side.

    Args:
        args, kwargs: what is not a constant is no tensor here.

    Raises:
        ValueError: one of them is a constant that is not zero.
    """
    if target not in _JOINS:
        return False
    if any(isinstance(each, Tensor) and each.any() for each in named(args, kwargs, "tensors").get("tensors") or ()):
        raise ValueError("concatenation with constants that are not zero cannot be exported")
    return True


def _require_zeros(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if isinstance(target, nn.Module):
        mode, value = "constant", target.value
    else:
        given = named(args, kwargs, "input", "pad", "mode", "value")
        mode, value = given.get("mode", "constant"), given.get("value")
    if mode == "constant" and value:
        raise ValueError(f"padding with {value!r} cannot be exported: with zeros it can")


def _takes_single_elements(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if isinstance(target, nn.Module):
        given = vars(target)
    else:
        given = named(args, kwargs, "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                      "divisor_override")
    ones = given["kernel_size"] in (1, (1, 1), [1, 1])
    return ones and not any(two(given.get("padding") or 0)) and given.get("divisor_override") in (None, 1)
