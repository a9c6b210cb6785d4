"""Nearest codes by Hamming distance: exact by FAISS or NumPy, approximate by FAISS's inverted file (IVF).

FAISS's counting search keeps an earlier code before a later one at the same distance. It does not document this, so a
small case is tried first; where it does not hold, NumPy is used.

Shapes: B database codes, Q queries, K bits, P = ceil(K / 8) bytes, L lists.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from distilhash.codes import Bytes, hamming
from distilhash.files import write_atomically

Ids = NDArray[np.int64]
Distances = NDArray[np.int32]

EXACT_UP_TO = 4_000_000  # codes; beyond, engine "auto" tries IVF
LISTS_PER_MILLION = 1_024
POINTS_PER_LIST = 64  # for k-means
MIN_NPROBE = 16
MAX_PROBED_SHARE = 1 / 8  # of all lists: beyond, exact search is as fast
MIN_RECALL, SAMPLE, SAMPLE_TOP = 0.999, 256, 11  # top-k of a sampled code: itself and ten others
FORMAT = "distilhash.ivf/1"
_QUERIES, _BUCKETS, _AT_ONCE = 1024, 1 << 23, 8  # per block of work: bounds memory
_FEW = 1 << 15  # comparisons: NumPy has made them before FAISS is imported
_BLOCK = 1 << 13  # codes that are compared with all others while they stay in the cache


def nearest(codes_BP: Bytes, queries_QP: Bytes, top: int) -> tuple[Ids, Distances]:
    """Exact top-k by (distance, position): both (Q, top), distances in bits, -1 where there are fewer codes."""
    positions = np.full((len(queries_QP), top), -1, np.int64)
    distances = np.full((len(queries_QP), top), -1, np.int32)
    count = min(top, len(codes_BP))
    if count == 0:
        return positions, distances
    buckets = count * (8 * codes_BP.shape[1] + 1)  # per query: FAISS allocates so many 8-byte slots
    few = len(codes_BP) * len(queries_QP) <= _FEW
    scan = _faiss_nearest if not few and buckets <= _BUCKETS and keeps_order() else numpy_nearest
    block = max(1, min(_QUERIES, _BUCKETS // buckets))
    for start in range(0, len(queries_QP), block):
        part = slice(start, start + block)
        positions[part, :count], distances[part, :count] = scan(codes_BP, queries_QP[part], count)
    return positions, distances


def numpy_nearest(codes_BP: Bytes, queries_QP: Bytes, count: int) -> tuple[Ids, Distances]:
    """The same as nearest() with NumPy alone, for ``count`` <= B."""
    positions = np.empty((len(queries_QP), count), np.int64)
    distances = np.empty((len(queries_QP), count), np.int32)
    for row, query in enumerate(queries_QP):
        away = hamming(query[None], codes_BP)[0]
        positions[row] = np.argsort(away, kind="stable")[:count]
        distances[row] = away[positions[row]]
    return positions, distances


def within(codes_BP: Bytes, queries_QP: Bytes, radius: int) -> list[tuple[Ids, Distances]]:
    """For each query, positions and distances of all codes at most ``radius`` bits away, by (distance, position)."""
    found: list[tuple[Ids, Distances]] = []
    for start in range(0, len(queries_QP), _AT_ONCE):
        for distances in hamming(queries_QP[start : start + _AT_ONCE], codes_BP):
            positions = np.flatnonzero(distances <= radius)
            positions = positions[np.argsort(distances[positions], kind="stable")]
            found.append((positions, distances[positions].astype(np.int32)))
    return found


def have_near(codes_BP: Bytes, radius: int) -> NDArray[np.bool_]:
    """Whether another code lies within ``radius`` bits of each code (B,); exact, in blocks that fit the caches."""
    unique_UP, inverse_B, counts_U = np.unique(codes_BP, axis=0, return_inverse=True, return_counts=True)
    near_U = counts_U > 1
    for start in range(0, len(unique_UP) if radius else 0, _BLOCK):
        block = _faiss().IndexBinaryFlat(8 * codes_BP.shape[1])
        block.add(unique_UP[start : start + _BLOCK])
        for first in range(0, min(start + _BLOCK, len(unique_UP)), 2 * _QUERIES):  # later ones meet in later blocks
            limits, _, found = block.range_search(unique_UP[first : first + 2 * _QUERIES], radius + 1)
            queries = np.repeat(np.arange(first, first + len(limits) - 1), np.diff(limits.astype(np.int64)))
            pairs = queries != found + start
            near_U[queries[pairs]] = near_U[found[pairs] + start] = True
    return near_U[inverse_B.reshape(-1)]


def _faiss_nearest(codes_BP: Bytes, queries_QP: Bytes, count: int) -> tuple[Ids, Distances]:
    distances, positions = _faiss().knn_hamming(queries_QP, codes_BP, count, variant="mc")
    return positions, distances


def _faiss() -> Any:
    import faiss

    return faiss


@functools.cache
def keeps_order() -> bool:
    """Whether FAISS returns ties in the order of the codes."""
    codes = np.random.default_rng(0).integers(0, 4, (300, 8), dtype=np.uint8)  # many ties
    return bool(np.equal(_faiss_nearest(codes, codes[:8], 20), numpy_nearest(codes, codes[:8], 20)).all())


def lists_for(count: int) -> int:
    """Number of IVF lists for ``count`` codes."""
    return max(1, count * LISTS_PER_MILLION // 1_000_000)


class Ivf:
    """Approximate search: every code lies in the list of its nearest centroid, and a query scans the nearest lists.

    Centroids are found by k-means in Hamming space. How many lists a query scans (nprobe) is calibrated against exact
    search on a sample; where it must be so large that nothing is gained, engine "auto" stays exact. FAISS's own files
    are no format for untrusted input, so only centroids, nprobe and the list of each code are saved.
    """

    def __init__(self, num_bytes: int, num_lists: int) -> None:
        faiss = _faiss()
        self._centroids = faiss.IndexBinaryFlat(8 * num_bytes)  # FAISS does not keep it alive
        self._lists = faiss.IndexBinaryIVF(self._centroids, 8 * num_bytes, num_lists)
        self._lists.use_heap = True  # without it FAISS 1.15 finds nothing in its lists

    @classmethod
    def train(cls, ids_B: Ids, codes_BP: Bytes) -> Ivf:
        """The lists of these codes, with nprobe doubled from MIN_NPROBE until recall is MIN_RECALL."""
        ivf = cls(codes_BP.shape[1], lists_for(len(codes_BP)))
        parameters = ivf._lists.cp
        parameters.max_points_per_centroid, parameters.seed = POINTS_PER_LIST, 0
        parameters.min_points_per_centroid = 1  # FAISS warns on stderr below its default
        ivf._lists.train(codes_BP)
        ivf.add(ids_B, codes_BP)
        chosen = np.linspace(0, len(codes_BP) - 1, min(SAMPLE, len(codes_BP))).astype(np.int64)
        sample, top = codes_BP[chosen], min(SAMPLE_TOP, len(codes_BP))
        furthest = nearest(codes_BP, sample, top)[1][:, -1:]
        ivf.nprobe = MIN_NPROBE
        while ivf.nprobe < ivf.num_lists:
            away = ivf.nearest(sample, top)[1]
            # By distance and not by id: which one of many copies is found does not matter.
            if ((away >= 0) & (away <= furthest)).mean() >= MIN_RECALL:
                break
            ivf.nprobe *= 2
        return ivf

    @property
    def num_lists(self) -> int:
        """L."""
        return int(self._lists.nlist)

    @property
    def nprobe(self) -> int:
        """How many lists a query scans."""
        return int(self._lists.nprobe)

    @nprobe.setter
    def nprobe(self, nprobe: int) -> None:
        self._lists.nprobe = min(nprobe, self.num_lists)

    @property
    def faster_than_exact(self) -> bool:
        """Whether nprobe is small enough that scanning everything would take longer."""
        return self.nprobe <= MAX_PROBED_SHARE * self.num_lists

    def enough_for(self, count: int) -> bool:
        """Whether there are still enough lists for ``count`` codes."""
        return 4 * self.num_lists >= lists_for(count)

    def add(self, ids_n: Ids, codes_nP: Bytes) -> None:
        """Put new codes into their lists."""
        self._lists.add_with_ids(codes_nP, ids_n)

    def remove(self, ids_n: Ids) -> None:
        """Take codes out of their lists."""
        self._lists.remove_ids(ids_n)

    def nearest(self, queries_QP: Bytes, top: int) -> tuple[Ids, Distances]:
        """Approximate top-k: ids and distances (Q, top), by (distance, id), -1 where fewer are found."""
        distances, ids = self._lists.search(queries_QP, top)
        distances[ids < 0] = np.iinfo(np.int32).max
        order = np.lexsort((ids, distances), axis=1)
        ids, distances = np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
        distances[ids < 0] = -1
        return ids, distances

    def save(self, path: str | Path, ids_B: Ids, codes_BP: Bytes) -> None:
        """Write the lists as one safetensors file, bound to these ids and codes, which are those in the lists."""
        faiss = _faiss()
        sizes = [self._lists.invlists.list_size(number) for number in range(self.num_lists)]
        held = [
            faiss.rev_swig_ptr(self._lists.invlists.get_ids(number), size) for number, size in enumerate(sizes) if size
        ]
        list_of = np.repeat(np.arange(self.num_lists, dtype=np.int32), sizes)[np.argsort(np.concatenate(held))]
        centroids = faiss.vector_to_array(self._centroids.xb).reshape(-1, codes_BP.shape[1])
        tensors = {"centroids": centroids, "list_of": list_of, "nprobe": np.array([self.nprobe], np.int64)}
        header = json.dumps([FORMAT, _digest(ids_B, codes_BP, *tensors.values())])
        # One key: safetensors writes several in random order.
        write_atomically(path, safetensors.numpy.save(tensors, metadata={"distilhash": header}))

    @classmethod
    def load(cls, path: str | Path, ids_B: Ids, codes_BP: Bytes) -> Ivf | None:
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
            and header == json.dumps([FORMAT, _digest(ids_B, codes_BP, centroids, list_of, nprobe)])
            and bool(((list_of >= 0) & (list_of < len(centroids))).all())
            and 1 <= nprobe[0] <= len(centroids)
        )
        if not sound:
            return None
        ivf = cls(centroids.shape[1], len(centroids))
        ivf._centroids.add(centroids)
        ivf._lists.is_trained, ivf.nprobe = True, int(nprobe[0])
        arrays = codes_BP, ids_B, list_of.astype(np.int64)  # alive as long as FAISS reads them
        ivf._lists.add_core(len(codes_BP), *map(_faiss().swig_ptr, arrays))
        return ivf


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
