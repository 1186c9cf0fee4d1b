"""Versions, machine, command and commit of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import autorep


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, command and commit: what it takes to run this again."""
    import torchvision  # here, because it takes seconds

    return {"command": [sys.executable, *sys.argv], "commit": _commit(), "python": platform.python_version(),
            "torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__,
            "platform": platform.platform(), "cpu": _cpu_name(), "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "world_size": int(os.environ.get("WORLD_SIZE", "1"))}


def _cpu_name() -> str:
    """The processor as Linux names it; elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the package that runs, with a + where it was changed since; None outside a checkout."""
    here = Path(autorep.__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "--", "."], cwd=here,
                                 capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
