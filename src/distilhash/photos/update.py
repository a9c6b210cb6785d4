"""Bring an index up to date with its folders, reading only what has changed.

A file whose size and modification time are stored costs one stat. Any other file is hashed: if its content is the
stored one, only its stat is updated; if it is the content of a photo whose file is gone, under whichever folder, that
file was moved and keeps its id and code; else it is encoded. A file that cannot be decoded is stored with the reason,
and tried again when it changes. A file that changes while it is read is left for the next run.

A photo whose file is missing keeps its code and is listed: a disk may not be mounted. ``prune`` drops it, but not what
lies below an indexed folder that is absent, cannot be listed or is empty, as the place of such a disk is; ``forget``
drops all that lies below an indexed folder.

Work is committed every two seconds or so, in the order of the walk. Files that are gone are dropped last, so that a
move is still recognised after a kill, and a resumed run ends in the rows of an uninterrupted one. Codes of another
hasher are made in a file of their own beside the index (``INDEX.rebuild``), whose rows replace those of the index in
one transaction: until then the index is as it was. One file, as each step must survive a kill at the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from distilhash.config import ScanConfig
from distilhash.data.folders import FoundFile, is_below, walk
from distilhash.errors import DistilhashError
from distilhash.hasher import Hasher
from distilhash.photos.catalogue import WAITING, Photo, PhotoStore, is_missing, rebuild_file
from distilhash.photos.encoder import encode_photos
from distilhash.progress import progress

COMMIT_SECONDS = 2.0
FIRST_BATCH, LARGEST_BATCH = 16, 4096  # photos
DIGEST_BYTES = 20


@dataclasses.dataclass
class Summary:
    """What an update did, in photos."""

    added: int = 0
    changed: int = 0
    renamed: int = 0  # also from one indexed folder to another
    deleted: int = 0  # pruned, or forgotten
    unchanged: int = 0
    failed: int = 0  # now without a code, whether tried this time or before
    unsettled: int = 0  # changed while they were read
    failures: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (path, reason) of each that failed
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (folder, reason)
    missing: list[str] = dataclasses.field(default_factory=list)  # kept, though their files are gone
    passed_over: list[str] = dataclasses.field(default_factory=list)  # kept, though the scan leaves their files out
    other_files: dict[str, int] = dataclasses.field(default_factory=dict)  # files that are no images, by their ending


def update(
    store: PhotoStore, folders: Iterable[str | Path], encoder: Hasher, *, scan: ScanConfig | None = None,
    verify: bool = False, prune: bool = False, rebuild: bool = False,
) -> Summary:  # fmt: skip
    """Index every photo below the folders, and list those that are missing there.

    Args:
        folders: none: all folders of the index.
        scan: which files below the folders are photos of the index.
        verify: read the content of every file, and try again those that failed.
        prune: drop photos that are missing or that the scan leaves out.
        rebuild: where the codes are of another hasher, encode all folders of the index again.

    Raises:
        DistilhashError: a folder does not exist, the index is of another hasher, or another process is writing to it.
    """
    roots = checked_roots(folders) or store.roots()
    if not roots:
        raise DistilhashError("there is no folder to index", store.path, "name one")
    store.claim()
    about = store.about()
    if "num_bits" in about and "encoder" not in about:
        raise DistilhashError("this index holds codes that are not of photos", store.path, "choose another file")
    of_another = about.get("encoder", encoder.fingerprint) != encoder.fingerprint
    if of_another and not rebuild:
        got = f"{encoder.path}, instead of {about.get('encoder_path', 'an unknown one')}"
        raise store.other_hasher(got, encoder.path)
    with contextlib.closing(_begun_rebuild(store, encoder)) if of_another else contextlib.nullcontext(store) as target:
        with target.writing():
            target.describe(num_bits=str(encoder.num_bits), encoder=encoder.fingerprint, encoder_path=encoder.path)
            target.put_roots(roots)
        work = _Update(target, target.roots() if of_another else roots, encoder, scan, verify)
        work.encode()
        work.end(prune)
    if of_another:
        store.take_over(target.path)
    _delete_rebuild(store, encoder)
    return work.summary


def forget(store: PhotoStore, folders: Iterable[str | Path]) -> int:
    """Drop indexed folders, which need not exist any more, and the photos that lie below no other one; their number.

    Raises:
        DistilhashError: a folder is not one of the index, or another process is writing to it.
    """
    gone, known = {_absolute(folder) for folder in folders}, set(store.roots())
    for folder in sorted(gone - known):
        raise DistilhashError("the index has no such folder", folder, f"it has: {', '.join(sorted(known)) or 'none'}")
    dropped = [
        photo for photo in store.photos() if is_below(photo.path, gone) and not is_below(photo.path, known - gone)
    ]
    with store.writing():
        store.drop_photos(dropped)
        store.drop_roots(gone)
    return len(dropped)


def checked_roots(folders: Iterable[str | Path]) -> list[str]:
    """The folders as absolute paths, sorted and unique; DistilhashError where one is none."""
    roots = sorted({_absolute(folder) for folder in folders})
    for root in roots:
        if not os.path.isdir(root):  # noqa: PTH112
            raise DistilhashError("there is no such folder", root, "name folders of photos; nothing was changed")
    return roots


def _absolute(folder: str | Path) -> str:
    # Unlike pathlib's, these keep links, and do not raise for "~nobody" or where access is denied.
    return os.path.abspath(os.path.expanduser(folder))  # noqa: PTH100, PTH111


def _begun_rebuild(store: PhotoStore, encoder: Hasher) -> PhotoStore:
    """The index that is to replace this one: begun now, or by a process that was killed, if nothing changed since."""
    path, state = rebuild_file(store.path), store.state()
    with contextlib.suppress(DistilhashError):
        rebuilt = PhotoStore(path)
        about = rebuilt.about()
        if (about.get("encoder"), about.get("rebuilt_from")) == (encoder.fingerprint, state):
            return rebuilt
        rebuilt.close()
    _unlink(path)
    rebuilt = PhotoStore(path)
    rebuilt.begin_rebuild(store)
    with rebuilt.writing():
        rebuilt.describe(encoder=encoder.fingerprint, rebuilt_from=state)
    return rebuilt


def _delete_rebuild(store: PhotoStore, encoder: Hasher) -> None:
    """Delete the file of a rebuild that the index has taken over, also one that was killed before this."""
    path = rebuild_file(store.path)
    if not path.exists():
        return
    with contextlib.suppress(DistilhashError), contextlib.closing(PhotoStore(path)) as rebuilt:
        if rebuilt.about().get("encoder") == encoder.fingerprint:
            _unlink(path)


def _has_code(photo: Photo | None) -> bool:
    return photo is not None and photo.failure is None


def _was_deleted(path: str) -> bool:
    """Whether a missing file lay in a folder that is there, and not behind a link that leads nowhere now."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)  # noqa: PTH120
    return os.path.isdir(path)  # noqa: PTH112


