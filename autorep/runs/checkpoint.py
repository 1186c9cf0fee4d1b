"""Checkpoints: atomic, strict, versioned; read with `weights_only=True`."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from autorep.config import GateConfig, RunConfig
from autorep.convert.swap import convert_relus_
from autorep.machine.files import write_atomically
from autorep.models.registry import build_model
from autorep.runs.config_file import from_json

CHECKPOINT_VERSION = 1
_NEEDED = {"version": int, "model_args": dict, "gate": (dict, NoneType), "model": dict, "config": str}
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_COUNTER = ".num_batches_tracked"  # of a batch norm: torch before 0.4.1 had none, and they do nothing in evaluation
_LARGEST_IMAGE = 64  # pixels for every gate: far more than any network has
_NEEDED_TO_RESUME = {"step": int, "num_steps": int, "seconds": (int, float), "state": dict, "rng": dict, "best": dict,
                     "weight_sums": dict}


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
    if not isinstance(payload, dict) or not _has(payload, _NEEDED):
        raise ValueError(f"{path} is not an autorep checkpoint; give plain weights as `model.pretrained_path`")
    if payload["version"] != CHECKPOINT_VERSION:
        raise ValueError(f"{path} is a checkpoint of version {payload['version']!r}; this autorep reads version "
                         f"{CHECKPOINT_VERSION}: use the autorep that wrote it, or train again")
    return payload


def load_to_resume(path: Path) -> dict[str, Any]:
    """A checkpoint of a run, with all that the run needs to go on. Raises as `load`."""
    payload = {"weight_sums": {}} | load(path)  # older files do not say which weights the run began with
    if not _has(payload, _NEEDED_TO_RESUME):
        raise ValueError(f"{path} lacks what resuming a run needs ({', '.join(_NEEDED_TO_RESUME)}): it is damaged or "
                         "of another program; start another run with `ext`=NAME")
    return payload


def _has(payload: dict[str, Any], needed: dict[str, Any]) -> bool:
    return all(key in payload and isinstance(payload[key], kind) for key, kind in needed.items())


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a file such as RUN_FOLDER/last.pth.tar")
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path} cannot be read: it holds a {foreign[1]} beside tensors, which could run code. "
                             "Save the state_dict() alone, with the program that wrote it") from error
        raise ValueError(f"{path} cannot be read as a checkpoint (damaged, or it holds more than tensors and plain "
                         f"values): {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a file, without the advice of torch.load, which is for files of its own."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        return "it is empty"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "its end is missing; copy or download it again"
    if "Unsupported operand" in str(error) and zipfile.is_zipfile(path):
        return "torch reads its pickle protocol for trusted files alone; save it again without pickle_protocol"
    if isinstance(error, pickle.UnpicklingError):
        return f"it begins with {start!r}, unlike any file of torch.save, if it is not damaged"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _check_sums(path: Path) -> None:
    """Raises ValueError where a member of the zip archive differs from its checksum: torch.load does not look at it.

    Or where one is compressed, which torch.save does not do: it might unpack to any size.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename} is compressed, so torch.save did not write it")
            if (member := archive.testzip()) is not None:
                raise ValueError(f"{member} differs from its checksum")


def describe_model(arch: str, num_classes: int, in_channels: int, image_size: int, dropout: float | None,
                   gate: GateConfig | None) -> dict[str, Any]:
    """The part of a payload from which `build_from` rebuilds the network."""
    model_args = {"name": arch, "num_classes": num_classes, "in_channels": in_channels, "image_size": image_size,
                  "dropout": dropout}
    return {"model_args": model_args, "gate": None if gate is None else asdict(gate)}


def config_of(payload: dict[str, Any], path: str | Path) -> RunConfig:
    """The configuration of the run that wrote a checkpoint. Raises ValueError naming its file, `path`."""
    try:
        return from_json(payload["config"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no configuration of a run that can be read ({error}): train again, or use the "
                         "autorep that wrote it") from error


def build_from(payload: dict[str, Any], path: str | Path = "the checkpoint") -> nn.Module:
    """The network of a checkpoint, converted if it was, with its weights, masks and coefficients.

    Raises ValueError naming its file, `path`, where the parts do not fit together.
    """
    try:
        _check_sizes(payload)
        with torch.random.fork_rng(devices=[]):  # initial weights and scores are overwritten below
            model = build_model(**payload["model_args"])
            if payload["gate"] is not None:
                model = convert_relus_(model, torch.zeros(1, *model.input_shape), GateConfig(**payload["gate"])).model
        model.load_state_dict(payload["model"])
    except (TypeError, KeyError, AttributeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not complete, or of another version of this toolkit ({reason}): train "
                         "again, or use the autorep that wrote it") from error
    return model


def _check_sizes(payload: dict[str, Any]) -> None:
    """Raises KeyError where the network would be larger than the weights that are there say, before it takes memory."""
    args, tensors = payload["model_args"], payload["model"].values()
    if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in tensors):
        raise KeyError("a weight is larger than what is stored of it")
    if not any(args["num_classes"] in tensor.shape for tensor in tensors):  # says it of RegNets too
        raise KeyError(f"weights for num_classes={args['num_classes']}, which are not there")
    try:
        with torch.device("meta"):
            needed = sum(value.numel() for value in build_model(**args).state_dict().values())
    except NotImplementedError:  # torchvision's RegNets look at what they initialise
        needed = 0
    if needed > sum(tensor.numel() for tensor in tensors):
        raise KeyError(f"{args} takes {needed:,} weights, which are not there")
    masks = sum(value.numel() for name, value in payload["model"].items() if name.endswith(".mask"))
    if payload["gate"] is not None and args["image_size"] ** 2 > _LARGEST_IMAGE * masks:
        raise KeyError(f"these masks are none of a network for image_size={args['image_size']}")


