"""The way back: what a conversion changed, on every module that it changed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

_UNDO = "_before_gates"


@dataclass
class _Undo:
    """Lies on every module that was changed: the children that were replaced, the attributes that were added."""

    replaced: dict[str, nn.Module] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo: dict) -> _Undo:
        return _Undo(copy.deepcopy(self.replaced, memo), list(self.added))

    def __getstate__(self) -> dict:
        # Pickle would bring back the forward of the class, without gates and without a word.
        if "forward" in self.added:
            raise TypeError("a converted model with traced forwards cannot be pickled: save its state_dict(), and load "
                            "it into a model that was converted in the same way")
        return vars(self)


def undo_record(owner: nn.Module) -> _Undo:
    """What was changed on a module so far; what is changed next is to be added to it."""
    if _UNDO not in vars(owner):
        setattr(owner, _UNDO, _Undo())
    return getattr(owner, _UNDO)


def undo_(model: nn.Module) -> None:
    """Take back what the records of all modules say, and the records."""
    for module in list(model.modules()):
        undo: _Undo | None = vars(module).pop(_UNDO, None)
        if undo is None:
            continue
        for name, original in undo.replaced.items():
            setattr(module, name, original.train(getattr(module, name).training))
        for name in undo.added:
            delattr(module, name)
