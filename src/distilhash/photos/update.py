"""Bring an index up to date with its folders, reading only what has changed.

A file whose size and modification time are stored costs one stat. Any other file is hashed: if its content is the
stored one, only its stat is updated; if it is the content of a file that is gone, that file was renamed and keeps its
id and code; else it is encoded. A file that cannot be decoded is stored with the reason, and tried again when it
changes. A file that changes while it is read is left for the next run.

Work is committed every two seconds or so, in the order of the walk. Files that are gone are dropped last, so that a
rename is still recognised after a kill, and a resumed run ends in the rows of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from distilhash.data.folders import FoundFile, is_below, walk
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import Photo, PhotoStore
from distilhash.photos.encoder import Encoder
from distilhash.progress import progress

COMMIT_SECONDS = 2.0
FIRST_BATCH, LARGEST_BATCH = 16, 4096  # photos
DIGEST_BYTES = 20


@dataclasses.dataclass
class Summary:
    """What an update did, in photos."""

    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: int = 0  # now without a code, whether tried this time or before
    unsettled: int = 0  # changed while they were read
    failures: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (path, reason) of those tried
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (folder, reason)


def update(
    store: PhotoStore, folders: Iterable[str | Path], encoder: Encoder, *, hidden: bool = False, rebuild: bool = False
) -> Summary:
    """Index every photo below the folders, and drop those that are gone from them.

    Args:
        hidden: also index files and folders that programs hide.
        rebuild: drop all codes first where they are of another hasher.

    Raises:
        DistilhashError: a folder does not exist, the index is of another hasher, or another process is writing to it.
    """
    roots = checked_roots(folders)
    _claim(store, roots, encoder, rebuild)
    known = {photo.path: photo for photo in store.photos()}
    files, unreadable = walk(roots, hidden)
    there = {file.path for file in files}
    for root in roots:
        if any(is_below(path, [root]) for path in known) and not any(is_below(path, [root]) for path in there):
            unreadable.append((root, "all its photos are gone; they are kept, as its disk may not be mounted"))
    kept = [folder for folder, _ in unreadable]
    missing = [path for path in known if path not in there and is_below(path, roots) and not is_below(path, kept)]
    work = _Update(store, encoder, known, {path: known[path] for path in missing}, Summary(unreadable=unreadable))
    waiting = [file for file in files if not work.is_unchanged(file)]
    if waiting:
        work.encode(waiting)
    work.drop_gone()
    return work.summary


def checked_roots(folders: Iterable[str | Path]) -> list[str]:
    """The folders as absolute paths, sorted and unique; DistilhashError where one is none."""
    # Unlike pathlib's, these keep links, and do not raise for "~nobody" or where access is denied.
    roots = sorted({os.path.abspath(os.path.expanduser(folder)) for folder in folders})  # noqa: PTH100, PTH111
    for root in roots:
        if not os.path.isdir(root):  # noqa: PTH112
            raise DistilhashError("there is no such folder", root, "name folders of photos; nothing was changed")
    return roots


def _claim(store: PhotoStore, roots: Sequence[str], encoder: Encoder, rebuild: bool) -> None:
    """Become the writer of an index that is, or becomes, this encoder's."""
    store.claim()
    about = store.about()
    if "num_bits" in about and "encoder" not in about:
        raise DistilhashError("this index holds codes that are not of photos", store.path, "choose another file")
    of_another = about.get("encoder", encoder.fingerprint) != encoder.fingerprint
    if of_another and not rebuild:
        got = f"{encoder.path}, instead of {about.get('encoder_path', 'an unknown one')}"
        raise store.other_hasher(got, roots, encoder.path)
    with store.writing():
        if of_another:
            store.clear()
        store.describe(num_bits=str(encoder.num_bits), encoder=encoder.fingerprint, encoder_path=encoder.path)
        store.put_roots(roots)


