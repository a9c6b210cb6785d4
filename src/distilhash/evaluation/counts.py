"""How many images, and how many relevant ones, lie at each Hamming distance from a query: what the metrics are made of.

The counts are taken a query at a time, so memory grows with the database and never with queries x database. NumPy only,
unless much is counted (``compiled``).

Shapes: Q queries, B database images, K bits, C classes, W words of 64 bits, L words of labels, T = K + 1 distances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilhash.codes import distance_dtype, packed_pair, to_words
from distilhash.errors import DistilhashError
from distilhash.evaluation.compiled import kernel

Integers = NDArray[np.int64]

BLOCK = 1024  # queries whose counts are held at once


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Checked arrays, in the form in which they are counted."""

    query_words: NDArray[np.uint64]  # (Q, W)
    database_words: NDArray[np.uint64]  # (W, B): a column of words is read in one run
    num_bits: int
    query_labels: NDArray[np.uint64]  # (Q, L): a class, or words of label bits
    database_labels: NDArray[np.uint64]  # (L, B)
    classes: bool  # the labels are classes: relevant is what is equal, and not what shares a bit
    relevant: Callable[[int], NDArray[np.intp]]  # query -> its relevant database images, in ascending order

    @classmethod
    def checked(
        cls,
        query_codes: ArrayLike,
        database_codes: ArrayLike,
        query_labels: ArrayLike,
        database_labels: ArrayLike,
        num_bits: int | None,
    ) -> Retrieval:
        """The arrays as average_precision takes them. Raises DistilhashError for arrays that do not fit."""
        query, database, num_bits = packed_pair(query_codes, database_codes, num_bits)
        labels = [np.asarray(query_labels), np.asarray(database_labels)]
        for name, packed, label in zip(("query", "database"), (query, database), labels, strict=True):
            if not len(packed):
                raise DistilhashError(f"there are no {name} codes", fix="a metric needs at least one")
            if label.ndim == 0 or len(label) != len(packed):
                raise DistilhashError(
                    f"{name}_labels must have one row a code", f"shape {label.shape} for {len(packed)} codes"
                )
        words_WB = np.ascontiguousarray(to_words(database).T)
        return cls(to_words(query), words_WB, num_bits, *_relevance(*labels))

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.query_words)

    @property
    def num_database(self) -> int:
        """B."""
        return int(self.database_words.shape[1])

    def rankings(self) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
        """For each query the distances (B,), in a buffer that the next query overwrites, and its relevant images."""
        differing_B = np.empty(self.num_database, np.uint64)
        bits_B = np.empty(self.num_database, np.uint8)
        distance_B = np.empty(self.num_database, distance_dtype(self.num_bits))
        for query, words in enumerate(self.query_words):
            np.bitwise_count(np.bitwise_xor(self.database_words[0], words[0], out=differing_B), out=distance_B)
            for word, column_B in zip(words[1:], self.database_words[1:], strict=True):
                np.bitwise_count(np.bitwise_xor(column_B, word, out=differing_B), out=bits_B)
                distance_B += bits_B
            yield distance_B, self.relevant(query)

    def counts(self) -> Iterator[tuple[Integers, Integers]]:
        """For each block of queries, (Q, T) database images and relevant ones at each distance."""
        distances = self.num_bits + 1
        loop = kernel(self.num_queries * self.num_database)
        if loop:
            for start in range(0, self.num_queries, BLOCK):
                block = slice(start, start + BLOCK)
                counted = np.zeros((2, len(self.query_words[block]), distances), np.int64)
                loop(
                    self.query_words[block], self.database_words, self.query_labels[block], self.database_labels,
                    self.classes, *counted,
                )  # fmt: skip
                yield counted[0], counted[1]
            return
        items: list[Integers] = []
        hits: list[Integers] = []
        index_B = np.empty(self.num_database, np.intp)
        for query, (distance_B, relevant) in enumerate(self.rankings(), start=1):
            items.append(_histogram(distance_B, distances, index_B))
            hits.append(_histogram(distance_B[relevant], distances, index_B))
            if len(items) == BLOCK or query == self.num_queries:
                yield np.array(items), np.array(hits)
                items, hits = [], []


def _histogram(distance_n: NDArray[Any], bins: int, index_B: NDArray[np.intp]) -> Integers:
    """(bins,) how often each distance occurs; ``index_B`` is a buffer at least as long as the distances.

    The time of bincount goes by the number of entries, so where there are many, each entry is a pair of distances.
    """
    if distance_n.dtype != np.uint8 or len(distance_n) < 4 * bins**2:
        return np.bincount(distance_n, minlength=bins)
    paired = len(distance_n) // 2 * 2
    pairs = distance_n[:paired].view(np.uint16)  # a + 256 b, in either order: both are counted alike
    index = index_B[: len(pairs)]
    index[:] = pairs - (pairs >> 8) * np.uint16(256 - bins)  # a + bins * b
    counts = np.bincount(index, minlength=bins**2).reshape(bins, bins)
    found: Integers = counts.sum(axis=0) + counts.sum(axis=1)
    found[distance_n[paired:]] += 1
    return found


def _relevance(
    query_labels: NDArray[Any], database_labels: NDArray[Any]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], bool, Callable[[int], NDArray[np.intp]]]:
    """The last four fields of a Retrieval."""
    both = (query_labels, database_labels)
    if all(labels.ndim == 1 and labels.dtype.kind in "iu" for labels in both):
        order = np.argsort(database_labels, kind="stable")
        start_Q = np.searchsorted(database_labels, query_labels, side="left", sorter=order)
        stop_Q = np.searchsorted(database_labels, query_labels, side="right", sorter=order)
        query_Q, database_B = (labels.astype(np.int64).view(np.uint64) for labels in both)
        return query_Q[:, None], database_B[None], True, lambda query: order[start_Q[query] : stop_Q[query]]
    if any(labels.ndim != 2 or not np.isin(labels, (0, 1)).all() for labels in both):
        raise DistilhashError(
            "labels must be (N,) integer classes, or (N, C) of 0/1, the same for queries and database",
            f"{query_labels.dtype} {query_labels.shape} and {database_labels.dtype} {database_labels.shape}",
        )
    if query_labels.shape[1] != database_labels.shape[1]:
        raise DistilhashError(
            "query and database labels must have the same classes",
            f"{query_labels.shape[1]} and {database_labels.shape[1]} columns",
        )
    query_QL, database_BL = (to_words(np.packbits(labels != 0, axis=1)) for labels in both)
    database_LB = np.ascontiguousarray(database_BL.T)

    def sharing_a_class(query: int) -> NDArray[np.intp]:
        shared_B = np.zeros(len(database_labels), bool)
        for word, column_B in zip(query_QL[query], database_LB, strict=True):
            shared_B |= (column_B & word) != 0
        return np.flatnonzero(shared_B)

    return query_QL, database_LB, False, sharing_a_class
