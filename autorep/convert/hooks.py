"""The hooks of a module: forward, forward pre-, backward and backward pre-hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")

_IDLE = "hooks that were registered after the conversion on "


@dataclass(frozen=True, eq=False)
class _Followed:
    """Hook `number` of a module, as long as it is registered there."""

    hooks: Mapping[int, Callable]
    number: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hooks[self.number](*args, **kwargs) if self.number in self.hooks else None


def has_hooks(module: nn.Module) -> bool:
    """Whether any is registered."""
    return any(getattr(module, name) for name in _HOOKS)


def hook_numbers(module: nn.Module) -> frozenset[int]:
    """Of those that are registered; no two hooks of a process have the same one."""
    return frozenset(number for name in _HOOKS for number in getattr(module, name))


def warn_of_hooks(owner: nn.Module, idle: Mapping[str, frozenset[int]]) -> None:
    """Warn where modules under `owner` that run no more, by path, have other hooks than those of these numbers."""
    for path, known in idle.items():
        module = owner
        for name in path.split("."):
            module = getattr(module, name, None)
        if module is not None and not known.issuperset(hook_numbers(module)):
            warnings.warn(f"{_IDLE}{path} in {type(owner).__name__} do not fire: gates run in its place or in what it "
                          "computed; register them on the gates that iter_gates lists", stacklevel=3)


@contextmanager
def watching_all() -> Iterator[None]:
    """Within the block `warn_of_hooks` is silent, for hooks on all modules whether they run or not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _IDLE)
        yield


def follow_hooks_(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the hooks of `source`, each until its handle removes it there.

    Hooks that are registered on `target` stay its own: several gates may follow one module.
    """
    for name in _HOOKS:
        hooks = getattr(source, name)
        getattr(target, name).update({number: _Followed(hooks, number) for number in hooks})
    for name in _OPTIONS:
        getattr(target, name).update(getattr(source, name))
    target._is_full_backward_hook = source._is_full_backward_hook