@dataclasses.dataclass
class _Update:
    """One update: the photos that were known or are gone, by path, and the summary so far."""

    store: PhotoStore
    encoder: Encoder
    known: dict[str, Photo]
    gone: dict[str, Photo]
    summary: Summary

    def __post_init__(self) -> None:
        self._gone_by_content: defaultdict[bytes | None, list[Photo]] = defaultdict(list)
        for _, photo in sorted(self.gone.items(), reverse=True):
            self._gone_by_content[photo.content].append(photo)

    def is_unchanged(self, file: FoundFile) -> bool:
        """Whether the stored size and time are the file's; if so, it is counted."""
        photo = self.known.get(file.path)
        # A file that could not be opened is tried again: new permissions change neither size nor time.
        if photo is None or photo.content is None or (photo.size, photo.changed_ns) != file[1:]:
            return False
        self.summary.unchanged += photo.failure is None
        self.summary.failed += photo.failure is not None
        return True

    def encode(self, files: Sequence[FoundFile]) -> None:
        """Read and commit these files, in batches that take about COMMIT_SECONDS each."""
        done, size = 0, FIRST_BATCH
        with progress("indexing", len(files), "photos") as counter:
            while done < len(files):
                began = time.monotonic()
                batch = files[done : done + size]
                self.commit(batch)
                done += len(batch)
                counter.add(len(batch))
                seconds = max(time.monotonic() - began, 1e-3)
                size = int(np.clip(size * COMMIT_SECONDS / seconds, 1, min(2 * size, LARGEST_BATCH)))

    def commit(self, files: Sequence[FoundFile]) -> None:
        """Read these files and store the outcome in one transaction."""
        found = [self._read(file) for file in files]
        to_encode = [i for i, (_, _, is_new) in enumerate(found) if is_new]
        encoded = self.encoder.encode([files[i].path for i in to_encode])
        rows = {i: row for row, i in enumerate(to_encode)}
        next_id = self.store.next_id()
        kept, withdrawn, ids, picked = list[Photo](), list[int](), list[int](), list[int]()
        for i, file in enumerate(files):
            (photo, old, _), row = found[i], rows.get(i)
            if _stat(file.path) != file:
                self.summary.unsettled += 1
                continue
            if row is not None and row in encoded.failures:
                photo, row = photo._replace(failure=encoded.failures[row]), None
            if not photo.id:
                photo, next_id = photo._replace(id=next_id), next_id + 1
            kept.append(photo)
            if row is not None:
                ids.append(photo.id)
                picked.append(row)
            if old is not None and old.failure is None and (row is not None or photo.failure is not None):
                withdrawn.append(photo.id)
            if old is not None and old.path != photo.path:
                del self.gone[old.path]
            self._count(photo, old)
        with self.store.writing():
            self.store.withdraw(np.array(withdrawn, np.int64))
            self.store.put_photos(kept)
            if ids:
                self.store.append(np.array(ids, np.int64), encoded.packed[picked])

    def drop_gone(self) -> None:
        """Drop the photos that are gone and were not found under another path."""
        if self.gone:
            with self.store.writing():
                self.store.drop_photos(self.gone.values())
            self.summary.deleted = len(self.gone)
        self.store.tidy(*self.store.codes())

    def _read(self, file: FoundFile) -> tuple[Photo, Photo | None, bool]:
        """The photo that a file is before encoding, the one that it was, and whether it is to be encoded."""
        content, failure = _content(file.path)
        old = self.known.get(file.path)
        if old is None and content is not None and self._gone_by_content[content]:
            old = self._gone_by_content[content].pop()
        known = old is not None and content is not None and old.content == content
        if old is not None and known:
            failure = old.failure
        photo = Photo(0 if old is None else old.id, *file, content, failure)
        return photo, old, not known and failure is None

    def _count(self, photo: Photo, old: Photo | None) -> None:
        if photo.failure is not None:
            self.summary.failed += 1
            self.summary.failures.append((photo.path, photo.failure))
        elif old is None:
            self.summary.added += 1
        elif old.path != photo.path:
            self.summary.renamed += 1
        elif old.content != photo.content:
            self.summary.changed += 1
        else:
            self.summary.unchanged += 1


def _content(path: str) -> tuple[bytes | None, str | None]:
    """The hash of a file's content, or why it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest(), None
    except OSError as error:
        return None, error.strerror or str(error)


def _stat(path: str) -> FoundFile:
    """The file as it is now."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return FoundFile(path, -1, 0)
    return FoundFile(path, status.st_size, status.st_mtime_ns)
