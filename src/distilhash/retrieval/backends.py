"""Nearest codes by Hamming distance: exact by FAISS or NumPy, and approximate by cells for many millions of codes.

Exact: FAISS scans every code and counts distances (Hamming distances are few, so a query needs one bucket a distance
and no heap). It meets the codes in their order and never drops an earlier one for a later one as far away, so with the
codes in the order of their ids the result is the first by (distance, id), also among ties at the last place. That is
no promise of FAISS: it is tried once on a small case, and NumPy takes over where it does not hold, or where FAISS is
not installed.

Approximate: the codes are sorted into cells by their nearest centre (binary IVF: k-means in the space of the codes),
and a query looks into the nearest cells only. How many that must be depends on the codes: it is tried on a sample of
them against exact search, and where so many are needed that nothing is gained, "auto" stays exact. Centres, that number
and the cell of each code are all that is kept; FAISS's lists are filled from them. FAISS's own files are never read:
they are no format for what may come from anywhere.

Shapes: B codes of the database, Q queries, K bits, P = ceil(K / 8) bytes, L cells.
"""

from __future__ import annotations

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

from distilhash.codes import Bytes, hamming, to_words
from distilhash.errors import DistilhashError
from distilhash.files import write_atomically

Positions = NDArray[np.int64]
Distances = NDArray[np.int32]

EXACT_UP_TO = 4_000_000  # codes; beyond, engine "auto" takes cells
CELLS_A_MILLION, LEAST_PROBED = 1_024, 16
LEAST_RECALL, SAMPLED, SAMPLED_TOP = 0.999, 256, 11  # of a sample's nearest: itself and ten others
WORTH = 1 / 8  # of all cells: where more must be probed, exact search is as fast
TRAINED_ON = 64  # codes a cell
FORMAT = "distilhash.cells/2"
_QUERIES, _CODES, _BUCKETS = 1024, 1 << 20, 1 << 23  # of one block of work: what is in memory at once


