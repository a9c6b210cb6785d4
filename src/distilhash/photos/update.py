"""Bringing an index up to date with its folders, reading only what has changed.

A file whose size and time of last change are known costs a stat. Any other file is hashed: with the content that it
had, only its stat is noted; with the content of a file that is gone, it was renamed, and its row gets the new path;
else it is encoded. A file that cannot be decoded is remembered with the reason, and tried again when it changes. A
file that changes while it is read is left for the next time.

What is done is committed every two seconds or so, in the order of the walk. Files that are gone are dropped last, so
that a rename is still seen after a kill, and a run that goes on ends in the rows of one that was never stopped.

Shapes: n photos of a batch, P bytes a code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from distilhash.data.walk import FoundFile, is_below, walk
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import Photo, PhotoStore
from distilhash.photos.encoder import Encoder

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
    store: PhotoStore,
    folders: Iterable[str | Path],
    encoder: Encoder,
    *,
    hidden: bool = False,
    rebuild: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Index every photo below the folders, and forget those that are gone from them.

    ``rebuild`` drops all codes where they are another encoder's. Errors: DistilhashError for a folder that is none, an index
    of another encoder, one that another process writes to.
    """
    roots = checked_roots(folders)
    _begin(store, roots, encoder, rebuild)
    known = {photo.path: photo for photo in store.photos()}
    files, unreadable = walk(roots, hidden)
    there = {file.path for file in files}
    for root in roots:
        if any(is_below(path, [root]) for path in known) and not any(is_below(path, [root]) for path in there):
            unreadable.append((root, "all its photos are gone; they are kept, in case its disk is not there"))
    kept = [folder for folder, _ in unreadable]
    gone = {
        path: photo
        for path, photo in known.items()
        if path not in there and is_below(path, roots) and not is_below(path, kept)
    }
    work = _Work(store, encoder, known, gone, Summary(unreadable=unreadable))
    waiting = [file for file in files if not work.is_unchanged(file)]
    done, size = 0, FIRST_BATCH
    while done < len(waiting):
        began = time.monotonic()
        work.commit(waiting[done : done + size])
        done += size
        seconds = max(time.monotonic() - began, 1e-3)
        size = int(np.clip(size * COMMIT_SECONDS / seconds, 1, min(2 * size, LARGEST_BATCH)))
        say(f"indexed {min(done, len(waiting)):,}/{len(waiting):,}")
    work.forget_gone()
    return work.summary


def checked_roots(folders: Iterable[str | Path]) -> list[str]:
    """The folders as absolute paths, each once. Errors: DistilhashError for one that is none."""
    roots = sorted({os.path.abspath(Path(folder).expanduser()) for folder in folders})  # noqa: PTH100 (keeps links)
    for root in roots:
        if not Path(root).is_dir():
            raise DistilhashError("there is no such folder", root, "name folders of photos; nothing was changed")
    return roots


def _begin(store: PhotoStore, roots: Sequence[str], encoder: Encoder, rebuild: bool) -> None:
    store.claim()
    about = store.about()
    if "num_bits" in about and "encoder" not in about:
        raise DistilhashError("this index holds codes that are not of photos", store.path, "choose another file")
    if about.get("encoder", encoder.fingerprint) != encoder.fingerprint and not rebuild:
        raise DistilhashError(
            "the index was made with another hasher",
            f"{encoder.path}, instead of {about.get('encoder_path', 'an unknown one')}",
            f"encode everything again with: distilhash index {' '.join(roots)} --hasher {encoder.path} "
            f"--index {store.path} --rebuild",
        )
    with store.writing():
        if about.get("encoder", encoder.fingerprint) != encoder.fingerprint:
            store.clear()
        store.describe(num_bits=str(encoder.num_bits), encoder=encoder.fingerprint, encoder_path=encoder.path)
        store.put_roots(roots)


class _Work:
    """One update: what was known, and what has come of it."""

    def __init__(
        self, store: PhotoStore, encoder: Encoder, known: dict[str, Photo], gone: dict[str, Photo], summary: Summary
    ) -> None:
        self.store, self.encoder, self.known, self.gone, self.summary = store, encoder, known, gone, summary
        self._claimable: defaultdict[bytes, list[Photo]] = defaultdict(list)
        for path in sorted(gone, reverse=True):
            photo = gone[path]
            if photo.content is not None:
                self._claimable[photo.content].append(photo)

    def is_unchanged(self, file: FoundFile) -> bool:
        """Whether a stat is enough."""
        photo = self.known.get(file.path)
        # One that could not even be opened is tried again: permissions change without a trace in size and time.
        same = photo is not None and photo[2:4] == file[1:] and photo.content is not None
        if same and photo is not None:
            self.summary.unchanged += photo.failure is None
            self.summary.failed += photo.failure is not None
        return same

    def commit(self, files: Sequence[FoundFile]) -> None:
        """Read these files and keep what has come of them, in one transaction."""
        photos, coded = self._read(files)
        encoded = self.encoder.encode([photos[i].path for i in coded])
        reasons = {coded[position]: reason for position, reason in encoded.failures.items()}
        rows = {index: row for row, index in enumerate(coded) if index not in reasons}
        settled = [i for i, file in enumerate(files) if _stat(file.path) == file]
        self.summary.unsettled += len(files) - len(settled)
        next_id = self.store.next_id()
        kept, withdrawn, ids, picked = list[Photo](), list[int](), list[int](), list[int]()
        for i in settled:
            photo = photos[i]
            if i in reasons:
                photo = photo._replace(failure=reasons[i])
            old = self.known.get(photo.path) or self.gone.pop(self._old_path.get(i, ""), None)
            if not photo.id:
                photo, next_id = photo._replace(id=next_id), next_id + 1
            kept.append(photo)
            if i in rows:
                ids.append(photo.id)
                picked.append(rows[i])
            if old is not None and old.failure is None and (i in rows or photo.failure is not None):
                withdrawn.append(photo.id)
            self._count(photo, old)
        with self.store.writing():
            self.store.withdraw(np.array(withdrawn, np.int64))
            self.store.put_photos(kept)
            if ids:
                self.store.append(np.array(ids, np.int64), encoded.packed[picked])

    def forget_gone(self) -> None:
        """Drop what is gone and was not found under another name."""
        if self.gone:
            with self.store.writing():
                self.store.drop_photos(self.gone.values())
            self.summary.deleted = len(self.gone)
        self.store.tidy(*self.store.codes())

    def _read(self, files: Sequence[FoundFile]) -> tuple[list[Photo], list[int]]:
        """What is now known of each file, before encoding, and which (positions) must be encoded."""
        photos, coded = list[Photo](), list[int]()
        self._old_path: dict[int, str] = {}  # of those that were renamed
        for i, file in enumerate(files):
            content, failure = _content(file.path)
            old = self.known.get(file.path)
            photo = Photo(0 if old is None else old.id, *file, content, failure)
            if old is None and content is not None and self._claimable[content]:
                old = self._claimable[content].pop()
                self._old_path[i] = old.path
                photo = photo._replace(id=old.id)
            if content is not None and old is not None and old.content == content:
                photo = photo._replace(failure=old.failure)
            elif failure is None:
                coded.append(i)
            photos.append(photo)
        return photos, coded

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
