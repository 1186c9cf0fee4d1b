"""A labelled set of images in memory, and the one way a training set is cut in two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ArraySet:
    """Images uint8 [N, H, W, C] with their class numbers int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images are {self.images.dtype} {list(self.images.shape)}; expected uint8 [N, H, W, C]")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}; expected int64 [{len(self.images)}]"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> ArraySet:
        """A copy of the images and labels at `indices` [M], in that order."""
        return ArraySet(self.images[indices], self.labels[indices])


def stratified_indices(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cut `labels` [N] in two: (rest, held out), the latter with about `fraction` of every class.

    Both come in one fixed shuffled order, so that any first few of them are a fair sample even where the source
    lists its images class by class (calibration reads just the first batches).

    Raises ValueError for a fraction outside [0, 1), or one so small that nothing would be held out, or so large that
    everything would.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"invalid held-out fraction {fraction}: expected 0 (none) or more, and less than 1")
    # RandomState, because its stream never changes: a teacher and a student trained years later must share the cut.
    order = np.random.RandomState(seed).permutation(len(labels))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        held_out[members[: round(fraction * len(members))]] = True
    if held_out.all() and len(labels):
        raise ValueError(f"invalid held-out fraction {fraction}: of {len(labels)} images none is left to train on; use "
                         "a smaller fraction")
    if fraction > 0 and not held_out.any():
        raise ValueError(
            f"invalid held-out fraction {fraction}: of {len(labels)} images no class has enough to hold one out; "
            "use a larger fraction, or 0 for no validation set"
        )
    return order[~held_out[order]], order[held_out[order]]


def split_train(train: ArraySet, fraction: float, seed: int = 0) -> tuple[ArraySet, ArraySet]:
    """Cut a training set into (train, validation): stratified, disjoint, exhaustive, the same for the same seed.

    Fraction 0 gives an empty validation set. Raises ValueError as `stratified_indices` does.
    """
    kept, held_out = stratified_indices(train.labels, fraction, seed)
    return train.subset(kept), train.subset(held_out)
