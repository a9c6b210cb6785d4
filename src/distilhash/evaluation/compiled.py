"""The counting loop in machine code, by Numba: less than half of NumPy's time.

NumPy has to write out every distance, and its histogram reads them three times; here a block of distances stays in the
first cache. The counts are the same integers. Compiling takes two seconds, so a process begins with NumPy's.

Shapes: Q queries, B database images, W words of 64 bits, L words of labels, T = K + 1 distances.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096  # distances held at once, bytes: half of a first cache
WORTH = 1_000_000_000  # pairs of query and image that a process has counted when it compiles

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]
# (Q, W) and (W, B) codes, (Q, L) and (L, B) labels, whether labels are classes, (Q, T) counts to add to, twice
Kernel = Callable[[Words, Words, Words, Words, bool, Integers, Integers], None]


_counted: list[int] = []  # pairs of each call of this process


def kernel(pairs: int) -> Kernel | None:
    """The compiled loop to count so many more pairs with, or None where it is not yet worth it or cannot be had."""
    _counted.append(pairs)
    if sum(_counted) < WORTH:
        return None
    try:
        return compiled()
    except ImportError:  # also where Numba is older than it should be for this NumPy
        return None


@functools.cache
def compiled() -> Kernel:
    """The loop, compiled when it is first called with arrays."""
    import numba

    njit: Any = numba.njit
    bit_count = njit(_bit_count, inline="always")

    def count(  # noqa: PLR0912 (one loop, which a compiler keeps in registers)
        query_QW: Words, database_WB: Words, query_QL: Words, database_LB: Words, classes: bool,
        items_QT: Integers, hits_QT: Integers,
    ) -> None:  # fmt: skip
        num_words, num_database = database_WB.shape
        distances = items_QT.shape[1]
        distance = np.empty(BLOCK, np.uint16)
        relevant = np.empty(BLOCK, np.uint16)
        for query in range(len(query_QW)):
            # Four tables in turn: an entry need not wait for the one before it, which often adds to the same place.
            tables = np.zeros((4, 2 * distances), np.int64)
            for start in range(0, num_database, BLOCK):
                stop = min(start + BLOCK, num_database)
                size = stop - start
                words = database_WB[0, start:stop]
                own = query_QW[query, 0]
                for i in range(size):
                    distance[i] = bit_count(words[i] ^ own)
                for word in range(1, num_words):
                    words = database_WB[word, start:stop]
                    own = query_QW[query, word]
                    for i in range(size):
                        distance[i] += bit_count(words[i] ^ own)
                labels = database_LB[0, start:stop]
                wanted = query_QL[query, 0]
                if classes:
                    for i in range(size):
                        relevant[i] = labels[i] == wanted
                else:
                    for i in range(size):
                        relevant[i] = (labels[i] & wanted) != 0
                    for word in range(1, len(database_LB)):
                        labels = database_LB[word, start:stop]
                        wanted = query_QL[query, word]
                        for i in range(size):
                            relevant[i] |= (labels[i] & wanted) != 0
                for i in range(size):
                    distance[i] += np.uint16(distances) * relevant[i]
                whole = size // 4 * 4
                for i in range(0, whole, 4):
                    tables[0, distance[i]] += 1
                    tables[1, distance[i + 1]] += 1
                    tables[2, distance[i + 2]] += 1
                    tables[3, distance[i + 3]] += 1
                for i in range(whole, size):
                    tables[0, distance[i]] += 1
            for table in tables:
                for t in range(distances):
                    items_QT[query, t] += table[t] + table[distances + t]
                    hits_QT[query, t] += table[distances + t]

    loop: Kernel = njit(count, nogil=True)
    return loop


def _bit_count(word: Any) -> Any:
    """The ones of a 64-bit word, by sums of neighbours; compilers know these lines and use the processor's own."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)
