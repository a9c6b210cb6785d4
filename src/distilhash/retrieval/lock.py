"""One writer at a time: a lock file beside the index, held by the operating system and not by the file's presence.

A process that is killed lets go of its lock; the empty file that it leaves behind means nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from distilhash.errors import DistilhashError


class WriterLock:
    """The right to write to an index, until release(). Errors: DistilhashError where another process has it."""

    def __init__(self, index: Path) -> None:
        self._path = index.with_name(index.name + ".lock")
        while True:
            try:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise DistilhashError("cannot write beside the index", f"{self._path} ({error.strerror})") from error
            try:
                _lock(self._handle)
            except OSError:
                os.close(self._handle)
                raise DistilhashError(
                    "another process is writing to this index", index, "wait until it has ended, then run this again"
                ) from None
            # The file may have been taken away by its holder between the opening and the lock.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._handle), self._path.stat()):
                    return
            os.close(self._handle)

    def release(self) -> None:
        """Let the next writer in."""
        with contextlib.suppress(OSError):  # where an open file cannot be deleted it stays
            self._path.unlink()
        os.close(self._handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
