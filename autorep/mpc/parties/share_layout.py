"""A party's share in the engine's format, and the ring elements in it. Imports the engine."""

from __future__ import annotations

from math import prod

import numpy as np
from spu import api, libspu


class ShareLayout:
    """The engine's format of a share of shape [N, ...]: a description, then a header and the ring elements."""

    def __init__(self, io: api.Io, shape: tuple[int, ...]) -> None:
        example = io.make_shares(np.zeros(shape, np.int64), libspu.Visibility.VIS_SECRET, -1)[0]
        self._shape, self._num_bytes = shape, 8 * prod(shape)
        self._meta, self._headers = example.meta, self._headers_of(example)

    def _headers_of(self, share: libspu.Share) -> list[bytes]:
        return [chunk[:-self._num_bytes] for chunk in share.share_chunks]

    def elements(self, share: libspu.Share) -> np.ndarray:
        """The ring elements of one party's share, int64.

        Raises:
            RuntimeError: it is not one additive share in one piece.
        """
        if share.meta != self._meta or len(self._headers) != 1 or self._headers_of(share) != self._headers:
            raise RuntimeError(f"invalid share {share.meta!r} of shape {list(self._shape)}: expected an additive "
                               f"share in one piece, {self._meta!r}; use the pinned spu, or a smaller --batch")
        return np.frombuffer(share.share_chunks[0], np.int64, offset=len(self._headers[0])).reshape(self._shape)

    def share(self, elements: np.ndarray) -> libspu.Share:
        """The inverse of `elements`."""
        share = libspu.Share()
        share.meta = self._meta
        share.share_chunks = [self._headers[0] + np.ascontiguousarray(elements).tobytes()]
        return share
