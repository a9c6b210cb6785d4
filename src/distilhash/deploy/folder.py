"""A directory that is written whole or not at all, also where it replaces another.

It is filled under a temporary name beside its place, brought to the disk, and renamed. Where a directory stands there
already, both names are exchanged in one step of the file system, and what was the old one is deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distilhash.errors import DistilhashError

_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """An empty directory to be filled, which is then at ``path``; where the block raises, nothing was changed.

    Errors: DistilhashError where the disk refuses.
    """
    path = path.resolve()
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _to_disk(file)
        _to_disk(temporary)
        if path.exists():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
        _to_disk(path.parent)
    except OSError as error:
        raise DistilhashError(
            f"cannot write {path}",
            error.strerror or error,
            "free some room or choose another place; nothing was changed",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Delete what processes that were killed have left beside this path."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        process = left.name.split(".")[-3]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere there is no harmless signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name != "posix":  # a directory cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step, or, where the system has no such step, in two renames."""
    library: Any = ctypes.CDLL(None) if os.name == "posix" else None
    names = (os.fsencode(one), os.fsencode(other))
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        done = library.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        done = library.renamex_np(*names, _EXCHANGE) == 0
    else:
        done = False
    if not done:  # no such step here: for a moment the old one has only a third name, which no clean-up touches
        aside = one.with_name(f"{one.name.removesuffix('.tmp')}.old.tmp")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)
