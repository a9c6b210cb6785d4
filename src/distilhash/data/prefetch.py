"""Reading ahead: decoding and preprocessing of the next batches overlap with the network's work on this one."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from distilhash.runtime import quick_turns

READERS = 16  # for one device, at most: each holds a batch or two in memory
BATCH_PIXELS = 8 * 224**2  # of the input of one batch in encoding: 8 images of 224 pixels, 392 of 32

K = TypeVar("K")
U = TypeVar("U")
V = TypeVar("V")


def cores() -> int:
    """Threads that may compute: PyTorch's number where it is loaded, else the cores of this process."""
    torch = sys.modules.get("torch")
    if torch:
        threads: int = torch.get_num_threads()
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefetch(load: Callable[[K], V], keys: Iterable[K], *, ahead: int = 3, threads: int = 1) -> Iterator[V]:
    """Yield ``load(key)`` in the order of the keys, with up to ``ahead`` results made in background threads.

    An error of ``load`` is raised at its place in the order; leaving the loop early stops the threads.
    """
    waiting: deque[Future[V]] = deque()
    torch = sys.modules.get("torch")  # where it is not loaded, there are no threads of its to be set
    cores = torch.get_num_threads() if torch else 1  # asked here: a thread that has not asked yet would get the pool's
    # One core for each thread: a second team of compute threads would fight the network's for the cores.
    pool = ThreadPoolExecutor(threads, "prefetch", initializer=torch.set_num_threads if torch else int, initargs=(1,))
    try:
        with quick_turns:
            for key in keys:
                waiting.append(pool.submit(load, key))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if torch:
            torch.set_num_threads(cores)  # of threads that are yet to come


def through(load: Callable[[K], U], work: Callable[[U], V], keys: Iterable[K], *, shared: bool) -> Iterator[V]:
    """Yield ``work(load(key))`` in the order of the keys.

    Each core takes a key all the way: so nothing waits, neither the work for what is loaded nor, as in a network that
    is spread over the cores, one core for the others after every layer. Where one device does the work of all
    (``shared``), the cores load for it and the caller's thread works, one key after the other.
    """
    threads = cores()
    if shared:
        return map(work, prefetch(load, keys, **readers(shared)))
    return prefetch(lambda key: work(load(key)), keys, ahead=2 * threads, threads=threads)


def readers(shared: bool) -> dict[str, int]:
    """How ``prefetch`` reads for a caller that computes: in one thread beside it, or, where a device of its own does
    what is to be computed (``shared``), on all cores, which have nothing else to do.
    """
    threads = min(cores(), READERS) if shared else 1
    return {"ahead": threads + 2, "threads": threads}
