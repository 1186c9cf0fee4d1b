"""A party's share in the engine's format, and the ring elements in it. Imports the engine."""

from __future__ import annotations

from math import prod

import numpy as np
from spu import api, libspu


class ShareLayout:
    """The engine's format of a share of shape [N, ...]: a description, then a header and the ring elements.

    A value is the sum of components, of which each party holds some (K): one of two (additive), or two of three
    (replicated, of which no two parties hold the same two). They follow one another, element by element:

        two parties, x and y        header x0 y0                three parties    header x0 x1 y0 y1
                                    header x1 y1                                 header x1 x2 y1 y2
                                                                                 header x2 x0 y2 y0
    """

    def __init__(self, io: api.Io, shape: tuple[int, ...], num_components: int) -> None:
        example = io.make_shares(np.zeros(shape, np.int64), libspu.Visibility.VIS_SECRET, -1)[0]
        self._interleaved = (*shape, num_components)
        self._num_bytes = 8 * prod(self._interleaved)
        self._meta, self._headers = example.meta, self._headers_of(example)

    def _headers_of(self, share: libspu.Share) -> list[bytes]:
        return [chunk[:-self._num_bytes] for chunk in share.share_chunks]

    def components(self, share: libspu.Share) -> np.ndarray:
        """The ring elements of one party's share by component, int64 [K, N, ...].

        Raises:
            RuntimeError: it is not one arithmetic share in one piece.
        """
        if share.meta != self._meta or len(self._headers) != 1 or self._headers_of(share) != self._headers:
            raise RuntimeError(f"invalid share {share.meta!r} of shape {list(self._interleaved[:-1])}: expected an "
                               f"arithmetic share in one piece, {self._meta!r}; use the pinned spu, or a smaller "
                               "--batch")
        elements = np.frombuffer(share.share_chunks[0], np.int64, offset=len(self._headers[0]))
        return np.moveaxis(elements.reshape(self._interleaved), -1, 0)

    def share(self, components: np.ndarray) -> libspu.Share:
        """The inverse of `components`."""
        share = libspu.Share()
        share.meta = self._meta
        share.share_chunks = [self._headers[0] + np.ascontiguousarray(np.moveaxis(components, 0, -1)).tobytes()]
        return share
