"""Retrieval metrics of one code table in another, all of them from one scan of the database for each query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distilhash.codes import CodeTable
from distilhash.errors import DistilhashError
from distilhash.evaluation.counts import Retrieval
from distilhash.evaluation.metrics import ball_sums, depth_of, expected_hits
from distilhash.evaluation.ties import expected_average_precision, stable_average_precision
from distilhash.files import write_json

RANKS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000)  # of the curve of precision at N


def evaluate_tables(query: CodeTable, database: CodeTable, *, at: int | None = None) -> dict[str, Any]:
    """Retrieval metrics of the queries in the database.

    Args:
        query, database: labelled codes of one hasher, with no image in both.
        at: K of ``map_at_K`` and ``stable_map_at_K``, which divide by the relevant images found within K; None: only
            the metrics over all ranks.

    Returns:
        The metrics by the names of their definitions. ``relevant_share`` is what a random ranking scores;
        ``map_at_all`` is the expectation over all orders of ties, ``stable_map_at_all`` breaks ties by database order.
        ``curve`` holds precision and recall by Hamming radius, and precision of the first n images.

    Raises:
        DistilhashError: a table has no labels, the tables differ in bits or hashers, or they share images.
    """
    if query.labels is None or database.labels is None:
        raise DistilhashError(
            "evaluation needs labels",
            "a code table without labels",
            "encode labelled images: a CIFAR-10 split or a folder with class subfolders",
        )
    bits, again = query.num_bits, "encode both with one hasher"
    if bits != database.num_bits:
        raise DistilhashError("the code tables differ in bits", f"{bits} and {database.num_bits}", again)
    makers = [table.provenance.get("hasher") for table in (query, database)]
    if None not in makers and makers[0] != makers[1]:
        raise DistilhashError("the code tables come from different hashers", " and ".join(map(str, makers)), again)
    shared = set(query.names) & set(database.names)
    if shared:
        found = f"{len(shared)} of them, such as {min(shared)}"
        raise DistilhashError("query images are in the database", found, "encode disjoint parts")
    retrieval = Retrieval.checked(query.packed, database.packed, query.labels, database.labels, bits)
    num_queries, num_database = retrieval.num_queries, retrieval.num_database
    depths = {"all": num_database} | ({} if at is None else {str(at): depth_of(at, num_database)})
    rank_R = np.array([rank for rank in RANKS if rank <= num_database])
    expected, stable = dict.fromkeys(depths, 0.0), dict.fromkeys(depths, 0.0)
    relevant, ball_2T, hits_R = 0, np.zeros((2, bits + 1)), np.zeros(len(rank_R))
    for counts in retrieval.blocks(np.array(list(depths.values()))):
        relevant_q = counts.hits.sum(axis=1)
        relevant += int(relevant_q.sum())
        ball_2T += ball_sums(counts)
        hits_R += expected_hits(counts, rank_R).sum(axis=0)
        for column, (name, depth) in enumerate(depths.items()):
            expected[name] += float(expected_average_precision(counts.items, counts.hits, depth).sum())
            sums_q, found_q = counts.stable_sums[:, column], counts.stable_hits[:, column]
            stable[name] += float(stable_average_precision(sums_q, found_q, relevant_q, depth).sum())
    precision_T, recall_T = ball_2T / num_queries
    return {
        "queries": num_queries,
        "database": num_database,
        "bits": bits,
        "relevant_share": relevant / (num_queries * num_database),
        "precision_at_radius_2": float(precision_T[min(2, bits)]),  # a ball wider than a code holds all
        **{f"map_at_{name}": total / num_queries for name, total in expected.items()},
        **{f"stable_map_at_{name}": total / num_queries for name, total in stable.items()},
        "curve": {
            "precision": precision_T.tolist(),
            "recall": recall_T.tolist(),
            "n": rank_R.tolist(),
            "precision_at_n": (hits_R / rank_R / num_queries).tolist(),
        },
    }


def evaluate_files(query: Path, database: Path, *, at: int | None = None, output: Path | None = None) -> dict[str, Any]:
    """The metrics of evaluate_tables, but for the curve, of code tables on disk.

    Args:
        query, database: files that CodeTable.save wrote.
        at: as evaluate_tables.
        output: a JSON file for the metrics and the curve.
    """
    metrics = evaluate_tables(CodeTable.load(query), CodeTable.load(database), at=at)
    if output is not None:
        write_json(output, metrics)
    del metrics["curve"]
    return metrics
