"""Where a node is in the model, for errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx


@contextmanager
def named_in_errors(node: fx.Node) -> Iterator[None]:
    """Errors that begin with the place of a node.

    Raises:
        ValueError: what the block raises, or what torch raises in it.
    """
    try:
        yield
    except ValueError as error:
        place, text = place_of(node), str(error)
        raise ValueError(text if text.startswith(place) else place + text) from error  # of an earlier node there
    except (RuntimeError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{place_of(node)}the model fails on a batch of one image: {reason}") from error


def place_of(node: fx.Node) -> str:
    """Where a node is in the model: "layer1.0.conv: "; nothing for what has a place already."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(node.target) if node.op == "call_module" else next(reversed(list(stack)), "")
    path = path.removeprefix("model").removeprefix(".") or ("" if node.op == "output" else node.name)
    return f"{path}: " if path else ""
