"""GPUs for machines without one: tensors that claim to lie on cuda:i, refuse what CUDA refuses and count its waits.

The numbers of a `PretendedTensor` lie on the CPU. C++ sees a tensor of the CPU, so that autograd and autocast work, and
Python sees one of cuda:i. Every operation passes through `PretendedCUDA`, which refuses those that mix devices, and
counts the waits of the host for the GPU by the line of the package that asked. What this cannot show: speed, rounding,
memory, the kernels of CUDA, torch.compile. And it is lenient, as C++ makes tensors on the device that it sees: numbers
(tensors without dimensions) of the CPU pass where CUDA takes none, and `zeros_like(x, device="cpu")` stays where x is.
Devices need an index: C++ asks the driver for that of "cuda".
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.optim.optimizer as torch_optimizer
import torch.utils._foreach_utils as foreach_utils
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import autorep

_PACKAGE = Path(autorep.__file__).parent
_CPU = torch.device("cpu")
_ATEN = torch.ops.aten
# What they return, or its size, depends on numbers: the host has to know them before it goes on.
_WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_SETTING = {_ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}
_INDEXING = {_ATEN.index.Tensor, *_SETTING}
# They take numbers of the CPU, as operations with the tag `pointwise` do; pinv's are tolerances that C++ makes.
_TAKE_NUMBERS = {*_INDEXING, _ATEN.masked_fill.Tensor, _ATEN.masked_fill_.Tensor, _ATEN.fill_.Tensor,
                 _ATEN.linalg_pinv.atol_rtol_tensor}


class PretendedTensor(Tensor):
    """A tensor of a pretended GPU: `values` are its numbers, `place` is where it claims to lie."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, place: torch.device) -> PretendedTensor:
        self = Tensor._make_wrapper_subclass(cls, values.shape, strides=values.stride(), dtype=values.dtype,
                                             device=_CPU, storage_offset=values.storage_offset())
        torch._C._set_throw_on_mutable_data_ptr(self)  # a kernel that asks for its address would get a null pointer
        self.values, self.place = values, place
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: a tensor of a pretended GPU outside of its `pretended_cuda` block")

    # ---- what tensors answer without passing through the mode

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def numpy(self, **_kwargs: Any) -> None:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy, at {_caller()}")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def cpu(self) -> Tensor:
        return self.to(_CPU)

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=self.place)

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        elsewhere = None if device in (_CPU, self.place) else device
        # C++ takes it to be on the CPU already.
        return Tensor.to(_Leave.apply(self) if device == _CPU else self, device=elsewhere, dtype=dtype, copy=copy,
                         memory_format=memory_format or torch.preserve_format)

    def __reduce_ex__(self, protocol: int) -> Any:
        values = self.values.detach()
        values.untyped_storage().pretended_place = str(self.place)  # for torch.save, which asks the storage for it
        return values.__reduce_ex__(protocol)

    def __repr__(self, **_kwargs: Any) -> str:
        return f"PretendedTensor({self.values!r}, {self.place})"


class _Leave(torch.autograd.Function):
    """To the CPU; the host waits, even for a copy that is not to block, as the numbers could not be read before."""

    @staticmethod
    def forward(ctx, x: PretendedTensor) -> Tensor:
        ctx.place = x.place
        PretendedCUDA.current.count_wait("copy to the CPU")
        return x.values.detach().clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.to(ctx.place)


