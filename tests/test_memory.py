"""Memory that a process keeps: counted in page faults, which no other load on the machine changes."""

import platform
import subprocess
import sys

import pytest

from autorep.machine import memory

FAULTS = """
import resource, torch
from autorep.machine.memory import keep_freed_memory_
if {keeps}:
    assert keep_freed_memory_()
def step():
    held = [torch.zeros(2**24) for _ in range(2)]  # 64 MiB each
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def at_least_2_35():
    name, version = platform.libc_ver()
    return name == "glibc" and [int(part) for part in version.split(".")] >= [2, 35]


def faults(keeps):
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keeps=keeps)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not at_least_2_35(), reason="malloc of another C library, or of a glibc that maps these anew")
def test_freed_memory_is_not_mapped_again():
    # Where the heap is in pieces, a step may still take fresh pages once.
    assert 2 * faults(keeps=True) < faults(keeps=False)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("musl", "1.2"))
    assert memory.keep_freed_memory_() is False
