"""Compiles the C++ kernel of a gate for this processor on first use; later it is loaded from the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

from autorep.machine.files import user_path, write_atomically

_SOURCES = Path(__file__).parent / "csrc"
# No -ffast-math: NaN and -0.0 must come out as torch.relu gives them. Vectors wider than the processor's warn (psabi).
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-trapping-math", "-fno-math-errno", "-fopenmp-simd", "-fPIC",
          "-shared", "-Wno-psabi")
_STORAGE = {torch.float32: "Float32", torch.bfloat16: "Bfloat16", torch.float16: "Float16", torch.float64: "Float64"}
_CHECKSUM_BYTES = hashlib.sha256().digest_size


class Arguments(ctypes.Structure):
    """What a kernel gets, by name: addresses of contiguous tensors, and sizes. csrc/layout.h draws their memory.

    The same fields in the same order as `Arguments` there. None is what a pass does not need.
    """

    __slots__ = ()  # or a misspelt name would become an attribute
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("grad_y", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("coefficients_CD", ctypes.c_void_p),
        ("score", ctypes.c_void_p),
        ("range_3C", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("grad_x", ctypes.c_void_p),
        ("grad_score", ctypes.c_void_p),
        ("grad_coefficients_CD", ctypes.c_void_p),
        ("images", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("spatial", ctypes.c_int64),
        ("channels_last", ctypes.c_bool),
        ("threads", ctypes.c_int),
    )


@functools.cache
def load(dtype: torch.dtype, terms: int) -> ctypes.CDLL | None:
    """The kernel for activations of `dtype` and polynomials of `terms` coefficients; None where it is not available.

    The library is in $TORCH_EXTENSIONS_DIR/autorep, or else $XDG_CACHE_HOME/autorep (~/.cache/autorep), under a name
    made of its source, flags and processor. It ends with a checksum: a damaged one is compiled again. Processes that
    compile at once each write a file of their own and move it into place. With AUTOREP_KERNEL=eager in the environment
    it is None: plain tensor arithmetic, for debugging.

    Raises:
        ValueError: AUTOREP_KERNEL has another value.
    """
    choice = os.environ.get("AUTOREP_KERNEL", "")
    if choice not in ("", "eager"):
        raise ValueError(f"invalid AUTOREP_KERNEL={choice!r}: expected 'eager' (plain tensor arithmetic) or no value")
    if choice == "eager" or dtype not in _STORAGE:
        return None
    try:
        return _declared(ctypes.CDLL(str(_library(_STORAGE[dtype], terms))))
    except (OSError, AttributeError, subprocess.CalledProcessError) as error:
        _warn(_reason(error))
        return None


def _library(storage: str, terms: int) -> Path:
    sources = sorted(_SOURCES.iterdir())
    arguments = [*_FLAGS, f"-DSTORAGE={storage}", f"-DTERMS={terms}"]
    key = hashlib.sha256(repr((arguments, _processor(), [source.read_bytes() for source in sources])).encode())
    folder = _cache_folder()
    library = folder / f"gated_relu_{storage}_{terms}_{key.hexdigest()[:16]}.so"
    if not _is_whole(library):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            command = [_compiler(), *arguments, "-o", str(made), str(_SOURCES / "gated_relu.cpp")]
            subprocess.run(command, check=True, capture_output=True, text=True)
            content = made.read_bytes()
            write_atomically(made, content + _checksum(content))  # which has it on the disk before it is moved
            os.replace(made, library)
    return library


def _is_whole(library: Path) -> bool:
    """Whether a library is there and ends with its checksum: one that is cut would end the process with SIGBUS."""
    content = library.read_bytes() if library.exists() else b""
    return content[-_CHECKSUM_BYTES:] == _checksum(content[:-_CHECKSUM_BYTES])


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _cache_folder() -> Path:
    base = os.environ.get("TORCH_EXTENSIONS_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = user_path(base)
    return _of_this_process() if folder.parts[0] == "~" else folder / "autorep"


@functools.cache
def _of_this_process() -> Path:
    """A folder for users without a home folder; another user could have made any that is known beforehand."""
    return Path(tempfile.mkdtemp(prefix="autorep-"))


def _compiler() -> str:
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise FileNotFoundError("no C++ compiler (c++, g++ or clang++) in PATH")


def _processor() -> list[str]:
    """What `-march=native` depends on: a cache in a shared home folder serves machines of several kinds."""
    fields = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return sorted({line for line in lines if line.startswith(fields)})


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for function in (library.gated_relu_forward, library.gated_relu_backward):
        function.argtypes, function.restype = [ctypes.POINTER(Arguments)], None
    return library


def _reason(error: Exception) -> str:
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    said = error.stderr.strip().splitlines()
    return f"{error.cmd[0]}: {said[0] if said else f'exit status {error.returncode}'}"


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn("the fast CPU kernel of the gates is not available, so plain tensor arithmetic takes its place, many "
                  f"times slower ({reason}). Install a C++ compiler such as g++, and make the cache folder "
                  f"{_cache_folder()} writable (TORCH_EXTENSIONS_DIR chooses another)", stacklevel=2)