def not_finite(model: nn.Module) -> list[str]:
    """The names of the tensors of a network that hold NaN or infinity."""
    return [name for name, value in model.state_dict().items() if not value.isfinite().all()]


def load_pretrained_(model: nn.Module, path: str | Path) -> None:
    """Load dense weights from a checkpoint of ours, or from the first state dict that fits, at any depth of a file.

    Names may have the prefixes of wrappers: DataParallel, torch.compile, or a module that holds the network and others.

    Raises:
        FileNotFoundError, ValueError: no such file, not readable, or its names or shapes do not fit the model.
    """
    wanted, content = model.state_dict(), _read(Path(path))
    try:
        states = [(place, found) for place, state in _state_dicts(content) for found in _unwrapped(state, wanted)]
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if not states:
        raise ValueError(f"{path} holds no state dict: expected parameter names with tensors")
    state = max((state for _, state in states), key=lambda state: len(wanted.keys() & state.keys()))
    fitting = [place for place, each in states if each.keys() >= state.keys() & wanted.keys()]
    if len(fitting) > 1:
        warnings.warn(f"{path} holds the weights of several networks: {fitting[0]} is used, not "
                      f"{', '.join(fitting[1:])}; save the one that you mean alone", stacklevel=2)
    counters = {name: value for name, value in wanted.items() if name.endswith(_COUNTER)}
    state = counters | state
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    unfit = sorted(k for k in wanted.keys() & state.keys() if not _takes(wanted[k], state[k]))
    if missing or extra or unfit:
        gates = any(name.endswith(".score") for name in extra)
        hint = ("it is an AutoReP result, not a dense network: give it as `checkpoint_path`" if gates
                else "check `model.arch` and `data.dataset`")
        raise ValueError(f"the weights in {path} do not fit this model ({hint}): missing {missing[:3]}, "
                         f"unexpected {extra[:3]}, other shape or type {unfit[:3]}")
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{path} holds numbers that are not finite, in {', '.join(broken[:3])}: its training "
                         "diverged; give other weights")
    model.load_state_dict(state)


def _takes(wanted: Tensor, given: Tensor) -> bool:
    plain = given.layout == torch.strided and not given.is_meta
    return plain and wanted.shape == given.shape and (given.is_floating_point() or not wanted.is_floating_point())


def _state_dicts(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts of tensors in what a file holds and where, outermost first; what else is in them is left out."""
    ahead, seen = [("the file itself", content)], set()  # no recursion: a file may be nested at any depth, or in itself
    while ahead:
        place, each = ahead.pop()
        if not isinstance(each, (dict, list, tuple)) or id(each) in seen:
            continue
        seen.add(id(each))
        items = list(each.items() if isinstance(each, dict) else enumerate(each))
        if found := {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}:
            yield place, found
        ahead += [(repr(key), value) for key, value in reversed(items)]


def _unwrapped(state: dict[str, Tensor], wanted: Collection[str]) -> list[dict[str, Tensor]]:
    """The state by the names of the network itself: for each module around it that has such names, or else as it is.

    A first `module` stays, because an average of models has a counter beside it.

    Raises:
        ValueError: several modules have all of them, such as a student and its teacher.
    """
    wrappers = _WRAPPERS.difference(part for name in wanted for part in name.split("."))
    state = {".".join(part for i, part in enumerate(name.split("."))
                      if part not in wrappers or (i == 0 and part == "module")): value for name, value in state.items()}
    overlaps = Counter(name.removesuffix(own) for name in state for own in wanted if f".{name}".endswith(f".{own}"))
    found = {prefix: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
             for prefix, overlap in overlaps.items() if overlap == max(overlaps.values())}
    needed = {name for name in wanted if not name.endswith(_COUNTER)}
    whole = [prefix for prefix, part in found.items() if part.keys() >= needed]
    if len(whole) > 1:
        raise ValueError(f"holds several networks with these names, those of {', '.join(whole)}: save the one that "
                         "you mean alone")
    return list(found.values()) or [state]


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
