"""Retrieval metrics on one core: mean average precision against the published evaluation, and cost against size.

The published evaluation (satoru2001/CUKDFIR at d9a60ee) takes a query at a time: a product of +-1 codes in float with
the whole database, a full argsort of the distances, and the precisions at the ranks of the relevant images. Our value
is the expectation over all orders of tied images, in closed form from counts; where nothing ties, both are equal.

    python benchmarks/bench.py map cost_map cost_hamming
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import hamming, pack
from distilhash.evaluation.metrics import mean_average_precision
from scaling import cost
from sidebyside import Process, Work, compare, serve, timed

QUERIES, DATABASE, BITS, CLASSES = 1_000, 54_000, 64, 10
FLIPPED = 0.25  # probability that a bit of an image differs from its class's: about as good as a trained hasher
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SCANNED = 100  # queries of the cost rows
LEAST = 15
ONE_CORE = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Codes(NamedTuple):
    """+-1 codes and classes of queries and database."""

    query: NDArray[np.float32]  # (Q, K)
    database: NDArray[np.float32]  # (B, K)
    query_labels: NDArray[np.int64]  # (Q,)
    database_labels: NDArray[np.int64]  # (B,)


def drawn_codes(queries: int, database: int, seed: int = 0) -> Codes:
    """Codes of images of ten classes."""
    draw = np.random.default_rng(seed)
    centres = draw.choice(np.float32([-1, 1]), (CLASSES, BITS))
    labels = draw.integers(CLASSES, size=queries + database)
    codes = centres[labels]
    codes[draw.random(codes.shape, np.float32) < FLIPPED] *= -1
    return Codes(codes[:queries], codes[queries:], labels[:queries], labels[queries:])


def published_map(codes: Codes) -> float:
    """mAP by the published method, all ranks counting."""
    one_hot = np.eye(CLASSES, dtype=np.int8)  # the published loader's type
    query_labels, database_labels = one_hot[codes.query_labels], one_hot[codes.database_labels]
    bits = codes.query.shape[1]
    total = 0.0
    for query, labels in zip(codes.query, query_labels, strict=True):
        relevant = (database_labels @ labels > 0).astype(np.float32)
        distances = 0.5 * (bits - codes.database @ query)
        ranked = relevant[np.argsort(distances)]
        found = int(ranked.sum())
        if found:
            total += float(np.mean(np.linspace(1, found, found) / (np.where(ranked == 1)[0] + 1.0)))
    return total / len(codes.query)


def our_map(codes: Codes) -> float:
    """The same from packed codes, in expectation over ties."""
    query, database = pack(codes.query), pack(codes.database)
    return mean_average_precision(query, database, codes.query_labels, codes.database_labels, num_bits=BITS)


def largest_difference(cases: int = 50) -> float:
    """Between the two, over small databases in which no two images tie."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(cases):
        query = draw.choice(np.float32([-1, 1]), (1, BITS))
        database = np.repeat(query, BITS, axis=0)
        for image, distance in zip(database, draw.permutation(BITS), strict=True):
            image[draw.permutation(BITS)[:distance]] *= -1
        codes = Codes(query, database, draw.integers(2, size=1), draw.integers(2, size=BITS))
        found.append(abs(published_map(codes) - our_map(codes)))
    return max(found)


def compare_map(photos: Path) -> None:
    """mAP@all of 1,000 queries, 54,000 images and 64 bits, each side in a process of its own on the same core."""
    difference = largest_difference()
    if difference > 1e-12:
        sys.exit(f"the two disagree by {difference} where nothing ties")
    work = Work(
        work="map", peer="the published method: a query at a time, float products and a full argsort", unit="queries/s",
        least=LEAST, settings={
            "codes": f"{QUERIES:,} queries, {DATABASE:,} images, {BITS} bits, {CLASSES} classes", "cores": 1,
            "ties": "ours: expected AP; peer: as an unstable sort leaves them",
            "largest difference without ties": difference,
        },
    )  # fmt: skip
    peer, ours = (Process(__file__, side, **ONE_CORE) for side in ("peer", "ours"))
    try:
        compare(work, peer, ours)
    finally:
        peer.close()
        ours.close()


def serve_side(name: str) -> None:
    """What each of the two processes does."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    codes = drawn_codes(QUERIES, DATABASE)
    side = {"peer": published_map, "ours": our_map}[name]

    def run() -> int:
        side(codes)
        return QUERIES

    serve(timed(run))


def cost_map(photos: Path) -> None:
    """mAP@all of 100 queries over 10,000 to 1,000,000 codes."""

    def prepare(size: int) -> Callable[[], object]:
        codes = drawn_codes(SCANNED, size)
        query, database = pack(codes.query), pack(codes.database)
        labels = codes.query_labels, codes.database_labels
        return lambda: mean_average_precision(query, database, *labels, num_bits=BITS)

    cost("cost_map", "codes", SIZES, prepare, {"queries": SCANNED, "bits": BITS, "cores": 1})


def cost_hamming(photos: Path) -> None:
    """Distances of 100 queries to 10,000 to 1,000,000 codes."""

    def prepare(size: int) -> Callable[[], object]:
        codes = drawn_codes(SCANNED, size)
        query, database = pack(codes.query), pack(codes.database)
        return lambda: hamming(query, database)

    cost("cost_hamming", "codes", SIZES, prepare, {"queries": SCANNED, "bits": BITS, "cores": 1})


WORKS = {"map": compare_map, "cost_map": cost_map, "cost_hamming": cost_hamming}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("peer", "ours"))
    serve_side(parser.parse_args().side)
