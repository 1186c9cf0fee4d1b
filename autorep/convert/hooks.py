"""The hooks of a module: forward, forward pre-, backward and backward pre-hooks."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
          "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether any is registered."""
    return any(getattr(module, name) for name in _HOOKS)


def share_hooks_(source: nn.Module, target: nn.Module) -> None:
    """Let `target` have the hooks of `source`, now and later: both hold the same dictionaries."""
    for name in (*_HOOKS, "_is_full_backward_hook"):
        setattr(target, name, getattr(source, name))
