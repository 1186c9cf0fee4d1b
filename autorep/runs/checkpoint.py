"""Checkpoints: atomic, strict, versioned; read with `weights_only=True`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import GateConfig
from autorep.convert.swap import convert_relus_
from autorep.machine.files import write_atomically
from autorep.models.registry import build_model

CHECKPOINT_VERSION = 1


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves either the old file or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save({"version": CHECKPOINT_VERSION, **payload}, file))


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this toolkit onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a complete checkpoint, or one of another version.
    """
    payload = _read(Path(path))
    if not isinstance(payload, dict) or not {"version", "model_args", "gate", "model", "config"} <= payload.keys():
        raise ValueError(f"{path} is not an autorep checkpoint; give plain weights as `model.pretrained_path`")
    if payload["version"] != CHECKPOINT_VERSION:
        raise ValueError(f"{path} is a checkpoint of version {payload['version']!r}; this autorep reads version "
                         f"{CHECKPOINT_VERSION}: use the autorep that wrote it, or train again")
    return payload


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a file such as RUN_FOLDER/last.pth.tar")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} cannot be read as a checkpoint (damaged, or it holds more than tensors and plain "
                         f"values): {reason}") from error


def describe_model(arch: str, num_classes: int, in_channels: int, image_size: int, dropout: float | None,
                   gate: GateConfig | None) -> dict[str, Any]:
    """The part of a payload from which `build_from` rebuilds the network."""
    model_args = {"name": arch, "num_classes": num_classes, "in_channels": in_channels, "image_size": image_size,
                  "dropout": dropout}
    return {"model_args": model_args, "gate": None if gate is None else asdict(gate)}


def build_from(payload: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint, converted if it was, with its weights, masks and coefficients."""
    with torch.random.fork_rng(devices=[]):  # initial weights and scores are overwritten below
        model = build_model(**payload["model_args"])
        if payload["gate"] is not None:
            model = convert_relus_(model, torch.zeros(1, *model.input_shape), GateConfig(**payload["gate"])).model
    try:
        model.load_state_dict(payload["model"])
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is not complete: {str(error).splitlines()[1].strip()}") from error
    return model


def load_pretrained_(model: nn.Module, path: str | Path) -> None:
    """Load dense weights from a checkpoint of ours or a plain state dict (also under "state_dict" or "model").

    Raises:
        FileNotFoundError, ValueError: no such file, not readable, or its names or shapes do not fit the model.
    """
    state = _read(Path(path))
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state dict: expected parameter names with tensors")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    unfit = sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    if missing or extra or unfit:
        gates = any(name.endswith(".score") for name in extra)
        hint = ("it is an AutoReP result, not a dense network: give it as `checkpoint_path`" if gates
                else "check `model.arch` and `data.dataset`")
        raise ValueError(f"the weights in {path} do not fit this model ({hint}): missing {missing[:3]}, "
                         f"unexpected {extra[:3]}, other shape {unfit[:3]}")
    model.load_state_dict(state)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The random-number states of torch on the CPU and, if a run computes on a GPU, on that one."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `rng_state`, also on another GPU. A run that moves from the CPU to a GPU draws other
    numbers there.

    Checkpoints of older versions hold the states of all GPUs of their machine.
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"]:
        index = device.index or 0
        torch.cuda.set_rng_state(state["cuda"][index if index < len(state["cuda"]) else 0], device)
