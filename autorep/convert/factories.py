"""`torch.zeros(x.size(0), ...)` while torch.fx traces: torch takes no proxy for a size, so the call becomes a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx


@contextmanager
def traceable_factories() -> Iterator[None]:
    """Within the block torch.zeros, ones, full and empty take proxies as sizes."""
    made = {name: _traceable(getattr(torch, name)) for name in ("zeros", "ones", "full", "empty")}
    with patch.multiple(torch, **made):
        yield


def _traceable(function: Callable) -> Callable:
    def make(*args: Any, **kwargs: Any) -> Any:
        proxies: list[fx.Proxy] = []
        fx.node.map_aggregate((args, kwargs), lambda a: proxies.append(a) if isinstance(a, fx.Proxy) else None)
        if not proxies:
            return function(*args, **kwargs)
        return proxies[0].tracer.create_proxy("call_function", function, args, kwargs)

    return make
