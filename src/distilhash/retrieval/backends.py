"""Nearest codes by Hamming distance: exact by FAISS or NumPy, approximate by FAISS's inverted file (IVF).

Exact: FAISS visits the codes in order and keeps an earlier one before a later one at the same distance, so with codes
sorted by id the result is the first by (distance, id). FAISS does not document this, so it is checked once on a small
case; where it does not hold, or FAISS is not installed, NumPy is used.

Approximate: k-means in Hamming space assigns every code to the list of its nearest centroid, and a query scans the
nprobe nearest lists. nprobe is calibrated against exact search on a sample; where it must be so large that nothing is
gained, engine "auto" stays exact. Only centroids, nprobe and the list of each code are saved, and FAISS's index is
rebuilt from them: FAISS's own files are no format for untrusted input.

Shapes: B database codes, Q queries, K bits, P = ceil(K / 8) bytes, L lists.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from distilhash.codes import Bytes, hamming
from distilhash.errors import DistilhashError, require
from distilhash.files import write_atomically

Positions = NDArray[np.int64]
Distances = NDArray[np.int32]

EXACT_UP_TO = 4_000_000  # codes; beyond, engine "auto" tries IVF
LISTS_PER_MILLION = 1_024
POINTS_PER_LIST = 64  # for k-means
MIN_NPROBE = 16
MAX_PROBED_SHARE = 1 / 8  # of all lists: beyond, exact search is as fast
MIN_RECALL, SAMPLE, SAMPLE_TOP = 0.999, 256, 11  # top-k of a sampled code: itself and ten others
FORMAT = "distilhash.ivf/1"
_QUERIES, _CODES, _BUCKETS, _AT_ONCE = 1024, 1 << 20, 1 << 23, 8  # per block of work: bounds memory


def nearest(codes_BP: Bytes, queries_QP: Bytes, top: int) -> tuple[Positions, Distances]:
    """Exact top-k by (distance, position): both (Q, top), distances in bits, -1 where there are fewer codes."""
    positions = np.full((len(queries_QP), top), -1, np.int64)
    distances = np.full((len(queries_QP), top), -1, np.int32)
    count = min(top, len(codes_BP))
    if count == 0:
        return positions, distances
    buckets = count * (8 * codes_BP.shape[1] + 1)  # per query: FAISS allocates so many 8-byte slots
    scan = _faiss_nearest if buckets <= _BUCKETS and keeps_order() else numpy_nearest
    block = max(1, min(_QUERIES, _BUCKETS // buckets))
    for start in range(0, len(queries_QP), block):
        part = slice(start, start + block)
        positions[part, :count], distances[part, :count] = scan(codes_BP, queries_QP[part], count)
    return positions, distances


def numpy_nearest(codes_BP: Bytes, queries_QP: Bytes, count: int) -> tuple[Positions, Distances]:
    """The same as nearest() with NumPy alone, for ``count`` <= B."""
    positions = np.empty((len(queries_QP), count), np.int64)
    distances = np.empty((len(queries_QP), count), np.int32)
    for row, query in enumerate(queries_QP):
        found = hamming(query[None], codes_BP)[0]
        furthest = np.partition(found, count - 1)[count - 1]
        closer = np.flatnonzero(found < furthest)
        closer = closer[np.argsort(found[closer], kind="stable")]
        # Ties at the last rank: the first positions.
        positions[row] = np.append(closer, np.flatnonzero(found == furthest)[: count - len(closer)])
        distances[row] = found[positions[row]]
    return positions, distances


def within(codes_BP: Bytes, queries_QP: Bytes, radius: int) -> list[tuple[Positions, Distances]]:
    """For each query, positions and distances of all codes at most ``radius`` bits away, by (distance, position)."""
    found: list[tuple[Positions, Distances]] = []
    for start in range(0, len(queries_QP), _AT_ONCE):
        part = queries_QP[start : start + _AT_ONCE]
        for distances in hamming(part, codes_BP) if len(codes_BP) else np.empty((len(part), 0), np.uint8):
            positions = np.flatnonzero(distances <= radius)
            positions = positions[np.argsort(distances[positions], kind="stable")]
            found.append((positions, distances[positions].astype(np.int32)))
    return found


def _faiss_nearest(codes_BP: Bytes, queries_QP: Bytes, count: int) -> tuple[Positions, Distances]:
    distances, positions = _faiss().knn_hamming(queries_QP, codes_BP, count, variant="mc")
    return positions, distances


def _faiss() -> Any:
    return require("approximate search", "'distilhash[search]'", "faiss")


def has_faiss() -> bool:
    """Whether FAISS is installed."""
    with contextlib.suppress(DistilhashError):
        return _faiss() is not None
    return False


@functools.cache
def keeps_order() -> bool:
    """Whether FAISS is installed and returns ties in the order of the codes."""
    if not has_faiss():
        return False
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 4, (300, 8), dtype=np.uint8)  # many ties
    found, expected = _faiss_nearest(codes, codes[:8], 20), numpy_nearest(codes, codes[:8], 20)
    return np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


def lists_for(count: int) -> int:
    """Number of IVF lists for ``count`` codes."""
    return max(1, count * LISTS_PER_MILLION // 1_000_000)


@dataclass(eq=False)
class IvfLists:
    """Trained IVF lists: centroids (L, P), the list (B,) of each code, and how many lists a query scans."""

    centroids: Bytes
    list_of: NDArray[np.int32]
    nprobe: int

    @classmethod
    def train(cls, codes_BP: Bytes) -> IvfLists:
        """K-means over these codes, with nprobe calibrated on a sample of them; it needs FAISS."""
        faiss = _faiss()
        bits, count = 8 * codes_BP.shape[1], lists_for(len(codes_BP))
        quantizer = faiss.IndexBinaryFlat(bits)
        index = faiss.IndexBinaryIVF(quantizer, bits, count)
        index.cp.max_points_per_centroid, index.cp.seed = POINTS_PER_LIST, 0
        index.cp.min_points_per_centroid = 1  # FAISS warns on stderr below its default
        index.train(codes_BP)
        centroids = faiss.vector_to_array(quantizer.xb).reshape(-1, codes_BP.shape[1]).copy()
        lists = cls(centroids, np.empty(0, np.int32), MIN_NPROBE)
        lists.list_of = lists.assign(codes_BP)
        lists.nprobe = lists._calibrated(codes_BP)
        return lists

    @property
    def faster_than_exact(self) -> bool:
        """Whether nprobe is small enough that scanning everything would take longer."""
        return self.nprobe <= MAX_PROBED_SHARE * len(self.centroids)

    def _calibrated(self, codes_BP: Bytes) -> int:
        """The smallest nprobe, doubled from MIN_NPROBE, with recall MIN_RECALL on a sample of the codes."""
        chosen = np.linspace(0, len(codes_BP) - 1, min(SAMPLE, len(codes_BP))).astype(np.int64)
        sample, top = codes_BP[chosen], min(SAMPLE_TOP, len(codes_BP))
        furthest = nearest(codes_BP, sample, top)[1][:, -1:]
        search, nprobe = IvfSearch(self, codes_BP), MIN_NPROBE
        while nprobe < len(self.centroids):
            search.set_nprobe(nprobe)
            away = search.nearest(sample, top)[1]
            # By distance and not by id: which one of many copies is found does not matter.
            if ((away >= 0) & (away <= furthest)).mean() >= MIN_RECALL:
                break
            nprobe *= 2
        return min(nprobe, len(self.centroids))

    def assign(self, codes_nP: Bytes) -> NDArray[np.int32]:
        """The list (n,) of each code: its nearest centroid, the first one of several."""
        return nearest(self.centroids, codes_nP, 1)[0][:, 0].astype(np.int32)

    def enough_for(self, count: int) -> bool:
        """Whether there are still enough lists for ``count`` codes."""
        return 4 * len(self.centroids) >= lists_for(count)

    def save(self, path: str | Path, ids: NDArray[np.int64], codes_BP: Bytes) -> None:
        """Write the lists as one safetensors file, bound to these ids and codes."""
        nprobe = np.array([self.nprobe], np.int64)
        tensors = {"centroids": self.centroids, "list_of": self.list_of, "nprobe": nprobe}
        header = json.dumps([FORMAT, _digest(ids, codes_BP, self.centroids, self.list_of, nprobe)])
        # One key: safetensors writes several in random order.
        write_atomically(path, safetensors.numpy.save(tensors, metadata={"distilhash": header}))

    @classmethod
    def load(cls, path: str | Path, ids: NDArray[np.int64], codes_BP: Bytes) -> IvfLists | None:
        """The saved lists of exactly these ids and codes; None where the file is missing, damaged or of others."""
        try:
            with safetensors.safe_open(path, framework="np") as handle:
                header = (handle.metadata() or {}).get("distilhash")
                centroids, list_of, nprobe = (handle.get_tensor(name) for name in ("centroids", "list_of", "nprobe"))
        except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError):  # the last: float8
            return None
        sound = (
            (centroids.dtype, centroids.ndim, list_of.dtype) == (np.uint8, 2, np.int32)
            and centroids.shape[1] == codes_BP.shape[1]
            and list_of.shape == (len(codes_BP),)
            and (nprobe.dtype, nprobe.shape) == (np.int64, (1,))
            and header == json.dumps([FORMAT, _digest(ids, codes_BP, centroids, list_of, nprobe)])
            and bool(((list_of >= 0) & (list_of < len(centroids))).all())
            and 1 <= nprobe[0] <= len(centroids)
        )
        return cls(centroids, list_of, int(nprobe[0])) if sound else None


class IvfSearch:
    """Approximate search: a FAISS index over trained lists with the codes in them."""

    def __init__(self, lists: IvfLists, codes_BP: Bytes) -> None:
        faiss = _faiss()
        bits = 8 * codes_BP.shape[1]
        self._quantizer = faiss.IndexBinaryFlat(bits)  # FAISS does not keep it alive
        self._quantizer.add(lists.centroids)
        self._index = faiss.IndexBinaryIVF(self._quantizer, bits, len(lists.centroids))
        self._index.is_trained = True
        self._index.use_heap = True  # without it FAISS 1.15 finds nothing in its lists
        self.set_nprobe(lists.nprobe)
        for start in range(0, len(codes_BP), _CODES):
            part = np.ascontiguousarray(codes_BP[start : start + _CODES])
            positions = np.arange(start, start + len(part))
            list_of = lists.list_of[start : start + _CODES].astype(np.int64)
            self._index.add_core(len(part), *map(faiss.swig_ptr, (part, positions, list_of)))

    def set_nprobe(self, nprobe: int) -> None:
        """Set how many lists a query scans."""
        self._index.nprobe = min(nprobe, self._index.nlist)

    def nearest(self, queries_QP: Bytes, top: int) -> tuple[Positions, Distances]:
        """Approximate top-k, in the order and form of the function nearest()."""
        distances, positions = self._index.search(queries_QP, top)
        missing = positions < 0
        keys = np.where(missing, np.iinfo(np.int64).max, (distances.astype(np.int64) << 40) | positions)
        order = np.argsort(keys, axis=1)
        distances[missing] = -1
        return (
            cast(Positions, np.take_along_axis(positions, order, axis=1)),
            np.take_along_axis(distances, order, axis=1).astype(np.int32),
        )


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()