def nearest(codes_BP: Bytes, queries_QP: Bytes, top: int) -> tuple[Positions, Distances]:
    """Positions (Q, top) and distances of the nearest codes, by (distance, position); -1 where there are fewer."""
    positions = np.full((len(queries_QP), top), -1, np.int64)
    distances = np.full((len(queries_QP), top), -1, np.int32)
    count = min(top, len(codes_BP))
    if count == 0:
        return positions, distances
    buckets = count * (8 * codes_BP.shape[1] + 1)  # a query's, of 8 bytes: FAISS keeps so many hits a distance
    scan = _faiss_nearest if buckets <= _BUCKETS and keeps_order() else numpy_nearest
    block = max(1, min(_QUERIES, _BUCKETS // buckets))
    for start in range(0, len(queries_QP), block):
        part = slice(start, start + block)
        positions[part, :count], distances[part, :count] = scan(codes_BP, queries_QP[part], count)
    return positions, distances


def numpy_nearest(codes_BP: Bytes, queries_QP: Bytes, count: int) -> tuple[Positions, Distances]:
    """The same by NumPy, for ``count`` up to B."""
    positions = np.empty((len(queries_QP), count), np.int64)
    distances = np.empty((len(queries_QP), count), np.int32)
    for row, query in enumerate(queries_QP):
        found = hamming(query[None], codes_BP)[0]
        furthest = np.partition(found, count - 1)[count - 1]
        closer = np.flatnonzero(found < furthest)
        closer = closer[np.argsort(found[closer], kind="stable")]
        # Of those at the last distance the first ones.
        positions[row] = np.append(closer, np.flatnonzero(found == furthest)[: count - len(closer)])
        distances[row] = found[positions[row]]
    return positions, distances


def within(codes_BP: Bytes, queries_QP: Bytes, radius: int) -> list[tuple[Positions, Distances]]:
    """For each query the positions and distances of all codes at most so far away, by (distance, position)."""
    found: list[tuple[Positions, Distances]] = []
    blocks = [to_words(codes_BP[start : start + _CODES]) for start in range(0, len(codes_BP), _CODES)]
    for query in to_words(queries_QP):
        positions, distances = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for number, block in enumerate(blocks):
            away = np.bitwise_count(block ^ query).sum(axis=1, dtype=np.int32)
            hits = np.flatnonzero(away <= radius)
            positions.append(hits + number * _CODES)
            distances.append(away[hits])
        order = np.argsort(np.concatenate(distances), kind="stable")
        found.append((np.concatenate(positions)[order], np.concatenate(distances)[order]))
    return found


def _faiss_nearest(codes_BP: Bytes, queries_QP: Bytes, count: int) -> tuple[Positions, Distances]:
    distances, positions = _faiss().knn_hamming(queries_QP, codes_BP, count, variant="mc")
    return positions, distances


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def has_faiss() -> bool:
    """Whether FAISS is installed."""
    return _faiss() is not None


@functools.cache
def keeps_order() -> bool:
    """Whether FAISS is there and gives ties in the order of the codes."""
    if _faiss() is None:
        return False
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 4, (300, 8), dtype=np.uint8)  # many ties
    found, expected = _faiss_nearest(codes, codes[:8], 20), numpy_nearest(codes, codes[:8], 20)
    return np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


@dataclass(eq=False)
class Cells:
    """Codes sorted into cells: centres (L, P), the cell (B,) of each code, and how many cells a query looks into."""

    centres: Bytes
    cell_of: NDArray[np.int32]
    probed: int

    @classmethod
    def train(cls, codes_BP: Bytes) -> Cells:
        """Centres for these codes, and the cell of each. Errors: DistilhashError without FAISS."""
        faiss = needed_faiss()
        bits, count = 8 * codes_BP.shape[1], wanted_cells(len(codes_BP))
        quantizer = faiss.IndexBinaryFlat(bits)
        index = faiss.IndexBinaryIVF(quantizer, bits, count)
        index.cp.max_points_per_centroid, index.cp.seed = TRAINED_ON, 0
        index.cp.min_points_per_centroid = 1  # below its usual number FAISS warns on stderr
        index.train(codes_BP)
        centres = faiss.vector_to_array(quantizer.xb).reshape(-1, codes_BP.shape[1]).copy()
        cells = cls(centres, np.empty(0, np.int32), LEAST_PROBED)
        cells.cell_of = cells.assign(codes_BP)
        cells.probed = cells._enough(codes_BP)
        return cells

    @property
    def pay(self) -> bool:
        """Whether so few cells are enough that looking everywhere would take longer."""
        return self.probed <= WORTH * len(self.centres)

    def _enough(self, codes_BP: Bytes) -> int:
        """The fewest cells, doubled from LEAST_PROBED, in which a sample of the codes finds its nearest ones."""
        chosen = np.linspace(0, len(codes_BP) - 1, min(SAMPLED, len(codes_BP))).astype(np.int64)
        sample, top = codes_BP[chosen], min(SAMPLED_TOP, len(codes_BP))
        furthest = nearest(codes_BP, sample, top)[1][:, -1:]
        search, probed = self.filled(codes_BP), LEAST_PROBED
        while probed < len(self.centres):
            search.probe(probed)
            away = search.nearest(sample, top)[1]
            # A code as near as the last of the exact ones is as good: which of many copies is found does not matter.
            if ((away >= 0) & (away <= furthest)).mean() >= LEAST_RECALL:
                break
            probed *= 2
        return min(probed, len(self.centres))

    def assign(self, codes_nP: Bytes) -> NDArray[np.int32]:
        """The cell (n,) of each code: its nearest centre, the first one of several."""
        return nearest(self.centres, codes_nP, 1)[0][:, 0].astype(np.int32)

    def fits(self, codes_BP: Bytes) -> bool:
        """Whether there are still enough cells for so many codes."""
        return 4 * len(self.centres) >= wanted_cells(len(codes_BP))

    def save(self, path: Path, truth: str) -> None:
        """Write the cells as a file that is bound to the codes they were made of."""
        probed = np.array([self.probed], np.int64)
        tensors = {"centres": self.centres, "cell_of": self.cell_of, "probed": probed}
        header = json.dumps([FORMAT, truth, _digest(self.centres, self.cell_of, probed)])
        # One entry: safetensors writes several in random order.
        write_atomically(path, safetensors.numpy.save(tensors, metadata={"distilhash": header}))

    @classmethod
    def load(cls, path: Path, truth: str, codes_BP: Bytes) -> Cells | None:
        """The cells of exactly these codes; None where there is no such file, or it is of other codes, or damaged."""
        try:
            with safetensors.safe_open(path, framework="np") as handle:
                header = (handle.metadata() or {}).get("distilhash")
                centres, cell_of, probed = (handle.get_tensor(name) for name in ("centres", "cell_of", "probed"))
        except (OSError, safetensors.SafetensorError, ValueError, TypeError):
            return None
        sound = (
            (centres.dtype, centres.ndim, cell_of.dtype) == (np.uint8, 2, np.int32)
            and centres.shape[1] == codes_BP.shape[1]
            and cell_of.shape == (len(codes_BP),)
            and (probed.dtype, probed.shape) == (np.int64, (1,))
            and header == json.dumps([FORMAT, truth, _digest(centres, cell_of, probed)])
            and bool(((cell_of >= 0) & (cell_of < len(centres))).all())
            and 1 <= probed[0] <= len(centres)
        )
        return cls(centres, cell_of, int(probed[0])) if sound else None

    def filled(self, codes_BP: Bytes) -> CellSearch:
        """The cells with their codes in them, ready to be searched."""
        faiss = needed_faiss()
        bits = 8 * codes_BP.shape[1]
        quantizer = faiss.IndexBinaryFlat(bits)
        quantizer.add(self.centres)
        index = faiss.IndexBinaryIVF(quantizer, bits, len(self.centres))
        index.is_trained = True
        for start in range(0, len(codes_BP), _CODES):
            part = np.ascontiguousarray(codes_BP[start : start + _CODES])
            positions = np.arange(start, start + len(part))
            cells = self.cell_of[start : start + _CODES].astype(np.int64)
            index.add_core(len(part), *map(faiss.swig_ptr, (part, positions, cells)))
        index.use_heap = True  # without it FAISS 1.15 finds nothing in its lists
        search = CellSearch(index, quantizer)
        search.probe(self.probed)
        return search


class CellSearch:
    """Cells filled with codes."""

    def __init__(self, index: Any, quantizer: Any) -> None:
        self._index, self._quantizer = index, quantizer  # FAISS does not keep its quantizer alive

    def probe(self, count: int) -> None:
        """How many cells a query looks into from now on."""
        self._index.nprobe = min(count, self._index.nlist)

    def nearest(self, queries_QP: Bytes, top: int) -> tuple[Positions, Distances]:
        """As the function nearest(), of the codes in the cells around each query."""
        distances, positions = self._index.search(queries_QP, top)
        missing = positions < 0
        keys = np.where(missing, np.iinfo(np.int64).max, (distances.astype(np.int64) << 40) | positions)
        order = np.argsort(keys, axis=1)
        distances[missing] = -1
        return (
            cast(Positions, np.take_along_axis(positions, order, axis=1)),
            np.take_along_axis(distances, order, axis=1).astype(np.int32),
        )


def wanted_cells(count: int) -> int:
    """Number of cells for so many codes."""
    return max(1, count * CELLS_A_MILLION // 1_000_000)


def needed_faiss() -> Any:
    """FAISS. Errors: DistilhashError names the extra that brings it."""
    faiss = _faiss()
    if faiss is None:
        raise DistilhashError("approximate search needs FAISS", "no package faiss", "pip install 'distilhash[search]'")
    return faiss


def truth_of(ids: NDArray[np.int64], codes_BP: Bytes) -> str:
    """What cells are bound to: these ids with these codes."""
    return _digest(ids, codes_BP)


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()
