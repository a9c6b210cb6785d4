"""The process and its cores: how memory is kept, and work that is spread over threads of one core each."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = -1  # mallopt(3): no trimming at all; 2**31 - 1 would trim a heap of 2 GiB and more
_LARGEST = 2**30


def keep_memory() -> bool:
    """Let glibc's malloc keep the pages that are freed; True where it listens.

    A network on the CPU allocates and frees the same large blocks in every layer. By default glibc returns each to
    the system and faults it in again: half of the time of a forward pass, measured. The process then holds its peak.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl and others: nothing to set
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


def compiled(function: Callable[..., object]) -> Any:
    """The function in machine code, by Numba, without Python's lock: compiled when it is first called, and kept on disk
    for the next process where there is a place for it. Errors: ImportError.
    """
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to write
        return numba.njit(nogil=True)(function)


def on_each_core(work: Callable[[K], V], parts: Sequence[K]) -> list[V]:
    """``work(part)`` of each part, in their order, computed on as many cores as PyTorch may use here.

    Each thread computes with one core. Where the caller is such a thread itself, it does all of the work.
    """
    import torch

    threads = torch.get_num_threads()
    if min(threads, len(parts)) <= 1:
        return [work(part) for part in parts]
    return list(_team(threads).map(work, parts))


@functools.cache
def _team(threads: int) -> ThreadPoolExecutor:
    """Threads that stay, since starting them takes as long as a small layer."""
    import torch

    def take_one_core() -> None:
        torch.get_num_threads()  # a thread's first question gives it the number of the process, whatever it has set
        torch.set_num_threads(1)

    team = ThreadPoolExecutor(threads, "core", initializer=take_one_core)
    all_there = threading.Barrier(threads)
    for _ in team.map(lambda _: all_there.wait(), range(threads)):
        pass
    torch.set_num_threads(threads)  # of threads that are yet to come
    return team
