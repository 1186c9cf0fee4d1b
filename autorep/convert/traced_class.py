"""A class for a module whose forward was traced: what looks at the class finds the gates too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn


class Unregistered:
    """In front of a class, so that a subclass made here is none that its `__init_subclass__` hears of."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass


class _Traced(Unregistered):
    """In front of the module's own class, which is its second base. torch.fx, replicas and copies go by the class."""

    def __copy__(self: nn.Module) -> nn.Module:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self: nn.Module, memo: dict) -> nn.Module:
        # That of fx.GraphModule would compile its graph again, which has no gates.
        twin = memo[id(self)] = object.__new__(type(self))
        own = getattr(type(self), "__getstate__", None)
        if own is getattr(object, "__getstate__", None):
            vars(twin).update(copy.deepcopy(vars(self), memo))
        else:
            twin.__setstate__(copy.deepcopy(own(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a converted model with traced forwards cannot be pickled; save its state_dict(), and load it "
                        "into a model that was converted in the same way")

    def recompile(self: fx.GraphModule) -> Any:
        """Of an fx.GraphModule that switches graphs: the forward stays the traced one."""
        return self.graph.python_code(root_module="self")


def bind_forward_(module: nn.Module, forward: Callable) -> None:
    """Give a module this forward, until `unbind_forward_`; it stays an instance of its class."""
    cls = type(module)
    module.__class__ = type(cls.__name__, (_Traced, cls), {
        "forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__})


def unbind_forward_(module: nn.Module) -> None:
    """Give a module the forward of its own class again; nothing happens where it has it."""
    for cls in type(module).__mro__:
        if _Traced in cls.__bases__ and cls is type(module):
            module.__class__ = cls.__bases__[1]
        elif _Traced in cls.__bases__ and "forward" in vars(cls):
            del cls.forward  # something else, such as a parametrization, has put a class in front of it since
