"""Retrieval metrics of binary codes: average precision, and precision and recall by rank and by Hamming radius.

Codes of K bits give K + 1 distances, so a ranking of a large database is mostly ties, and a metric is a number only
once it says how ties are broken. Here ``ties="expected"`` is the exact expectation over all orders of the images
within each distance, in closed form (distilhash.evaluation.ties; nothing is drawn at random), and ``ties="stable"``
is the order of the database (a stable sort by distance). The published evaluation (satoru2001/CUKDFIR @ d9a60ee) sorts
unstably, which is neither; where no two images tie, all three agree.

All but the stable metrics are functions of counts alone: for each query and distance, the number of database images
and of relevant ones (distilhash.evaluation.counts).

An image is relevant to a query of its own class, or, with labels of several classes, to one that shares a class.

Shapes: Q queries, B database images, K bits, C classes, T = K + 1 distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilhash.errors import DistilhashError, unknown_name
from distilhash.evaluation.counts import Retrieval
from distilhash.evaluation.ties import expected_average_precision

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TIES = ("expected", "stable")
DENOMINATORS = ("found", "relevant")


class RadiusCurve(NamedTuple):
    """Means over queries of what the ball of each Hamming radius retrieves."""

    radius: Integers  # (T,) 0..K, bits
    precision: Floats  # (T,); a query whose ball is empty counts 0
    recall: Floats  # (T,); a query without any relevant image counts 0


class RankCurve(NamedTuple):
    """Means over queries of what the first images of the ranking hold."""

    rank: Integers  # (R,) images retrieved
    precision: Floats  # (R,)
    recall: Floats  # (R,); a query without any relevant image counts 0


def mean_average_precision(
    query_codes: ArrayLike,
    database_codes: ArrayLike,
    query_labels: ArrayLike,
    database_labels: ArrayLike,
    at: int | None = None,
    ties: str = "expected",
    *,
    num_bits: int | None = None,
    denominator: str = "found",
) -> float:
    """Mean over the queries of average_precision, which see; a query without any relevant image counts 0."""
    arrays = (query_codes, database_codes, query_labels, database_labels)
    return float(average_precision(*arrays, at, ties, num_bits=num_bits, denominator=denominator).mean())


def average_precision(
    query_codes: ArrayLike,
    database_codes: ArrayLike,
    query_labels: ArrayLike,
    database_labels: ArrayLike,
    at: int | None = None,
    ties: str = "expected",
    *,
    num_bits: int | None = None,
    denominator: str = "found",
) -> Floats:
    """(Q,) average precision of each query: the mean of the precisions at the ranks of relevant images.

    Codes: (N, K) of -1/+1, or packed uint8 with ``num_bits``. Labels: (N,) integer classes, or (N, C) of 0/1.
    ``at``: only the first ``at`` ranks count; None: all. ``denominator``: what the sum of precisions is divided by;
    "found": the relevant images within the cut (the published convention), "relevant": min(at, all relevant images).
    ``ties``: "expected" or "stable", see the module. Under "expected" with "found" the value is the expectation of
    the ratio, not the ratio of expectations. 0 where nothing relevant is found; the published code, too, counts a
    query without any relevant image as 0. Raises DistilhashError for arrays that do not fit, and unknown names.
    """
    _check_name("ties", ties, TIES)
    _check_name("denominator", denominator, DENOMINATORS)
    if at is not None and (not isinstance(at, int | np.integer) or at < 1):
        raise DistilhashError("at= is the number of ranks that count, at least 1", at, "leave it out for all ranks")
    retrieval = Retrieval.checked(query_codes, database_codes, query_labels, database_labels, num_bits)
    depth = retrieval.num_database if at is None else min(at, retrieval.num_database)
    if ties == "expected":
        return np.concatenate(
            [expected_average_precision(*counts, depth, denominator) for counts in retrieval.counts()]
        )
    scores = np.zeros(retrieval.num_queries)
    for query, (distance_B, relevant) in enumerate(retrieval.rankings()):
        ranks = _stable_ranks(distance_B, relevant)
        found = int(np.searchsorted(ranks, depth, side="right"))
        if found:
            total = np.sum(np.arange(1, found + 1) / ranks[:found])
            scores[query] = total / (found if denominator == "found" else min(depth, len(ranks)))
    return scores


def relevant_share(query_labels: ArrayLike, database_labels: ArrayLike) -> float:
    """Mean share of the database that is relevant to a query: what a random ranking scores, short of the first ranks.

    Labels as in average_precision. mAP@5000 of a random ranking lies some thousandths above.
    """
    query, database = np.asarray(query_labels), np.asarray(database_labels)
    blank_Q1, blank_B1 = (np.zeros((len(np.atleast_1d(labels)), 1), np.uint8) for labels in (query, database))
    retrieval = Retrieval.checked(blank_Q1, blank_B1, query, database, num_bits=1)
    found = sum(len(retrieval.relevant(query)) for query in range(retrieval.num_queries))
    return found / (retrieval.num_queries * retrieval.num_database)


def precision_recall(
    query_codes: ArrayLike,
    database_codes: ArrayLike,
    query_labels: ArrayLike,
    database_labels: ArrayLike,
    num_bits: int | None = None,
) -> RadiusCurve:
    """Precision and recall of all images within each Hamming radius 0..K, averaged over the queries.

    No ties to break: a ball holds a distance whole. A query whose ball is empty counts as precision 0, as is usual in
    the hashing literature, and one without any relevant image as recall 0. Arrays and errors as in average_precision.
    """
    retrieval = Retrieval.checked(query_codes, database_codes, query_labels, database_labels, num_bits)
    precision = np.zeros(retrieval.num_bits + 1)
    recall = np.zeros(retrieval.num_bits + 1)
    for items_QT, relevant_QT in retrieval.counts():
        hits_QT = relevant_QT.cumsum(axis=1)
        precision += (hits_QT / np.maximum(items_QT.cumsum(axis=1), 1)).sum(axis=0)
        recall += (hits_QT / np.maximum(hits_QT[:, -1:], 1)).sum(axis=0)
    radius = np.arange(retrieval.num_bits + 1)
    return RadiusCurve(radius, precision / retrieval.num_queries, recall / retrieval.num_queries)


def precision_at_radius(
    query_codes: ArrayLike,
    database_codes: ArrayLike,
    query_labels: ArrayLike,
    database_labels: ArrayLike,
    radius: int = 2,
    *,
    num_bits: int | None = None,
) -> float:
    """Mean precision within a Hamming radius, in bits; a query whose ball is empty counts 0."""
    curve = precision_recall(query_codes, database_codes, query_labels, database_labels, num_bits)
    if not 0 <= radius < len(curve.radius):
        raise DistilhashError(
            "a Hamming radius lies between 0 and the number of bits", radius, f"0 to {curve.radius[-1]}"
        )
    return float(curve.precision[radius])


def precision_at(
    query_codes: ArrayLike,
    database_codes: ArrayLike,
    query_labels: ArrayLike,
    database_labels: ArrayLike,
    ranks: ArrayLike,
    *,
    ties: str = "expected",
    num_bits: int | None = None,
) -> RankCurve:
    """Precision and recall of the first N images of the ranking, for each N in ``ranks``, averaged over the queries.

    ``ranks``: (R,) integers from 1 to B. ``ties`` and the arrays as in average_precision.
    """
    _check_name("ties", ties, TIES)
    retrieval = Retrieval.checked(query_codes, database_codes, query_labels, database_labels, num_bits)
    rank_R = np.asarray(ranks)
    if rank_R.ndim != 1 or rank_R.dtype.kind not in "iu" or not len(rank_R):
        raise DistilhashError("ranks must be a list of integers", f"{rank_R.dtype} {rank_R.shape}")
    if rank_R.min() < 1 or rank_R.max() > retrieval.num_database:
        raise DistilhashError(
            "ranks must lie between 1 and the size of the database",
            f"{rank_R.min()} to {rank_R.max()} of {retrieval.num_database}",
        )
    hits, recall = np.zeros(len(rank_R)), np.zeros(len(rank_R))
    for hits_R, num_relevant in _hits_at(retrieval, rank_R, ties):
        hits += hits_R
        recall += hits_R / max(num_relevant, 1)
    return RankCurve(rank_R.astype(np.int64), hits / rank_R / retrieval.num_queries, recall / retrieval.num_queries)


def _check_name(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise unknown_name(kind, name, known)


def _stable_ranks(distance_B: NDArray[Any], relevant: NDArray[np.intp]) -> Integers:
    """Ranks (from 1, ascending) of the relevant images where ties keep the order of the database."""
    is_relevant_B = np.zeros(len(distance_B), bool)
    is_relevant_B[relevant] = True
    return np.flatnonzero(is_relevant_B[np.argsort(distance_B, kind="stable")]) + 1


def _hits_at(retrieval: Retrieval, rank_R: Integers, ties: str) -> Iterator[tuple[NDArray[Any], int]]:
    """For each query, (R,) relevant images within each rank, and all that there are."""
    if ties == "stable":
        for distance_B, relevant in retrieval.rankings():
            yield np.searchsorted(_stable_ranks(distance_B, relevant), rank_R, side="right"), len(relevant)
        return
    for items_QT, relevant_QT in retrieval.counts():
        for items_T, hits_T in zip(items_QT, relevant_QT, strict=True):
            held = items_T > 0
            # Within a tie group each place is relevant with the same probability: the expectation is linear in rank.
            knots, values = np.append(0, items_T[held].cumsum()), np.append(0, hits_T[held].cumsum())
            yield np.interp(rank_R, knots, values), int(values[-1])
