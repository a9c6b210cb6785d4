"""The index against raw FAISS on the same codes: adding, removing, searching, opening.

The codes are those of a real collection made worse: in clusters, and three in ten the exact copy of another, so that
most results have ties. Raw FAISS is what a person would write: IndexBinaryFlat with counted distances inside an
IndexBinaryIDMap, saved with write_index_binary and fsync where ours is a file. Ours also checks what it is given, keeps
ids unique and answers by (distance, id).

    python benchmarks/bench.py index_add index_search                      # a million codes
    python benchmarks/bench_index.py --codes 10000000 index_search         # any other number
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from distilhash.retrieval import Index
from distilhash.retrieval.backends import lists_for, numpy_nearest
from sidebyside import Side, Work, compare

CODES, BITS, QUERIES, TOP = 1_000_000, 64, 1_000, 10
CLUSTER, COPIES, FLIPPED = 50, 0.3, 0.08  # images of a cluster, share of exact copies, of bits that differ inside one
REMOVED = 0.1
FLIPPED_AT_ONCE = 1_000_000
CHECKED = 100  # queries that a plain scan answers, too
LEAST = 0.9
OPEN_SECONDS = 2  # that opening a million codes may take


class Drawn(NamedTuple):
    """Packed codes with their ids, and queries near some of them."""

    codes: NDArray[np.uint8]
    ids: NDArray[np.int64]
    queries: NDArray[np.uint8]
    removed: NDArray[np.int64]


@functools.cache
def drawn(count: int) -> Drawn:
    """The codes of a benchmark of this size."""
    draw = np.random.default_rng(0)
    centres = draw.integers(0, 256, (max(1, count // CLUSTER), BITS // 8), np.uint8)
    codes = centres[draw.integers(len(centres), size=count)] ^ flips(draw, count)
    copies = draw.random(count) < COPIES
    codes[copies] = codes[draw.integers(count, size=int(copies.sum()))]
    ids = np.arange(count) * 2 + 1
    queries = codes[draw.integers(count, size=QUERIES)] ^ flips(draw, QUERIES)
    return Drawn(codes, ids, queries, np.sort(draw.choice(ids, int(count * REMOVED), replace=False)))


def flips(draw: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Bits to flip in so many codes."""
    parts = (min(FLIPPED_AT_ONCE, count - start) for start in range(0, count, FLIPPED_AT_ONCE))
    return np.concatenate([np.packbits(draw.random((part, BITS), np.float32) < FLIPPED, axis=1) for part in parts])


def raw(data: Drawn) -> faiss.IndexBinaryIDMap:
    """Raw FAISS with the codes in it."""
    flat = faiss.IndexBinaryFlat(BITS)
    flat.use_heap = False
    index = faiss.IndexBinaryIDMap(flat)
    index.add_with_ids(data.codes, data.ids)
    index.kept = flat  # FAISS does not keep it alive
    return index


def ours(data: Drawn, path: str | Path = ":memory:") -> Index:
    """Our index with the codes in it."""
    index = Index.open(path, num_bits=BITS)
    index.add(data.ids, data.codes)
    return index


def rate(items: int, run: Callable[[], object]) -> float:
    """Items a second of one run."""
    began = time.perf_counter()
    run()
    return items / (time.perf_counter() - began)


def named(name: str, count: int) -> str:
    """The name of a row, which says the number of codes where that is not a million."""
    return name if count == CODES else f"{name}_{count}"


def row(name: str, peer: str, unit: str, count: int, peer_side: Side, our_side: Side, **settings: object) -> None:
    """Time both sides in turn and keep the row."""
    work = Work(
        work=named(name, count), peer=f"raw FAISS, {peer}", unit=unit, least=LEAST,
        settings={
            "codes": f"{count:,} of {BITS} bits, {COPIES:.0%} exact copies", "faiss": faiss.__version__, **settings
        },
    )  # fmt: skip
    compare(work, peer_side, our_side)


def index_add(count: int) -> None:
    """All codes into an empty index in memory."""
    data = drawn(count)
    row(
        "index_add", "IndexBinaryIDMap in memory", "codes/s", count,
        lambda: rate(count, lambda: raw(data)), lambda: rate(count, lambda: ours(data)),
    )  # fmt: skip


def index_add_file(count: int) -> None:
    """All codes into an empty index on disk, until they are safe there."""
    data = drawn(count)
    with tempfile.TemporaryDirectory(prefix="bench_index_") as place:
        file = Path(place) / "index"

        def peer() -> float:
            return rate(count, lambda: save(raw(data), file.with_suffix(".faiss")))

        def our() -> float:
            file.unlink(missing_ok=True)
            index = Index.open(file, num_bits=BITS)
            found = rate(count, lambda: index.add(data.ids, data.codes))
            index.close()
            return found

        row("index_add_file", "IndexBinaryIDMap, written whole and synced", "codes/s", count, peer, our)


