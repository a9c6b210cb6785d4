"""From code tables to the numbers of one retrieval experiment: what is asked, what is searched, what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distilhash.codes import CodeTable
from distilhash.errors import DistilhashError
from distilhash.evaluation.metrics import (
    mean_average_precision,
    precision_at,
    precision_recall,
    relevant_share,
)
from distilhash.files import write_json

RANKS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000)  # of the curve of precision at N


def evaluate_tables(query: CodeTable, database: CodeTable, *, at: int | None = None) -> dict[str, Any]:
    """Retrieval metrics of the queries in the database, by the names of their definitions, and the curve.

    ``relevant_share`` is what a random ranking scores. ``map_at_all`` is expected AP (ties of equal distance in random
    order), ``stable_map_at_all`` breaks ties by database order; with ``at`` also ``map_at_K`` and ``stable_map_at_K``
    (over the relevant images found within K). ``curve``: precision and recall by Hamming radius, and precision of the
    first n images. Errors: DistilhashError where the tables have no labels, differ in bits, or come from different hashers.
    """
    if query.labels is None or database.labels is None:
        raise DistilhashError(
            "evaluation needs labels",
            "a code table without labels",
            "encode labelled images: a CIFAR-10 split or a folder with class subfolders",
        )
    if query.num_bits != database.num_bits:
        raise DistilhashError(
            "the code tables differ in bits", f"{query.num_bits} and {database.num_bits}", "encode both with one hasher"
        )
    makers = {table.provenance.get("hasher") for table in (query, database)} - {None}
    if len(makers) > 1:
        raise DistilhashError(
            "the code tables come from different hashers",
            " and ".join(sorted(map(str, makers))),
            "encode both with one hasher",
        )
    shared = set(query.names) & set(database.names)
    if shared:
        raise DistilhashError(
            "query images are in the database",
            f"{len(shared)} of them, such as {sorted(shared)[0]}",
            "encode disjoint parts",
        )
    labels = (query.labels, database.labels)
    pair = (query.packed, database.packed, *labels)
    bits = query.num_bits
    curve = precision_recall(*pair, num_bits=bits)
    metrics: dict[str, Any] = {
        "queries": len(query.packed),
        "database": len(database.packed),
        "bits": bits,
        "relevant_share": relevant_share(*labels),
        "map_at_all": mean_average_precision(*pair, num_bits=bits),
        "stable_map_at_all": mean_average_precision(*pair, ties="stable", num_bits=bits),
        "precision_at_radius_2": float(curve.precision[min(2, bits)]),  # a ball wider than a code holds all
    }
    if at is not None:
        metrics[f"map_at_{at}"] = mean_average_precision(*pair, at=at, num_bits=bits)
        metrics[f"stable_map_at_{at}"] = mean_average_precision(*pair, at=at, ties="stable", num_bits=bits)
    ranks = [rank for rank in RANKS if rank <= len(database.packed)]
    first = precision_at(*pair, ranks, num_bits=bits)
    return metrics | {
        "curve": {
            "precision": curve.precision.tolist(), "recall": curve.recall.tolist(),
            "n": ranks, "precision_at_n": first.precision.tolist(),
        }
    }  # fmt: skip


def evaluate_files(query: Path, database: Path, *, at: int | None = None, output: Path | None = None) -> dict[str, Any]:
    """The same for code tables on disk; the metrics and curve also go to ``output`` (JSON) where it is given."""
    metrics = evaluate_tables(CodeTable.load(query), CodeTable.load(database), at=at)
    if output is not None:
        write_json(output, metrics)
    del metrics["curve"]
    return metrics
