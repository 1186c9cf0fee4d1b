"""The hooks of a module: forward, forward pre-, backward and backward pre-hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


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
