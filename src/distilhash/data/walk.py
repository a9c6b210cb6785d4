"""Every image below some folders, found by listing and stat alone: no file is opened.

Links are followed and each real folder is visited once, so a loop of links ends. Folders that programs keep for
themselves (thumbnails, version control, bins) and names that begin with a dot are left out. A folder that cannot be
listed is reported and does not end the walk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from distilhash.data.decode import EXTENSIONS

SKIPPED = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "node_modules", "lost+found"})


class FoundFile(NamedTuple):
    """A file that looks like an image. A link to nowhere has size -1: reading it tells why."""

    path: str  # the root as it was given, and what lies below it
    size: int  # bytes
    changed_ns: int  # time of last change, nanoseconds


class Walk(NamedTuple):
    """What was found below the roots."""

    files: list[FoundFile]  # root by root, folder by folder, by name
    unreadable: list[tuple[str, str]]  # (folder, reason)


def walk(roots: Iterable[str], hidden: bool = False) -> Walk:
    """Find the images below these folders.

    Args:
        roots: folders, as paths.
        hidden: also what is_skipped() by default.
    """
    files: dict[str, FoundFile] = {}
    unreadable: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    for root in roots:
        folders, links = [root], list[str]()
        while folders or links:
            if not folders:  # links last, so that an image gets the name of the place where it really lies
                links.sort(reverse=True)
            folder = folders.pop() if folders else links.pop()
            try:
                here = Path(folder).stat()
                if (here.st_dev, here.st_ino) in seen:
                    continue
                seen.add((here.st_dev, here.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                unreadable.append((folder, error.strerror or str(error)))
                continue
            below = list[str]()
            for entry in entries:
                if not hidden and is_skipped(entry.name):
                    continue
                status = _status(entry)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    (links if entry.is_symlink() else below).append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122 (a Path a file is slow)
                    if status is None:
                        files[entry.path] = FoundFile(entry.path, -1, 0)
                    elif stat.S_ISREG(status.st_mode):
                        files[entry.path] = FoundFile(entry.path, status.st_size, status.st_mtime_ns)
            folders += reversed(below)
    return Walk(list(files.values()), unreadable)


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith(".") or name.lower() in SKIPPED


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a path lies in one of these folders, or is one."""
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of what the entry leads to; None for a link to nowhere or to itself."""
    try:
        return entry.stat()
    except OSError:
        return None
