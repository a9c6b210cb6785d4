"""Reading ahead: decoding and preprocessing of the next batches overlap with the network's work on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

K = TypeVar("K")
V = TypeVar("V")


def prefetch(load: Callable[[K], V], keys: Iterable[K], *, ahead: int = 3, threads: int = 1) -> Iterator[V]:
    """Yield ``load(key)`` in the order of the keys, with up to ``ahead`` results made in background threads.

    An error of ``load`` is raised at its place in the order; leaving the loop early stops the threads.
    """
    waiting: deque[Future[V]] = deque()
    cores = torch.get_num_threads()  # asked here: a thread that has not asked yet would get the pool's number
    # One core for each thread: a second team of compute threads would fight the network's for the cores.
    pool = ThreadPoolExecutor(threads, "prefetch", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for key in keys:
            waiting.append(pool.submit(load, key))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(cores)  # of threads that are yet to come
