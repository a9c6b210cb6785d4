"""What the process is set to before heavy work: measured, harmless where it does not apply."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_NEVER = -1  # mallopt(3): no trimming at all; 2**31 - 1 would trim a heap of 2 GiB and more
_LARGEST = 2**30


def release_memory() -> None:
    """Give back what is free now, where glibc is: after an image of hundreds of megabytes that no other may follow.

    Each thread has a heap of its own, and what one of them keeps is of no use to the next.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


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