class PretendedCUDA(TorchDispatchMode):
    """Runs every operation: refuses mixed devices with a RuntimeError, and counts in `waits` where the host waited."""

    current: PretendedCUDA

    def __init__(self, num_gpus: int) -> None:
        super().__init__()
        self.num_gpus, self.gpu, self.waits = num_gpus, 0, Counter()
        PretendedCUDA.current = self

    def count_wait(self, what: str) -> None:
        """One wait of the host for a GPU, at the line that runs."""
        self.waits[f"{_caller()} [{what}]"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = {t.place for t in tensors if isinstance(t, PretendedTensor)}
        asked = kwargs.get("device")
        # Asked for the CPU with a tensor of a GPU at hand: that is C++, which means the device of that tensor.
        place = self.indexed(asked) if asked is not None and asked.type == "cuda" else next(iter(places), None)
        if place is None:
            return func(*args, **kwargs)
        if len(places) > 1:
            raise RuntimeError(f"{func}: tensors on {', '.join(sorted(map(str, places)))}, at {_caller()}")
        if func is _ATEN._to_copy.default:
            if not places and not kwargs.get("non_blocking"):
                self.count_wait("blocking copy to the GPU")
        elif func is _ATEN.copy_.default:
            if not isinstance(args[0], PretendedTensor):
                place = None
                self.count_wait("copy to the CPU")
            elif not isinstance(args[1], PretendedTensor) and True not in args[2:]:
                self.count_wait("blocking copy to the GPU")
        else:
            if places:
                self._refuse_mixed(func, args, tensors, place)
            self._count_waits(func, args)
        if asked is not None:
            kwargs["device"] = _CPU
        if torch.Tag.inplace_view in func.tags:  # shape and strides that C++ sees change with those of the values
            with no_dispatch():
                func(*args, **kwargs)
        known = {id(t.values): t for t in tensors if isinstance(t, PretendedTensor)}
        args, kwargs = tree_map_only(PretendedTensor, lambda t: t.values, (args, kwargs))
        result = func(*args, **kwargs)
        if place is None:
            return result
        return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else PretendedTensor(t, place), result)

    def indexed(self, device: torch.device | int | str) -> torch.device:
        """The GPU that is meant, the current one where no index is given."""
        device = torch.device(device)
        index = self.gpu if device.index is None else device.index
        if index >= self.num_gpus:
            raise RuntimeError(f"invalid device ordinal: {device} of {self.num_gpus} pretended GPUs, at {_caller()}")
        return torch.device("cuda", index)

    def _refuse_mixed(self, func, args: tuple, tensors: list[Tensor], place: torch.device) -> None:
        takes_numbers = func in _TAKE_NUMBERS or torch.Tag.pointwise in func.tags
        takes_indices = func in _INDEXING and isinstance(args[0], PretendedTensor)
        indices = {id(t) for t in tree_leaves(args[1])} if takes_indices else set()
        written = {id(t) for argument, value in zip(func._schema.arguments, args, strict=False)
                   if argument.alias_info is not None and argument.alias_info.is_write for t in tree_leaves(value)}
        for t in (t for t in tensors if not isinstance(t, PretendedTensor)):
            number = t.dim() == 0 and takes_numbers and id(t) not in written
            if not number and id(t) not in indices:
                raise RuntimeError(f"{func}: {list(t.shape)} on the CPU among tensors of {place}, at {_caller()}")

    def _count_waits(self, func, args: tuple) -> None:
        if func not in _INDEXING:
            if _WAITS & set(func.tags):
                self.count_wait(func.__name__)
            return
        indices = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
        masked = any(t.dtype == torch.bool for t in indices)
        number = func in _SETTING and args[2].dim() == 0 and not isinstance(args[2], PretendedTensor)
        for t in indices:
            if not isinstance(t, PretendedTensor):
                self.count_wait("index copied to the GPU")
        # A number by a mask is masked_fill_. By an index it is copied: https://github.com/pytorch/pytorch/pull/186486
        if masked != number:
            self.count_wait("index by a mask" if masked else "number copied to the GPU")


def _caller() -> str:
    """The innermost line of the package that runs."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "a line outside the package"


def _grouped(lists: list[list], with_indices: bool = False) -> dict:
    """What the function of torch does, to which all would lie on the CPU."""
    groups = defaultdict(list)
    for i, tensor in enumerate(lists[0]):
        groups[tensor.device, tensor.dtype].append(i)
    return {key: ([[row[i] for i in numbers] if row else [] for row in lists], numbers if with_indices else [])
            for key, numbers in groups.items()}


def _refuse_to_load(_storage: Any, location: str) -> None:
    if location.startswith("cuda"):
        raise RuntimeError(f"torch.load onto {location} is not pretended: load with map_location='cpu'")


@contextmanager
def pretended_cuda(num_gpus: int = 1) -> Iterator[PretendedCUDA]:
    """Within the block the machine has `num_gpus` pretended GPUs and no others; random numbers come from the CPU."""
    mode, autocast = PretendedCUDA(num_gpus), torch.autocast

    def rng_state(device: torch.device | int | str = "cuda") -> Tensor:
        return mode.indexed(device) and torch.get_rng_state()

    with ExitStack() as stack:
        def patch(owner: Any, **values: Any) -> None:
            for name in filter(lambda name: hasattr(owner, name), values):  # private names come and go
                stack.enter_context(mock.patch.object(owner, name, values[name]))

        patch(torch.cuda, _lazy_init=lambda: None, is_available=lambda: True, device_count=lambda: num_gpus,
              set_device=lambda device: setattr(mode, "gpu", mode.indexed(device).index),
              current_device=lambda: mode.gpu, get_device_name=lambda device=None: "pretended",
              get_rng_state=rng_state, set_rng_state=lambda state, device="cuda": rng_state(device))
        # Autocast for the CPU does nothing to what lies on a GPU.
        patch(torch, autocast=lambda kind, **how: autocast("cpu", **{"enabled": kind == "cuda", **how}))
        patch(torch.serialization, _package_registry=[
            (0, lambda storage: getattr(storage, "pretended_place", None), _refuse_to_load),
            *torch.serialization._package_registry])
        # As on a GPU, optimisers and clipping take all parameters in one operation.
        for module in (foreach_utils, torch_optimizer, torch.nn.utils.clip_grad):
            patch(module, _group_tensors_by_device_and_dtype=_grouped,
                  _foreach_supported_types=[Tensor, torch.nn.Parameter, PretendedTensor])
        patch(torch.optim.Optimizer, _accelerator_graph_capture_health_check=lambda self: None,
              _cuda_graph_capture_health_check=lambda self: None)
        # Parameters cannot become pretended ones in place: a module that is moved takes new ones.
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion,
                       torch.__future__.get_overwrite_module_params_on_conversion())
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        # So that torch.tensor(..., device="cuda:0") shows its copy to the GPU.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(mode)
        yield mode
