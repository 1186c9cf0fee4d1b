"""How the C library hands out memory in a process that trains on the CPU."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h. By default every large tensor that is freed goes back to the system, and the next one of its size
# is mapped and zeroed again, page by page: ten thousand page faults in a step of ResNet-20.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MOST, _GROWTH = 2**31 - 1, 2**28  # bytes
_LARGEST = (2**30, 2**25)  # bytes; glibc before 2.35 takes 32 MiB at most


def keep_freed_memory_() -> bool:
    """Let this process keep memory that it frees, for what it allocates next; False where the C library is not glibc.

    It then holds its peak, and up to 256 MiB more, until it ends. What is computed does not change.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The threshold first: where it is refused, all stays as it is. Any setting ends glibc's own adapting of it.
    return (any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST) and
            all(mallopt(*setting) for setting in ((_TRIM_THRESHOLD, _MOST), (_TOP_PAD, _GROWTH))))
