"""Retrieval metrics of binary codes: average precision, and precision and recall by rank and by Hamming radius.

Codes of K bits give K + 1 distances, so a ranking of a large database is mostly ties, and a metric is a number only
once it says how ties are broken. Here ``ties="expected"`` is the exact expectation over all orders of the images
within each distance, in closed form (distilhash.evaluation.ties; nothing is drawn at random), and ``ties="stable"``
is the order of the database (a stable sort by distance). The published evaluation (satoru2001/CUKDFIR @ d9a60ee) sorts
unstably, which is neither; where no two images tie, all three agree.

Every function here is one scan of the database for each query (distilhash.evaluation.counts); evaluate_tables takes
all metrics of two code tables from a single one. One file, since each number here is defined by those beside it.

An image is relevant to a query of its own class, or, with labels of several classes, to one that shares a class.

Shapes: Q queries, q queries of a block, B database images, K bits, C classes, T = K + 1 distances, R ranks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilhash.codes import CodeTable
from distilhash.errors import DistilhashError, unknown_name
from distilhash.evaluation.counts import Counts, Retrieval, relevance
from distilhash.evaluation.result import Evaluation
from distilhash.evaluation.ties import expected_average_precision
from distilhash.files import write_json
from distilhash.progress import log

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RANKS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000)  # of the curve of precision at N
SHOWN = 5  # classes that an error names of each side
NAMES = {"ties": ("expected", "stable"), "denominator": ("found", "relevant")}


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
    query_codes: ArrayLike, database_codes: ArrayLike, query_labels: ArrayLike, database_labels: ArrayLike,
    at: int | None = None, ties: str = "expected", *, num_bits: int | None = None, denominator: str = "found",
) -> float:  # fmt: skip
    """Mean of average_precision, whose arguments it takes, over the queries."""
    arrays = (query_codes, database_codes, query_labels, database_labels)
    return float(average_precision(*arrays, at, ties, num_bits=num_bits, denominator=denominator).mean())


def average_precision(
    query_codes: ArrayLike, database_codes: ArrayLike, query_labels: ArrayLike, database_labels: ArrayLike,
    at: int | None = None, ties: str = "expected", *, num_bits: int | None = None, denominator: str = "found",
) -> Floats:  # fmt: skip
    """Average precision of each query: the mean of the precisions at the ranks of relevant images.

    Args:
        query_codes: (Q, K) of -1/+1, or packed uint8.
        database_codes: (B, K), likewise.
        query_labels: (Q,) integer classes, or (Q, C) of 0/1.
        database_labels: (B,) or (B, C), likewise.
        at: ranks that count; None: all.
        ties: "expected" or "stable", see the module. Under "expected" with "found" the value is the expectation of the
            ratio, not the ratio of expectations.
        num_bits: K; needed where both sides are packed.
        denominator: what the sum of precisions is divided by. "found": the relevant images within ``at`` (the
            published convention); "relevant": min(at, all relevant images).

    Returns:
        (Q,) values from 0 to 1; 0 where nothing relevant is found, as in the published code.

    Raises:
        DistilhashError: arrays that do not fit each other, or an unknown option.
    """
    _check_name("ties", ties)
    _check_name("denominator", denominator)
    retrieval = Retrieval.checked(query_codes, database_codes, query_labels, database_labels, num_bits)
    depth = _depth(at, retrieval.num_database)
    if ties == "expected":
        scores = [expected_average_precision(c.items, c.hits, depth, denominator) for c in retrieval.blocks()]
    else:
        scores = [_stable_average_precision(c, 0, depth, denominator) for c in retrieval.blocks(np.array([depth]))]
    return np.concatenate(scores)


def relevant_share(query_labels: ArrayLike, database_labels: ArrayLike) -> float:
    """Mean share of the database that is relevant to a query: about the mAP@all of a random ranking.

    mAP@5000 of a random ranking lies some thousandths above. The labels are those of average_precision.
    """
    codes = [np.zeros((np.atleast_1d(labels).shape[0], 1), np.uint8) for labels in (query_labels, database_labels)]
    retrieval = Retrieval.checked(codes[0], codes[1], query_labels, database_labels, 1)
    found = sum(len(retrieval.relevant(query)) for query in range(retrieval.num_queries))
    return found / (retrieval.num_queries * retrieval.num_database)


def precision_recall(
    query_codes: ArrayLike, database_codes: ArrayLike, query_labels: ArrayLike, database_labels: ArrayLike,
    num_bits: int | None = None,
) -> RadiusCurve:  # fmt: skip
    """Precision and recall of all images within each Hamming radius 0..K, averaged over the queries.

    There are no ties to break: a ball holds all images of a distance or none. A query whose ball is empty counts as
    precision 0, as is usual in the hashing literature, and one without any relevant image as recall 0. The arguments
    are those of average_precision.
    """
    retrieval = Retrieval.checked(query_codes, database_codes, query_labels, database_labels, num_bits)
    sums_2T = np.zeros((2, retrieval.num_bits + 1))
    for counts in retrieval.blocks():
        sums_2T += _ball_sums(counts)
    return RadiusCurve(np.arange(retrieval.num_bits + 1), *sums_2T / retrieval.num_queries)


def precision_at(
    query_codes: ArrayLike, database_codes: ArrayLike, query_labels: ArrayLike, database_labels: ArrayLike,
    ranks: ArrayLike, *, ties: str = "expected", num_bits: int | None = None,
) -> RankCurve:  # fmt: skip
    """Precision and recall of the first images of the ranking, averaged over the queries.

    Args: as average_precision, and
        ranks: (R,) integers from 1 to B.
    """
    _check_name("ties", ties)
    retrieval = Retrieval.checked(query_codes, database_codes, query_labels, database_labels, num_bits)
    rank_R = np.asarray(ranks)
    if rank_R.ndim != 1 or rank_R.dtype.kind not in "iu" or not len(rank_R):
        raise DistilhashError("ranks must be a list of integers", f"{rank_R.dtype} {rank_R.shape}")
    if rank_R.min() < 1 or rank_R.max() > retrieval.num_database:
        given = f"{rank_R.min()} to {rank_R.max()} of {retrieval.num_database}"
        raise DistilhashError("ranks must lie between 1 and the size of the database", given)
    hits_R, recall_R = np.zeros((2, len(rank_R)))
    for counts in retrieval.blocks(rank_R if ties == "stable" else None):
        hits_qR = counts.stable_hits if ties == "stable" else _expected_hits(counts, rank_R)
        hits_R += hits_qR.sum(axis=0)
        recall_R += (hits_qR / np.maximum(counts.hits.sum(axis=1, keepdims=True), 1)).sum(axis=0)
    return RankCurve(rank_R.astype(np.int64), hits_R / rank_R / retrieval.num_queries, recall_R / retrieval.num_queries)


def evaluate_tables(query: CodeTable, database: CodeTable, *, at: int | None = None) -> dict[str, Any]:
    """Retrieval metrics of the queries in the database.

    No query finds itself: where images of the database have a query's content, its ranking is of all the others. Two
    tables that are one are therefore evaluated leave-one-out.

    Args:
        query: labelled codes of a hasher.
        database: codes of the same hasher. Classes are matched by name where they have names.
        at: K of ``map_at_K`` and ``stable_map_at_K``, which divide by the relevant images found within K; None: only
            the metrics over all ranks.

    Returns:
        The metrics by the names of their definitions. ``relevant_share`` is what a random ranking scores;
        ``map_at_all`` is the expectation over all orders of ties, ``stable_map_at_all`` breaks ties by database order.
        ``curve`` holds precision and recall by Hamming radius, and precision of the first n images;
        ``average_precision`` is the expected one of each query, over K ranks where ``at`` is given. What was done:
        ``leave_one_out`` (whether every query is in the database, too), ``queries_in_database`` (how many are),
        ``queries_without_relevant`` (which count as 0), ``queries_seen_in_training`` (by the hasher, or None where that
        is not known), and the names of classes that one side alone has images of.

    Raises:
        DistilhashError: a table has no labels, the tables differ in bits or hashers or have no class in common, or
            they do not tell their images apart.
    """
    if query.labels is None or database.labels is None:
        fix = "encode labelled images: CIFAR-10, or a folder with class subfolders or list files"
        raise DistilhashError("evaluation needs labels", "a code table without labels", fix)
    bits, again = query.num_bits, "encode both with one hasher"
    if bits != database.num_bits:
        raise DistilhashError("the code tables differ in bits", f"{bits} and {database.num_bits}", again)
    makers = [table.provenance.get("hasher") for table in (query, database)]
    if None not in makers and makers[0] != makers[1]:
        raise DistilhashError("the code tables come from different hashers", " and ".join(map(str, makers)), again)
    query_labels, database_labels, one_sided = _labels_by_name(query, database)
    retrieval = Retrieval.checked(query.packed, database.packed, query_labels, database_labels, bits)
    num_queries, num_database = retrieval.num_queries, retrieval.num_database
    query_ids, database_ids = _identities(query, database)
    own_Q = np.bincount(database_ids, minlength=query_ids.max() + 1)[query_ids]
    if own_Q.any():
        retrieval = dataclasses.replace(retrieval, own=relevance(query_ids, database_ids))
    if own_Q.min() == num_database:
        raise DistilhashError("the database holds no image but the query itself", f"{num_database} images")
    depths = {"all": num_database} | ({} if at is None else {str(at): _depth(at, num_database)})
    rank_R = np.array([rank for rank in RANKS if rank <= num_database - own_Q.max()])
    scores: dict[str, list[Floats]] = {name: [] for name in depths}
    stable = dict.fromkeys(depths, 0.0)
    relevant, without, ball_2T, hits_R = 0, 0, np.zeros((2, bits + 1)), np.zeros(len(rank_R))
    for counts in retrieval.blocks(np.array(list(depths.values()))):
        relevant_q = counts.hits.sum(axis=1)
        relevant += int(relevant_q.sum())
        without += int((relevant_q == 0).sum())
        ball_2T += _ball_sums(counts)
        hits_R += _expected_hits(counts, rank_R).sum(axis=0)
        for column, (name, depth) in enumerate(depths.items()):
            scores[name].append(expected_average_precision(counts.items, counts.hits, depth))
            stable[name] += float(_stable_average_precision(counts, column, depth).sum())
    precision_T, recall_T = ball_2T / num_queries
    expected_Q = {name: np.concatenate(blocks) for name, blocks in scores.items()}
    return {
        "queries": num_queries,
        "database": num_database,
        "bits": bits,
        "leave_one_out": bool(own_Q.all()),
        "queries_in_database": int((own_Q > 0).sum()),
        "queries_without_relevant": without,
        "queries_seen_in_training": query.provenance.get("images_seen_in_training"),
        **one_sided,
        "relevant_share": relevant / (num_queries * num_database - int(own_Q.sum())),
        "precision_at_radius_2": float(precision_T[min(2, bits)]),  # a ball wider than a code holds all
        **{f"map_at_{name}": float(values_Q.mean()) for name, values_Q in expected_Q.items()},
        **{f"stable_map_at_{name}": total / num_queries for name, total in stable.items()},
        "curve": {
            "precision": precision_T.tolist(),
            "recall": recall_T.tolist(),
            "n": rank_R.tolist(),
            "precision_at_n": (hits_R / rank_R / num_queries).tolist(),
        },
        "average_precision": list(expected_Q.values())[-1].tolist(),  # of each query, at the depth asked for
    }


def evaluate_files(
    query: str | Path, database: str | Path, *, at: int | None = None, output: str | Path | None = None
) -> Evaluation:
    """The metrics of evaluate_tables, of code tables on disk.

    Args:
        query: file that CodeTable.save wrote.
        database: another one, or the same.
        at: as evaluate_tables.
        output: a JSON file for the metrics and the curve.
    """
    queries = CodeTable.load(query)
    metrics = evaluate_tables(queries, CodeTable.load(database), at=at)
    if metrics["queries_in_database"]:
        log.info("%s queries are in the database, too; none is among its own results",
                 f"{metrics['queries_in_database']:,} of {metrics['queries']:,}")  # fmt: skip
    if metrics["queries_without_relevant"]:
        log.warning("%s queries have no relevant image and count as 0", f"{metrics['queries_without_relevant']:,}")
    if metrics["queries_seen_in_training"]:
        log.warning("%s queries were seen in training: the numbers are optimistic", metrics["queries_seen_in_training"])
    for side in ("query", "database"):
        if metrics[f"only_in_{side}"]:
            log.warning("only the %s has images of: %s", side, ", ".join(metrics[f"only_in_{side}"]))
    if output is not None:
        write_json(output, metrics)
    return Evaluation(metrics, queries)


def _identities(query: CodeTable, database: CodeTable) -> tuple[Integers, Integers]:
    """A number for each image, (Q,) and (B,): equal numbers, the same image."""
    num_queries = len(query)
    if query.digests is not None and database.digests is not None:
        digests = np.ascontiguousarray(np.concatenate([query.digests, database.digests]))
        ids = np.unique(digests.view("V16").ravel(), return_inverse=True)[1]
        return ids[:num_queries], ids[num_queries:]
    ids = np.arange(num_queries + len(database))
    shared = set(query.names) & set(database.names)
    if not shared:
        return ids[:num_queries], ids[num_queries:]
    if query.names != database.names or not np.array_equal(query.packed, database.packed):
        found = f"{len(shared)} names are in both, such as {min(shared)}"
        fix = "write both again with: distilhash encode, which keeps a hash of each image"
        raise DistilhashError("the code tables do not say whether they hold the same images", found, fix)
    return ids[:num_queries], ids[:num_queries]


def _labels_by_name(query: CodeTable, database: CodeTable) -> tuple[NDArray[Any], NDArray[Any], dict[str, list[str]]]:
    """The labels of both sides with numbers that mean the same class, and the classes that one side alone has."""
    sides = ("query", "database")
    tables, labels = (query, database), [np.asarray(query.labels), np.asarray(database.labels)]
    unnamed = [side for side, table in zip(sides, tables, strict=True) if not len(table.class_names)]
    if len(unnamed) == 2:
        return labels[0], labels[1], {f"only_in_{side}": [] for side in sides}
    if unnamed:
        fix = "write both again with: distilhash encode"
        raise DistilhashError("one of the code tables does not name its classes", unnamed[0], fix)
    names = list(dict.fromkeys([*query.class_names, *database.class_names]))
    place = {name: number for number, name in enumerate(names)}
    several = any(column.ndim == 2 for column in labels)
    used: list[set[str]] = []
    for i, table in enumerate(tables):
        place_C = np.array([place[name] for name in table.class_names])
        if labels[i].ndim == 2:
            spread = np.zeros((len(table), len(names)), np.uint8)
            spread[:, place_C[: labels[i].shape[1]]] = labels[i]
            labels[i], numbers = spread, np.flatnonzero(spread.any(axis=0))
        else:
            labels[i] = place_C[labels[i]]
            numbers = np.unique(labels[i])
            labels[i] = np.eye(len(names), dtype=np.uint8)[labels[i]] if several else labels[i]
        used.append({names[number] for number in numbers})
    if not used[0] & used[1]:
        given = " and ".join(", ".join(sorted(side)[:SHOWN]) for side in used)
        raise DistilhashError("the code tables have no class in common", given, "name the classes of both alike")
    alone = used[0] - used[1], used[1] - used[0]
    return labels[0], labels[1], {f"only_in_{s}": sorted(classes) for s, classes in zip(sides, alone, strict=True)}


def _depth(at: int | None, num_database: int) -> int:
    """The number of ranks that count: all where ``at`` is None; DistilhashError where it is below 1."""
    if at is not None and (not isinstance(at, int | np.integer) or at < 1):
        raise DistilhashError("at= is the number of ranks that count, at least 1", at, "leave it out for all ranks")
    return num_database if at is None else min(at, num_database)


def _stable_average_precision(counts: Counts, column: int, depth: int, denominator: str = "found") -> Floats:
    """Average precision (q,) of the ranking in database order, cut at the depth of a column of ``stable_hits``."""
    found_q = counts.stable_hits[:, column]
    possible_q = found_q if denominator == "found" else np.minimum(counts.hits.sum(axis=1), depth)
    scores_q: Floats = counts.stable_sums[:, column] / np.maximum(possible_q, 1)
    return scores_q


def _ball_sums(counts: Counts) -> Floats:
    """(2, T) precision and recall within each Hamming radius, summed over the queries of a block."""
    hits_qT = counts.hits.cumsum(axis=1)
    precision_T = (hits_qT / np.maximum(counts.items.cumsum(axis=1), 1)).sum(axis=0)
    recall_T = (hits_qT / np.maximum(hits_qT[:, -1:], 1)).sum(axis=0)
    return np.stack([precision_T, recall_T])


def _expected_hits(counts: Counts, rank_R: NDArray[np.integer]) -> Floats:
    """(q, R) expected number of relevant images among the first of the ranking, over all orders of ties.

    Within a tie group each place is relevant with the same probability, so the expectation is linear in the rank.
    """
    rows = []
    for items_T, hits_T in zip(counts.items, counts.hits, strict=True):
        held = items_T > 0
        knots, values = np.append(0, items_T[held].cumsum()), np.append(0, hits_T[held].cumsum())
        rows.append(np.interp(rank_R, knots, values))
    return np.array(rows)


def _check_name(kind: str, name: str) -> None:
    if name not in NAMES[kind]:
        raise unknown_name(kind, name, NAMES[kind])
