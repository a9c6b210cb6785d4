"""Reading ahead: decoding and preprocessing of the next batches overlap with the network's work on this one.

PyTorch is not imported here. Where it is in the process, its number of threads says how many cores there are, and each
thread of a pool computes with one core: a second team of compute threads would fight the network's for the cores.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 16  # for one device, at most: each holds a batch or two in memory
BATCH_PIXELS = 8 * 224**2  # of the input of one batch in encoding: 8 images of 224 pixels, 392 of 32

K = TypeVar("K")
U = TypeVar("U")
V = TypeVar("V")


def cores() -> int:
    """How many threads may compute."""
    torch = sys.modules.get("torch")
    if torch:
        threads: int = torch.get_num_threads()
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefetch(load: Callable[[K], V], keys: Iterable[K], *, ahead: int = 3, threads: int = 1) -> Iterator[V]:
    """Yield ``load(key)`` in the order of the keys, computed by ``threads``; ``ahead`` results may wait.

    An error of ``load`` is raised at its place in the order; leaving the loop early stops the threads.
    """
    waiting: deque[Future[V]] = deque()
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    pool = ThreadPoolExecutor(threads, "prefetch", initializer=torch.set_num_threads if torch else int, initargs=(1,))
    try:
        for key in keys:
            waiting.append(pool.submit(load, key))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if torch:
            torch.set_num_threads(before)  # the threads of a pool set the default of all later threads, too


def through(load: Callable[[K], U], work: Callable[[U], V], keys: Iterable[K], *, shared: bool) -> Iterator[V]:
    """Yield ``work(load(key))`` in the order of the keys: ``load`` preprocesses a batch, ``work`` is the network.

    Where one device is ``shared``, the cores load for it, and the caller's thread runs ``work``. On the CPU each core
    takes a key all the way, so that none waits for the others after every layer.
    """
    threads = cores()
    if shared:
        return map(work, prefetch(load, keys, **readers(shared)))
    return prefetch(lambda key: work(load(key)), keys, ahead=2 * threads, threads=threads)


def readers(shared: bool) -> dict[str, int]:
    """``ahead`` and ``threads`` of prefetch(): one thread beside a network on the CPU, all cores beside a device."""
    threads = min(cores(), READERS) if shared else 1
    return {"ahead": threads + 2, "threads": threads}
