"""An index of binary codes by id: added, removed, searched by Hamming distance; in memory, or in one file.

In memory the codes lie in the order of their ids, and that is what a search scans; the file (``search.store``) is the
truth that they are read from. Opening a million codes is reading 16 MB, so an exact index keeps nothing else on disk.
An approximate one keeps its cells beside the file (``FILE.cells``), bound to the codes they were made of.

No torch is imported.

Shapes: N codes, n of them added, Q queries, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilhash.codes import Bytes, packed_pair
from distilhash.errors import DistilhashError, unknown_name
from distilhash.retrieval import backends as engine
from distilhash.retrieval.store import Store
from distilhash.retrieval.table import Ids, Table

ENGINES = {
    "auto": "exact up to four million codes, beyond cells where they find 999 of 1,000 and are faster (with FAISS)",
    "exact": "every code is compared",
    "cells": "the codes of the nearest cells are compared: approximate",
}


class Index:
    """Codes by id. Open it with Index.open(), and close it, or use it as a context manager.

    It may be used from several threads. What another process writes to the file is seen by the next call.
    """

    def __init__(self, store: Store | None, num_bits: int | None, engine_name: str) -> None:
        self._store, self._engine, self._mutex = store, engine_name, threading.RLock()
        self._num_bits = num_bits
        self._table = Table(np.empty(0, np.int64), np.empty((0, 0), np.uint8))
        self._cells: engine.Cells | None = None
        self._filled: engine.CellSearch | None = None
        self._saved_truth = ""
        self._reload()

    @classmethod
    def open(cls, path: str | os.PathLike[str], num_bits: int | None = None, *, engine: str = "auto") -> Index:
        """The index in a file (made by the first add() where there is none), or an empty one for ":memory:".

        ``num_bits`` is needed only where the first codes to be added are packed. ``engine``: a name of ENGINES.
        Errors: DistilhashError for a file that is not an index, or is one of other bits.
        """
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        if num_bits is not None and num_bits < 1:
            raise DistilhashError("the number of bits must be at least 1", num_bits)
        return cls(None if os.fspath(path) == ":memory:" else Store(Path(path)), num_bits, engine)

    def __len__(self) -> int:
        """The number of codes."""
        with self._mutex:
            self._refresh()
            return len(self._table)

    @property
    def num_bits(self) -> int | None:
        """Length of the codes, bits; None while nothing says it."""
        return self._num_bits

    @property
    def ids(self) -> Ids:
        """All ids (N,), ascending."""
        with self._mutex:
            self._refresh()
            return self._table.ids.copy()

    def add(self, ids: ArrayLike, codes: ArrayLike) -> None:
        """Add codes (n, K) of -1/+1 or packed (n, P) under new ids (n,), each at least 0.

        Errors: DistilhashError for an id that is there already or comes twice, and for codes of another length; nothing is
        changed then.
        """
        new_ids, array = checked_ids(ids), np.asarray(codes)
        with self._mutex:
            self._begin_change()
            packed = self._packed(array, "codes")
            if len(packed) != len(new_ids):
                raise DistilhashError("every code needs one id", f"{len(new_ids)} ids, {len(packed)} codes")
            ascending = bool((new_ids[1:] > new_ids[:-1]).all())
            if not ascending:
                order = np.argsort(new_ids)
                new_ids, packed = new_ids[order], packed[order]
                twice = np.flatnonzero(new_ids[1:] == new_ids[:-1])
                if twice.size:
                    raise DistilhashError("an id is given twice", int(new_ids[twice[0]]))
            there = self._table.held(new_ids)
            if there.size:
                raise DistilhashError("an id is in the index already", int(there[0]), "remove it first")
            if self._store is not None:
                with self._store.writing():
                    self._store.describe(num_bits=str(self._num_bits or self._inferred(array)))
                    self._store.append(new_ids, packed)
            self._num_bits = self._num_bits or self._inferred(array)
            if self._cells is not None:
                self._cells.cell_of = np.append(self._cells.cell_of, self._cells.assign(packed))
            moved = self._table.insert(new_ids, packed)
            if self._cells is not None and moved is not None:
                self._cells.cell_of = self._cells.cell_of[moved]
            self._filled = None

    def remove(self, ids: ArrayLike) -> None:
        """Remove codes. Errors: DistilhashError for an id that is not there; nothing is changed then."""
        gone = np.unique(checked_ids(ids))
        with self._mutex:
            self._begin_change()
            positions = self._table.positions(gone)
            missing = gone[positions < 0]
            if missing.size:
                raise DistilhashError("an id is not in the index", int(missing[0]))
            if self._store is not None:
                with self._store.writing():
                    self._store.withdraw(gone)
            keep = np.ones(len(self._table), np.bool_)
            keep[positions] = False
            self._table.keep(keep)
            if self._cells is not None:
                self._cells.cell_of = self._cells.cell_of[keep]
            self._filled = None
            if self._store is not None:
                self._store.tidy(self._table.ids, self._table.codes)

    def search(self, codes: ArrayLike, top: int = 10) -> tuple[Ids, NDArray[np.int32]]:
        """Ids (Q, top) and distances (Q, top) of the nearest codes, by (distance, id); -1 where there are fewer.

        ``codes``: (Q, K) of -1/+1, or packed (Q, P). Errors: DistilhashError.
        """
        if top < 1:
            raise DistilhashError("the number of hits must be at least 1", top)
        with self._mutex:
            self._refresh()
            queries = self._packed(np.asarray(codes), "queries")
            kept_ids, kept_codes = self._table.ids, self._table.codes
            cells = self._ready_cells() if len(self._table) and self._approximate else None
        # Outside the lock: a change makes new arrays or writes behind the end of these.
        positions, distances = cells.nearest(queries, top) if cells else engine.nearest(kept_codes, queries, top)
        missing = positions < 0
        if not missing.any():
            return kept_ids[positions], distances
        return np.where(missing, -1, kept_ids[positions] if len(kept_ids) else -1), distances

    def radius(self, codes: ArrayLike, r: int) -> list[tuple[Ids, NDArray[np.int32]]]:
        """For each query the ids and distances of all codes at most ``r`` bits away, by (distance, id); exact."""
        if r < 0:
            raise DistilhashError("the radius must be at least 0", r)
        with self._mutex:
            self._refresh()
            queries, kept_ids, kept_codes = (
                self._packed(np.asarray(codes), "queries"),
                self._table.ids,
                self._table.codes,
            )
        return [(kept_ids[found], away) for found, away in engine.within(kept_codes, queries, r)]

    def codes_of(self, ids: ArrayLike) -> Bytes:
        """The packed codes (n, P) of these ids. Errors: DistilhashError for an id that is not there."""
        wanted = checked_ids(ids)
        with self._mutex:
            self._refresh()
            positions = self._table.positions(wanted)
            if (positions < 0).any():
                raise DistilhashError("an id is not in the index", int(wanted[positions < 0][0]))
            return self._table.codes[positions]

    def close(self) -> None:
        """Keep the cells for the next time, and close the file."""
        with self._mutex:
            if self._store is None:
                return
            if self._cells is not None and self._store.exists:
                self._save_cells()
            self._store.close()
            self._store = None

    def __enter__(self) -> Index:
        """The index itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @property
    def _approximate(self) -> bool:
        many = len(self._table) > engine.EXACT_UP_TO
        return self._engine == "cells" or (self._engine == "auto" and many and engine.has_faiss())

    def _refresh(self) -> None:
        if self._store is not None and self._store.changed():
            self._reload()

    def _reload(self) -> None:
        if self._store is None:
            return
        if not self._store.exists and self._store.changed():  # made by another process since
            self._store = Store(self._store.path)
        about = self._store.about()
        bits = int(about["num_bits"]) if "num_bits" in about else None
        if bits is not None and self._num_bits not in (None, bits):
            self._store.close()
            raise DistilhashError("the index holds codes of another length", f"{bits} bits, {self._num_bits} wanted")
        self._num_bits = bits or self._num_bits
        self._cells = self._filled = None
        self._table = Table(*self._store.codes())

    def _begin_change(self) -> None:
        if self._store is None:
            return
        self._store.claim()
        self._refresh()
        if "encoder" in self._store.about():
            raise DistilhashError(
                "this index belongs to its photos", self._store.path, "change it with: distilhash index"
            )

    def _packed(self, array: NDArray[np.generic], name: str) -> Bytes:
        bits = self._num_bits or self._inferred(array)
        try:
            packed = packed_pair(array, np.empty((0, -(-bits // 8)), np.uint8), bits)[0]
        except DistilhashError as error:
            raise DistilhashError(
                error.what.replace("query_codes", name), error.got.replace("query_codes", name), error.fix
            ) from None
        return np.ascontiguousarray(packed)

    def _inferred(self, array: NDArray[np.generic]) -> int:
        if array.dtype == np.uint8:
            raise DistilhashError(
                "packed codes (uint8) do not say how many bits they hold", fix="pass num_bits= to Index.open"
            )
        return array.shape[1] if array.ndim == 2 and array.shape[1] else 1

    def _ready_cells(self) -> engine.CellSearch | None:
        if self._filled is None or self._cells is None:
            if self._cells is None and self._store is not None:
                self._saved_truth = engine.truth_of(self._table.ids, self._table.codes)
                self._cells = engine.Cells.load(self._cells_path(), self._saved_truth, self._table.codes)
            if self._cells is None or not self._cells.fits(self._table.codes):
                self._saved_truth, self._cells = "", engine.Cells.train(self._table.codes)
                self._save_cells()
            if self._engine == "auto" and not self._cells.pay:
                return None
            self._filled = self._cells.filled(self._table.codes)
        return self._filled

    def _cells_path(self) -> Path:
        assert self._store is not None
        return self._store.path.with_name(self._store.path.name + ".cells")

    def _save_cells(self) -> None:
        if self._store is None or self._cells is None:
            return
        truth = engine.truth_of(self._table.ids, self._table.codes)
        if truth != self._saved_truth:
            self._cells.save(self._cells_path(), truth)
            self._saved_truth = truth


def checked_ids(ids: ArrayLike) -> Ids:
    """Ids as (n,) int64. Errors: DistilhashError for anything but whole numbers of at least 0."""
    array = np.asarray(ids)
    if array.size == 0 and array.ndim <= 1:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DistilhashError("ids must be whole numbers of shape (n,)", f"{array.dtype} {array.shape}")
    if array.min() < 0 or (array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max):
        raise DistilhashError("ids must lie in 0 .. 2^63 - 1", f"{array.min()} .. {array.max()}")
    return array.astype(np.int64, copy=False)