def _is_empty(folder: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return next(entries, None) is None
    return False


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class _Update:
    """One update: what the walk finds held against what is known, encoded, and ended."""

    def __init__(
        self, store: PhotoStore, roots: Sequence[str], encoder: Hasher, scan: ScanConfig | None, verify: bool
    ) -> None:
        self.store, self.encoder, self.verify = store, encoder, verify
        self.known = known = {photo.path: photo for photo in store.photos()}
        files, unreadable, others = walk(roots, scan)
        # A link that leads nowhere any more is a missing file: what it led to may lie on a disk that is not mounted.
        self.files = [file for file in files if file.size >= 0 or not _has_code(known.get(file.path))]
        absent = [root for root in store.roots() if not os.path.isdir(root)]  # noqa: PTH112
        unreadable += [(root, "No such file or directory") for root in absent if root not in roots]
        empty = [root for root in roots if root not in absent and _is_empty(root)]
        unreadable += [(root, "it is empty") for root in empty if any(is_below(path, [root]) for path in known)]
        self.summary = Summary(unreadable=unreadable, other_files=dict(others))
        self._roots = [*roots, *absent]
        # Photos that the walk did not find: by path; by content; and of a content that was found elsewhere, those that
        # are missing, and the others by the path to which links lead.
        self._unseen = {path: known[path] for path in sorted(known.keys() - {file.path for file in self.files})}
        self._lost = defaultdict[bytes | None, list[Photo]](list)
        for photo in reversed(self._unseen.values()):
            self._lost[photo.content].append(photo)
        self._split: dict[bytes, tuple[list[Photo], dict[str, Photo]]] = {}

    def _is_unchanged(self, file: FoundFile) -> bool:
        """Whether the stored size and time are the file's; if so, it is counted."""
        photo = self.known.get(file.path)
        # A file that could not be opened is tried again: new permissions change neither size nor time.
        if self.verify or photo is None or photo.content is None or photo.failure == WAITING:
            return False
        if photo[1:4] != file:
            return False
        self._count(photo, photo)
        return True

    def encode(self) -> None:
        """Read and commit the files that have changed, in batches that take about COMMIT_SECONDS each."""
        files = [file for file in self.files if not self._is_unchanged(file)]
        done, size = 0, FIRST_BATCH
        if not files:
            return
        with progress("indexing", len(files), "photos") as counter:
            while done < len(files):
                began = time.monotonic()
                batch = files[done : done + size]
                try:
                    self._commit(batch)
                except DistilhashError as error:
                    kept = f"{done:,} of {len(files):,} photos are kept, and the same command goes on"
                    raise DistilhashError(error.what, error.got, f"{error.fix}; {kept}".lstrip("; ")) from error
                done += len(batch)
                counter.add(len(batch))
                seconds = max(time.monotonic() - began, 1e-3)
                size = int(np.clip(size * COMMIT_SECONDS / seconds, 1, min(2 * size, LARGEST_BATCH)))

    def _commit(self, files: Sequence[FoundFile]) -> None:
        """Read these files and store the outcome in one transaction."""
        found = [self._read(file) for file in files]
        to_encode = [i for i, (_, _, is_new) in enumerate(found) if is_new]
        packed, failures = encode_photos(self.encoder, [files[i].path for i in to_encode])
        row_of, next_id = {i: row for row, i in enumerate(to_encode)}, self.store.next_id()
        kept, withdrawn, coded = list[Photo](), list[int](), dict[int, int]()  # coded: row of the codes by id
        for i, file in enumerate(files):
            photo, old, is_new = found[i]
            if photo.content is None and _has_code(old):  # what cannot be read just now keeps its code
                self._count(photo, old)
                continue
            if _stat(file.path) != file:
                self.summary.unsettled += 1
                continue
            if is_new and row_of[i] in failures:
                photo = photo._replace(failure=failures[row_of[i]])
            if not photo.id:
                photo, next_id = photo._replace(id=next_id), next_id + 1
            kept.append(photo)
            if is_new and photo.failure is None:
                coded[photo.id] = row_of[i]
            if _has_code(old) and (photo.id in coded or photo.failure is not None):
                withdrawn.append(photo.id)
            if old is not None:
                self._unseen.pop(old.path, None)
            self._count(photo, old)
        with self.store.writing():
            self.store.withdraw(np.array(withdrawn, np.int64))
            self.store.put_photos(kept)
            self.store.append(np.array([*coded], np.int64), packed[[*coded.values()]])

    def end(self, prune: bool) -> None:
        """List the photos below the folders that are missing or left out, drop what is to be, and tidy up."""
        unsure = [folder for folder, _ in self.summary.unreadable]
        dropped = []
        for path, photo in self._unseen.items():
            if not is_below(path, self._roots):
                continue
            missing = is_missing(path)
            sure = not is_below(path, unsure) and (not missing or _was_deleted(path))
            if sure and (prune or (missing and photo.failure not in (None, WAITING))):  # without a code nothing is lost
                dropped.append(photo)
            elif missing:
                self.summary.missing.append(path)
            elif sure:
                self.summary.passed_over.append(path)
        gone = [root for root in self._roots if not os.path.isdir(root)]  # noqa: PTH112
        left = [photo.path for photo in self.store.photos()] if gone else []
        gone = [root for root in gone if not any(is_below(path, [root]) for path in left)]
        if dropped or gone:
            with self.store.writing():
                self.store.drop_photos(dropped)
                self.store.drop_roots(gone)
        self.summary.unreadable = [found for found in self.summary.unreadable if found[0] not in gone]
        self.summary.deleted = len(dropped)
        self.summary.failures.sort()
        self.store.tidy(*self.store.codes())

    def _read(self, file: FoundFile) -> tuple[Photo, Photo | None, bool]:
        """The photo that a file is before encoding, the one that it was, and whether it is to be encoded."""
        content, failure = _content(file.path)
        old = self.known.get(file.path)
        if old is None and content is not None:
            old = self._moved_here(file.path, content)
        known = old is not None and content is not None and old.content == content and old.failure != WAITING
        if old is not None and known and not (self.verify and old.failure is not None):
            failure = old.failure
            return Photo(old.id, *file, content, failure), old, False
        return Photo(0 if old is None else old.id, *file, content, failure), old, failure is None

    def _moved_here(self, path: str, content: bytes) -> Photo | None:
        """The photo that this file was: one of its content that is gone, or that links lead to the same file."""
        if content not in self._split:
            missing = {photo: is_missing(photo.path) for photo in self._lost[content]}
            linked = {os.path.realpath(photo.path): photo for photo, gone in missing.items() if not gone}
            self._split[content] = [photo for photo, gone in missing.items() if gone], linked
        lost, links = self._split[content]
        return links.pop(os.path.realpath(path), None) or (lost.pop() if lost else None)

    def _count(self, photo: Photo, old: Photo | None) -> None:
        if photo.failure is not None:
            self.summary.failed += 1
            self.summary.failures.append((photo.path, photo.failure))
        elif old is None or old.failure == WAITING:
            self.summary.added += 1
        elif old.path != photo.path:
            self.summary.renamed += 1
        elif old.content != photo.content or old.failure is not None:
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
        return FoundFile.of(path, os.stat(path))  # noqa: PTH116
    except OSError:
        return FoundFile(path, -1, 0)
