"""Codes in memory in the order of their ids: found by bisection, appended in place, scanned as one array.

Arrays that were handed out stay as they are: a change makes new ones, or writes behind their end.

Shapes: N codes, n of them new or asked for, P bytes a code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import Bytes

Ids = NDArray[np.int64]


class Table:
    """Ids (N,), ascending and each once, and their packed codes (N, P)."""

    def __init__(self, ids: Ids, codes: Bytes) -> None:
        self._buffers = ids, codes  # the first _count rows are used
        self._count = len(ids)

    def __len__(self) -> int:
        """The number of codes."""
        return self._count

    @property
    def ids(self) -> Ids:
        """The ids (N,)."""
        return self._buffers[0][: self._count]

    @property
    def codes(self) -> Bytes:
        """The codes (N, P)."""
        return self._buffers[1][: self._count]

    def positions(self, ids: Ids) -> NDArray[np.int64]:
        """Where each id is; -1 where it is not."""
        kept = self.ids
        if len(kept) == 0:
            return np.full(len(ids), -1, np.int64)
        positions = np.minimum(np.searchsorted(kept, ids), len(kept) - 1)
        return np.where(kept[positions] == ids, positions, -1)

    def held(self, ids: Ids) -> Ids:
        """Those of these ascending ids that are there."""
        if not self._count or not len(ids) or ids[0] > self.ids[-1]:  # mostly: new ones come behind
            return ids[:0]
        return ids[self.positions(ids) >= 0]

    def insert(self, ids: Ids, codes: Bytes) -> NDArray[np.int64] | None:
        """Put ascending new ids with their codes in their places.

        The result is the order of old and then new rows that now holds; None where the new ones are simply behind.
        """
        total = self._count + len(ids)
        if len(ids) and self._count and ids[0] < self.ids[-1]:
            both = np.append(self.ids, ids)
            order = np.argsort(both, kind="stable")
            self._buffers, self._count = (both[order], np.concatenate([self.codes, codes])[order]), total
            return order
        if total > len(self._buffers[0]) or codes.shape[1] != self._buffers[1].shape[1]:
            room = total + total // 4 if self._count else total
            grown = np.empty(room, np.int64), np.empty((room, codes.shape[1]), np.uint8)
            if self._count:
                grown[0][: self._count], grown[1][: self._count] = self.ids, self.codes
            self._buffers = grown
        self._buffers[0][self._count : total], self._buffers[1][self._count : total] = ids, codes
        self._count = total
        return None

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Drop the other rows."""
        codes, width = self.codes, self.codes.shape[1]
        # Each code moved as one item: several times faster than byte by byte.
        whole = codes.view(np.uint64 if width == 8 else f"V{width}")[:, 0]
        self._buffers = self.ids[rows], whole[rows].view(np.uint8).reshape(-1, width)
        self._count = len(self._buffers[0])