def index_remove(count: int) -> None:
    """A tenth of the codes out of an index in memory."""
    data = drawn(count)

    def peer() -> float:
        index = raw(data)
        return rate(len(data.removed), lambda: index.remove_ids(data.removed))

    def our() -> float:
        index = ours(data)
        return rate(len(data.removed), lambda: index.remove(data.removed))

    row("index_remove", "IndexBinaryIDMap in memory", "codes/s", count, peer, our, removed=f"{len(data.removed):,}")


def index_search(count: int) -> None:
    """Many queries at once."""
    searched(count, "index_search", QUERIES)


def index_search_one(count: int) -> None:
    """One query at a time."""
    searched(count, "index_search_one", 1)


def searched(count: int, name: str, batch: int) -> None:
    """Ten hits of each query, so many queries a call, once it is sure that both find the same."""
    data = drawn(count)
    peer, index = raw(data), Index.open(":memory:", num_bits=BITS, engine="exact")
    index.add(data.ids, data.codes)
    positions, expected = numpy_nearest(data.codes, data.queries[:CHECKED], TOP)
    ids, distances = index.search(data.queries[:CHECKED], TOP)
    if not (np.array_equal(data.ids[positions], ids) and np.array_equal(expected, distances)):
        sys.exit("the index is not exact")
    queries = data.queries if batch > 1 else data.queries[:100]
    found = [recall(data, index.search(queries, TOP)[1]), recall(data, peer.search(queries, TOP)[0])]
    parts = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    row(
        name, "IndexBinaryFlat, use_heap=False", "queries/s", count,
        lambda: rate(len(queries), lambda: [peer.search(part, TOP) for part in parts]),
        lambda: rate(len(queries), lambda: [index.search(part, TOP) for part in parts]),
        queries=f"{len(queries):,}, {batch:,} a call, {TOP} hits", recall=found[0], peer_recall=found[1],
    )  # fmt: skip


def index_ivf(count: int) -> None:
    """The approximate engine against FAISS's own binary IVF with as many lists and probes."""
    data = drawn(count)
    quantizer = faiss.IndexBinaryFlat(BITS)
    peer = faiss.IndexBinaryIVF(quantizer, BITS, lists_for(count))
    began = time.perf_counter()
    peer.train(data.codes)
    peer.add_with_ids(data.codes, data.ids)
    peer_made = time.perf_counter() - began
    index = Index.open(":memory:", num_bits=BITS, engine="ivf")
    began = time.perf_counter()
    index.add(data.ids, data.codes)
    found = index.search(data.queries, TOP)[1]
    made = time.perf_counter() - began
    assert index._ivf is not None
    peer.nprobe = index._ivf.nprobe
    row(
        "index_ivf", "IndexBinaryIVF", "queries/s", count,
        lambda: rate(QUERIES, lambda: peer.search(data.queries, TOP)),
        lambda: rate(QUERIES, lambda: index.search(data.queries, TOP)),
        lists=lists_for(count), nprobe=peer.nprobe, recall=recall(data, found),
        peer_recall=recall(data, peer.search(data.queries, TOP)[0]), made_seconds=made, peer_made_seconds=peer_made,
    )  # fmt: skip


def index_open(count: int) -> None:
    """From a file on disk to the first answer."""
    data = drawn(count)
    with tempfile.TemporaryDirectory(prefix="bench_index_") as place:
        file = Path(place) / "index"
        save(raw(data), file.with_suffix(".faiss"))
        ours(data, file).close()
        query = data.queries[:1]

        def our() -> None:
            with Index.open(file, engine="exact") as index:
                index.search(query, TOP)

        def peer() -> None:
            faiss.read_index_binary(str(file.with_suffix(".faiss"))).search(query, TOP)

        our(), peer()
        work = Work(
            work=named("index_open", count), peer=f"the promise, {OPEN_SECONDS} seconds", unit="opens/s", least=1,
            settings={"codes": f"{count:,} of {BITS} bits", "faiss": faiss.__version__, "faiss_rate": rate(1, peer)},
        )  # fmt: skip
        compare(work, lambda: 1 / OPEN_SECONDS, lambda: rate(1, our))


def save(index: faiss.IndexBinary, path: Path) -> None:
    """Write a FAISS index until it is safely on disk."""
    faiss.write_index_binary(index, str(path))
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def recall(data: Drawn, distances: NDArray[np.int32]) -> float:
    """Share of the hits that are as near as the exact ten: copies are as good as what they are copies of."""
    checked = np.sort(distances[:CHECKED], axis=1)
    exact = numpy_nearest(data.codes, data.queries[:CHECKED], TOP)[1]
    return float(((checked >= 0) & (checked <= exact[:, -1:])).mean())


FUNCTIONS = (index_add, index_add_file, index_remove, index_search, index_search_one, index_ivf, index_open)


def at_a_million(function: Callable[[int], None]) -> Callable[[Path], None]:
    """A work as bench.py calls it."""
    return lambda photos: function(CODES)


WORKS = {function.__name__: at_a_million(function) for function in FUNCTIONS}


def main() -> None:
    """Works at another size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {function.__name__: function for function in FUNCTIONS}
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--codes", type=int, default=CODES, help="count (default: %(default)s)")
    options = parser.parse_args()
    for name in options.names or names:
        names[name](options.codes)


if __name__ == "__main__":
    main()
