"""What Inductor generates for CUDA, on a machine without a GPU: kernels are counted, not built or run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo import device_interface
from torch._functorch import config as functorch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config, scheduler
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.graph import GraphLowering
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from autorep.machine.compilation import FUNCTORCH_OPTIONS

# What decides how Inductor splits a reduction and fuses kernels.
H100 = SimpleNamespace(major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32,
                       max_threads_per_multi_processor=2048, shared_memory_per_block_optin=232448)


class _Interface(device_interface.CudaInterface):
    is_available = is_bf16_supported = is_triton_capable = staticmethod(lambda *_, **__: True)
    get_device_properties = staticmethod(lambda *_: H100)
    get_compute_capability = staticmethod(lambda *_: 90)
    current_device = staticmethod(lambda: 0)


@contextmanager
def _pretended_h100(counts: list[tuple[int, int]]) -> Iterator[None]:
    """Inductor finds an H100, and stops at a graph's code, whose kernels and bytes are appended to `counts`."""
    def stop(graph: GraphLowering) -> SimpleNamespace:
        code = graph.codegen()[0].value
        counts.append((len(re.findall(r"^ *triton_\w+\.run\(", code, re.MULTILINE)), graph.count_bytes()[0]))
        return SimpleNamespace(call=None, __file__="", key="")

    device_interface.get_interface_for_device("cuda")  # registers all of them; later that would undo the first patch
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    with (mock.patch.dict(device_interface.device_interfaces, {"cuda": _Interface, "cuda:0": _Interface}),
          mock.patch.multiple(torch.cuda, get_device_properties=lambda *_: H100, current_device=lambda: 0,
                              get_device_capability=lambda *_: (9, 0)),
          mock.patch.object(scheduler, "has_triton", lambda: True), mock.patch.object(driver, "_active", target),
          mock.patch.object(GraphLowering, "compile_to_module", stop),
          # No cache may keep what is not built, and folding constants would run them on the device.
          config.patch(fx_graph_cache=False, compile_threads=1, joint_graph_constant_folding=False)):
        yield


def compiled(step: Callable[..., tuple[list[Tensor], list[Tensor]]], primals: list[Tensor],
             tangents: list[Tensor]) -> list[tuple[int, int]]:
    """Triton kernels that the forward and the backward pass launch, and the bytes that they read and write.

    Bytes are Inductor's own count: a kernel reads or writes each element once at most.

    Args:
        step: primals, tangents -> [result], [gradients]; traced once, without autograd.
        primals, tangents: tensors of a FakeTensorMode on "cuda"; inside of it.

    Raises:
        RuntimeError: a pass has no Triton kernel in its code.
    """
    # The partitioner tells the passes apart by the names of the arguments.
    joint = make_fx(lambda primals, tangents: step(primals, tangents), select_decomp_table())(primals, tangents)
    counts: list[tuple[int, int]] = []
    with _pretended_h100(counts), functorch.patch(**FUNCTORCH_OPTIONS):
        joint_graph_passes(joint, torch.device("cpu"))  # where the patterns are traced
        passes = min_cut_rematerialization_partition(joint, (primals, tangents), num_fwd_outputs=1)
        for graph, is_backward in zip(passes, (False, True), strict=True):
            arguments = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
            compile_fx_inner(graph, arguments, is_backward=is_backward)
    if len(counts) != 2 or not all(kernels for kernels, _ in counts):
        raise RuntimeError("a pass has no Triton kernel in its code")
    return counts
