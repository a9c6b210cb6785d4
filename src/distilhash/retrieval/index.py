"""An index of binary codes by id: add, remove, search by Hamming distance; in memory or in one file.

In memory the codes lie in the order of their ids. Every change makes new arrays, so a search may go on in those that it
has. The file (``retrieval.store``) is the truth that they are read from; an approximate index keeps its IVF lists
beside it (``FILE.ivf``), bound to their codes. One file, as one class keeps arrays, lists and file in step.

Shapes: N codes, n of them new or asked for, Q queries, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilhash.codes import Bytes, packed_codes
from distilhash.errors import DistilhashError, unknown_name
from distilhash.progress import log
from distilhash.retrieval import backends
from distilhash.retrieval.backends import Distances, Ids
from distilhash.retrieval.store import MAX_BITS, Store

ENGINES = {
    "auto": "exact up to four million codes, beyond IVF where its recall is 0.999 and it is faster",
    "exact": "every code is compared",
    "ivf": "the codes of the nearest IVF lists are compared: approximate",
}


class Index:
    """Codes by id; open it with Index.open(), and close it, or use it as a context manager.

    Codes and queries are given as (n, K) of -1/+1, or packed (n, P) uint8. It is safe to use from several threads. What
    another process writes to the file is seen by the next call. On an error nothing is changed. After close() every
    call is refused.
    """

    def __init__(self, store: Store | None, num_bits: int | None, engine: str) -> None:
        self._store, self._num_bits, self._engine, self._mutex = store, num_bits, engine, threading.RLock()
        self._ids, self._codes = np.empty(0, np.int64), np.empty((0, 0), np.uint8)
        self._ivf: backends.Ivf | None = None
        self._ivf_saved = self._closed = False
        self._reload()

    @classmethod
    def open(cls, path: str | os.PathLike[str], num_bits: int | None = None, *, engine: str = "auto") -> Index:
        """Open an index file (made by the first add() where there is none), or an empty index in memory.

        Args:
            path: the file, or ":memory:".
            num_bits: length of the codes; needed only where the first codes to be added are packed.
            engine: a name of ENGINES.

        Raises:
            DistilhashError: the file is not an index, is damaged, or holds codes of another length.
        """
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        if num_bits is not None:
            _check_bits(num_bits)
        return cls(None if os.fspath(path) == ":memory:" else Store(Path(path)), num_bits, engine)

    def __len__(self) -> int:
        """The number of codes."""
        with self._mutex:
            self._refresh()
            return len(self._ids)

    @property
    def num_bits(self) -> int | None:
        """Length of the codes in bits; None while unknown."""
        return self._num_bits

    @property
    def ids(self) -> Ids:
        """All ids (N,), ascending."""
        with self._mutex:
            self._refresh()
            return self._ids.copy()

    def add(self, ids: ArrayLike, codes: ArrayLike) -> None:
        """Add codes under new ids, whole numbers (n,) of at least 0. Each call copies the arrays: add many at once.

        Raises:
            DistilhashError: an id is in the index already or comes twice, the codes have another length, another
                process is writing, or the disk refuses.
        """
        new_ids = _checked_ids(ids)
        with self._mutex:
            self._begin_change()
            packed, num_bits = packed_codes(codes, self._num_bits)
            _check_bits(num_bits)
            if len(packed) != len(new_ids):
                raise DistilhashError("every code needs one id", f"{len(new_ids)} ids, {len(packed)} codes")
            order = np.argsort(new_ids)
            new_ids, packed = new_ids[order], packed[order]
            twice = new_ids[1:][new_ids[1:] == new_ids[:-1]]
            if twice.size:
                raise DistilhashError("an id is given twice", int(twice[0]))
            rows = np.searchsorted(self._ids, new_ids)
            there = new_ids[np.append(self._ids, -1)[rows] == new_ids]
            if there.size:
                raise DistilhashError("an id is in the index already", int(there[0]), "remove it first")
            if self._store is not None:
                with self._store.writing():
                    self._store.describe(num_bits=str(num_bits))
                    self._store.append(new_ids, packed)
            items = _items(self._codes.reshape(-1, packed.shape[1]))
            self._codes = np.insert(items, rows, _items(packed)).view(np.uint8).reshape(-1, packed.shape[1])
            self._ids, self._num_bits = np.insert(self._ids, rows, new_ids), num_bits
            if self._ivf is not None:
                self._ivf.add(new_ids, packed)
                self._ivf_saved = False

    def remove(self, ids: ArrayLike) -> None:
        """Remove the codes of these ids (n,).

        Raises:
            DistilhashError: an id is not in the index, another process is writing, or the disk refuses.
        """
        gone = np.unique(_checked_ids(ids))
        with self._mutex:
            self._begin_change()
            keep = np.ones(len(self._ids), np.bool_)
            keep[self._rows(gone)] = False
            if self._store is not None:
                with self._store.writing():
                    self._store.withdraw(gone)
            self._ids = self._ids[keep]
            if self._codes.size:
                self._codes = _items(self._codes)[keep].view(np.uint8).reshape(-1, self._codes.shape[1])
            if self._ivf is not None:
                self._ivf.remove(gone)
                self._ivf_saved = False
            if self._store is not None:
                self._store.tidy(self._ids, self._codes)

    def search(self, codes: ArrayLike, top: int = 10) -> tuple[Ids, Distances]:
        """The ``top`` nearest codes to each query, by (distance, id).

        Returns:
            Ids (Q, top) and distances (Q, top) in bits; -1 where there are fewer codes.

        Raises:
            DistilhashError: the queries are not codes of this index's length, or ``top`` is below 1.
        """
        if top < 1:
            raise DistilhashError("the number of hits must be at least 1", top)
        with self._mutex:
            queries_QP, ids_N, codes_NP = self._asked(codes)
            ivf = self._ready_ivf()
            if ivf is not None:
                return ivf.nearest(queries_QP, top)
        # Outside the lock: a change makes new arrays.
        positions, distances = backends.nearest(codes_NP, queries_QP, top)
        return np.append(ids_N, -1)[positions], distances  # position -1 is none

    def radius(self, codes: ArrayLike, r: int) -> list[tuple[Ids, Distances]]:
        """For each query ids and distances of all codes at most ``r`` bits away, by (distance, id); always exact.

        Raises:
            DistilhashError: the queries are not codes of this index's length, or ``r`` is negative.
        """
        if r < 0:
            raise DistilhashError("the radius must be at least 0", r)
        with self._mutex:
            queries_QP, ids_N, codes_NP = self._asked(codes)
        return [(ids_N[found], away) for found, away in backends.within(codes_NP, queries_QP, r)]

    def codes_of(self, ids: ArrayLike) -> Bytes:
        """The packed codes (n, P) of these ids (n,); DistilhashError where one is not in the index."""
        wanted = _checked_ids(ids)
        with self._mutex:
            self._refresh()
            return self._codes[self._rows(wanted)]

    def close(self) -> None:
        """Save the IVF lists, if any, and close the file."""
        with self._mutex:
            if not self._closed:
                self._save_ivf()
            self._closed = True
            if self._store is not None:
                self._store.close()

    def __enter__(self) -> Index:
        """The index itself."""
        self._check_open()
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise DistilhashError("the index is closed", fix="open it again")

    def _refresh(self) -> None:
        self._check_open()
        if self._store is not None and self._store.changed():
            self._reload()

    def _reload(self) -> None:
        if self._store is None:
            return
        about = self._store.about()
        bits = int(about["num_bits"]) if "num_bits" in about else None
        if bits is not None and self._num_bits not in (None, bits):
            self._store.close()
            raise DistilhashError("the index holds codes of another length", f"{bits} bits, {self._num_bits} wanted")
        self._num_bits = bits or self._num_bits
        self._ivf = None
        self._ids, self._codes = self._store.codes()

    def _begin_change(self) -> None:
        self._check_open()
        if self._store is None:
            return
        self._store.claim()
        self._refresh()
        if "encoder" in self._store.about():
            fix = "change it with: distilhash index"
            raise DistilhashError("this index belongs to its photos", self._store.path, fix)

    def _asked(self, queries: ArrayLike) -> tuple[Bytes, Ids, Bytes]:
        """Packed queries (Q, P), and the ids and codes as they are now."""
        self._refresh()
        packed, _ = packed_codes(queries, self._num_bits, "queries")
        return packed, self._ids, self._codes.reshape(-1, packed.shape[1])

    def _rows(self, ids: Ids) -> Ids:
        """The row (n,) of each id in the arrays."""
        rows = np.searchsorted(self._ids, ids)
        unknown = ids[np.append(self._ids, -1)[rows] != ids]
        if unknown.size:
            raise DistilhashError("an id is not in the index", int(unknown[0]))
        return rows

    def _ready_ivf(self) -> backends.Ivf | None:
        """The approximate search over the current codes, loaded or trained; None where search is to be exact."""
        auto = self._engine == "auto"
        if not len(self._ids) or self._engine == "exact" or (auto and len(self._ids) <= backends.EXACT_UP_TO):
            return None
        if self._ivf is None and self._store is not None:
            self._ivf = backends.Ivf.load(self._store.beside(".ivf"), self._ids, self._codes)
            self._ivf_saved = True
        if self._ivf is None or not self._ivf.enough_for(len(self._ids)):
            self._ivf, self._ivf_saved = backends.Ivf.train(self._ids, self._codes), False
            self._save_ivf()
        return self._ivf if self._ivf.faster_than_exact or not auto else None

    def _save_ivf(self) -> None:
        if self._store is not None and self._ivf is not None and not self._ivf_saved:
            try:
                self._ivf.save(self._store.beside(".ivf"), self._ids, self._codes)
            except DistilhashError as error:  # they only save time
                log.warning("the lists of the approximate search are not kept: %s", error)
            self._ivf_saved = True


def _checked_ids(ids: ArrayLike) -> Ids:
    """Ids as an int64 array (n,), checked to be whole numbers from 0 to 2^63 - 1."""
    array = np.asarray(ids)
    if array.size == 0 and array.ndim <= 1:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        got = f"{array.dtype} {array.shape}"
        raise DistilhashError("ids must be whole numbers from 0 to 2^63 - 1, of shape (n,)", got)
    if array.min() < 0 or (array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max):
        raise DistilhashError("ids must lie in 0 .. 2^63 - 1", f"{array.min()} .. {array.max()}")
    return array.astype(np.int64, copy=False)


def _items(codes_NP: Bytes) -> NDArray[np.void]:
    """The codes (N,), each as one item, which NumPy moves several times faster than byte by byte."""
    return np.ascontiguousarray(codes_NP).view(f"V{codes_NP.shape[1]}")[:, 0]


def _check_bits(num_bits: int) -> None:
    if not 1 <= num_bits <= MAX_BITS:
        raise DistilhashError(f"the number of bits must lie in 1 .. {MAX_BITS}", num_bits)
