"""The training step under torch.compile: when, at what price in seconds, and what happens where it cannot be."""

from __future__ import annotations

import functools
import os
import shutil
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as functorch

from autorep.machine.distributed import is_main

# As it does for ReLU, the backward pass recomputes input and output of a gate from what a convolution keeps anyway. The
# compiler does not know that a gate is as cheap as a ReLU, and would keep two activations per layer. The backward pass
# compiles with the forward pass, so that the first call shows whether both can be.
FUNCTORCH_OPTIONS = {name: value for name, value in {
    "ban_recompute_materialized_backward": False, "ban_recompute_not_in_allowlist": False,
    "force_non_lazy_backward_lowering": True}.items() if hasattr(functorch, name)}  # older torch has not all of them


def compiled(step: Callable[..., Any], device: torch.device, wanted: bool | None) -> Callable[..., Any]:
    """`step` under torch.compile if it is wanted; None wants it on CUDA, and takes `step` itself where it cannot be.

    Raises:
        ValueError: it is wanted, and torch.compile cannot run on this machine.
    """
    if wanted is False or (wanted is None and device.type != "cuda"):
        return step
    reason = _obstacle(device)
    if reason is None:
        return _CompiledStep(step, or_plain=wanted is None)
    if wanted:
        raise ValueError(f"`compile`=true is not possible here: {reason}; leave it out, or give `compile`=false")
    _warn(reason)
    return step


@functools.cache
def _obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot run on a device; None if it compiles and runs a line of arithmetic."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return (f"there is no C++ compiler {compiler!r}: install g++, or let the environment variable CXX name another "
                "one")
    try:
        with functorch.patch(**FUNCTORCH_OPTIONS):
            torch.compile(lambda x: x.relu() + 1)(torch.ones(8, device=device))
    except Exception as error:  # missing or old Triton, C compiler, driver, GPU: each fails in a way of its own
        return _reason(error)
    return None


class _CompiledStep:
    """A compiled step that says what compiling took and, with `or_plain`, becomes the plain step if that fails.

    The plain step repeats the call that failed, so that what its first part did (a batch-norm update) counts twice.
    """

    def __init__(self, step: Callable[..., Any], *, or_plain: bool) -> None:
        torch.compiler.reset()  # what earlier runs of this process compiled would count against the recompile limit
        self.plain, self.step = step, torch.compile(step)
        self.or_plain, self.called = or_plain, False

    def __call__(self, *args: Any) -> Any:
        first, self.called = not self.called, True
        if first:
            _say("compiling the training step (--compile false skips it) ...")
        start = time.monotonic()
        try:
            with functorch.patch(**FUNCTORCH_OPTIONS):
                result = self.step(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            if not self.or_plain:
                raise
            _warn(_reason(error))
            self.step, self.or_plain = self.plain, False
            return self.plain(*args)
        if first:
            _say(f"compiled the training step in {time.monotonic() - start:.0f} s")
        return result


def _say(line: str) -> None:
    if is_main():
        print(line, flush=True)


def _reason(error: Exception) -> str:
    """One line of an error; Inductor's have the cause on the second one."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return " ".join(lines[:2] if lines[0].endswith("raised:") else lines[:1])


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"torch.compile cannot run here ({reason}), so the training step is not compiled: every gate then "
                  "takes many small kernels. `compile`=false silences this", stacklevel=2)
