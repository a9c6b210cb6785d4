"""One pass over the database for all retrieval metrics: images and relevant images at each Hamming distance.

Queries are taken in blocks, so memory grows with the database and never with queries x database.

Shapes: Q queries, q queries of a block, B database images, K bits, C classes, W words of 64 bits, T = K + 1 distances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilhash.codes import distance_dtype, packed_pair, to_words
from distilhash.errors import DistilhashError

Integers = NDArray[np.int64]

BLOCK = 256  # queries whose counts are held at once


class Counts(NamedTuple):
    """What the metrics of one block of queries are made of.

    The last two are of the ranking where ties keep the order of the database, cut after each of D ranks.
    """

    items: Integers  # (q, T) database images at each distance
    hits: Integers  # (q, T) relevant ones among them
    stable_hits: Integers  # (q, D) relevant images within each cut
    stable_sums: NDArray[np.float64]  # (q, D) sum of the precisions at the ranks of these


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Checked codes and labels, in the form in which they are counted."""

    query_words: NDArray[np.uint64]  # (Q, W)
    database_words: NDArray[np.uint64]  # (W, B): each row of words is contiguous
    num_bits: int
    relevant: Callable[[int], NDArray[np.intp]]  # query -> indices of its relevant database images
    own: Callable[[int], NDArray[np.intp]] | None = None  # query -> indices of itself, which its ranking leaves out

    @classmethod
    def checked(
        cls, query_codes: ArrayLike, database_codes: ArrayLike, query_labels: ArrayLike, database_labels: ArrayLike,
        num_bits: int | None,
    ) -> Retrieval:  # fmt: skip
        """Check the arguments of metrics.average_precision; DistilhashError where they are empty or do not fit."""
        query, database, num_bits = packed_pair(query_codes, database_codes, num_bits)
        labels = [np.asarray(query_labels), np.asarray(database_labels)]
        for name, packed, label in zip(("query", "database"), (query, database), labels, strict=True):
            if not len(packed):
                raise DistilhashError(f"there are no {name} codes", fix="a metric needs at least one")
            if label.ndim == 0 or len(label) != len(packed):
                given = f"shape {label.shape} for {len(packed)} codes"
                raise DistilhashError(f"{name}_labels must have one row a code", given)
        return cls(to_words(query), np.ascontiguousarray(to_words(database).T), num_bits, relevance(*labels))

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.query_words)

    @property
    def num_database(self) -> int:
        """B."""
        return int(self.database_words.shape[1])

    def blocks(self, stable_cuts: Integers | None = None) -> Iterator[Counts]:
        """Scan the database once for each query and count, one block of queries after the other.

        Args:
            stable_cuts: (D,) ranks at which the stable ranking is cut; it takes a sort of each query's distances, which
                is most of the time, so the default is none.
        """
        bins, cut_D = self.num_bits + 1, np.empty(0, np.int64) if stable_cuts is None else stable_cuts
        size = self.num_database
        buffers = _Buffers(
            np.empty(size, np.uint64), np.empty(size, distance_dtype(self.num_bits)),
            np.empty(size // 2, np.uint16), np.empty(size // 2, np.intp),
        )  # fmt: skip
        for start in range(0, self.num_queries, BLOCK):
            block = range(start, min(start + BLOCK, self.num_queries))
            counts = Counts(
                items=np.empty((len(block), bins), np.int64),
                hits=np.empty((len(block), bins), np.int64),
                stable_hits=np.empty((len(block), len(cut_D)), np.int64),
                stable_sums=np.empty((len(block), len(cut_D))),
            )
            for row, query in enumerate(block):
                distance_B = self._distances(self.query_words[query], buffers)
                relevant = self.relevant(query)
                own = np.empty(0, np.intp) if self.own is None else self.own(query)
                counts.items[row] = _histogram(distance_B, bins, buffers)
                if len(own):
                    relevant = np.setdiff1d(relevant, own)
                    counts.items[row] -= np.bincount(distance_B[own], minlength=bins)
                counts.hits[row] = _histogram(distance_B[relevant], bins, buffers)
                if len(cut_D):
                    counts.stable_hits[row], counts.stable_sums[row] = _stable(distance_B, relevant, own, cut_D)
            yield counts

    def _distances(self, words_W: NDArray[np.uint64], buffers: _Buffers) -> NDArray[Any]:
        """(B,) Hamming distances of one query, in a buffer that the next call overwrites."""
        differing_B, distance_B = buffers.differing, buffers.distance
        np.bitwise_count(np.bitwise_xor(self.database_words[0], words_W[0], out=differing_B), out=distance_B)
        for word, column_B in zip(words_W[1:], self.database_words[1:], strict=True):
            distance_B += np.bitwise_count(np.bitwise_xor(column_B, word, out=differing_B))
        return distance_B


class _Buffers(NamedTuple):
    """Memory of one scan, which every query uses again: fresh pages would take as long as the counting."""

    differing: NDArray[np.uint64]  # (B,)
    distance: NDArray[Any]  # (B,)
    pair: NDArray[np.uint16]  # (B // 2,)
    positions: NDArray[np.intp]  # (B // 2,)


def _histogram(distance_n: NDArray[Any], bins: int, buffers: _Buffers) -> Integers:
    """(bins,) how often each distance occurs.

    The time of bincount goes by the number of entries, so where there are many, each entry is a pair of distances.
    """
    if distance_n.dtype != np.uint8 or len(distance_n) < 4 * bins**2:
        return np.bincount(distance_n, minlength=bins)
    paired = len(distance_n) // 2 * 2
    pairs = distance_n[:paired].view(np.uint16)  # a + 256 b, in either order: both are counted alike
    pair, index = buffers.pair[: len(pairs)], buffers.positions[: len(pairs)]
    np.right_shift(pairs, 8, out=pair)
    np.multiply(pair, 256 - bins, out=pair)
    np.subtract(pairs, pair, out=index)  # a + bins * b
    counts = np.bincount(index, minlength=bins**2).reshape(bins, bins)
    found: Integers = counts.sum(axis=0) + counts.sum(axis=1)
    found[distance_n[paired:]] += 1
    return found


def _stable(
    distance_B: NDArray[Any], relevant: NDArray[np.intp], own: NDArray[np.intp], cut_D: Integers
) -> tuple[Integers, NDArray[np.float64]]:
    """One row of the last two of Counts."""
    is_relevant_B = np.zeros(len(distance_B), bool)
    is_relevant_B[relevant] = True
    order = np.argsort(distance_B, kind="stable")
    if len(own):
        is_own_B = np.zeros(len(distance_B), bool)
        is_own_B[own] = True
        order = order[~is_own_B[order]]
    ranks = np.flatnonzero(is_relevant_B[order]) + 1
    sums = np.append(0, np.cumsum(np.arange(1, len(ranks) + 1) / ranks))
    hits_D = np.searchsorted(ranks, cut_D, side="right")
    return hits_D, sums[hits_D]


def relevance(query_labels: NDArray[Any], database_labels: NDArray[Any]) -> Callable[[int], NDArray[np.intp]]:
    """The function from a query to the indices of its relevant images: of its class, or sharing a class with it.

    Raises:
        DistilhashError: the labels are not of one kind, classes or 0/1, or differ in their number of classes.
    """
    both = (query_labels, database_labels)
    if all(labels.ndim == 1 and labels.dtype.kind in "iu" for labels in both):
        order = np.argsort(database_labels, kind="stable")
        start_Q = np.searchsorted(database_labels, query_labels, side="left", sorter=order)
        stop_Q = np.searchsorted(database_labels, query_labels, side="right", sorter=order)
        return lambda query: order[start_Q[query] : stop_Q[query]]
    if any(labels.ndim != 2 or not np.isin(labels, (0, 1)).all() for labels in both):
        raise DistilhashError(
            "labels must be (N,) integer classes, or (N, C) of 0/1, the same for queries and database",
            f"{query_labels.dtype} {query_labels.shape} and {database_labels.dtype} {database_labels.shape}",
        )
    if query_labels.shape[1] != database_labels.shape[1]:
        given = f"{query_labels.shape[1]} and {database_labels.shape[1]} columns"
        raise DistilhashError("query and database labels must have the same classes", given)
    query_QW, database_BW = (to_words(np.packbits(labels != 0, axis=1)) for labels in both)
    database_WB = np.ascontiguousarray(database_BW.T)

    def sharing_a_class(query: int) -> NDArray[np.intp]:
        shared_B = np.zeros(len(database_labels), bool)
        for word, column_B in zip(query_QW[query], database_WB, strict=True):
            shared_B |= (column_B & word) != 0
        return np.flatnonzero(shared_B)

    return sharing_a_class
