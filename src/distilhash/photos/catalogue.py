"""The photo catalogue of an index: which file an id is, as it was when it was read, or why it has no code.

Paths are absolute, and stored as the bytes of the operating system.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilhash.errors import DistilhashError
from distilhash.retrieval.store import Store, text_bytes

WAITING = "not encoded since the index was rebuilt"  # the failure of a photo whose file a rebuild did not find


class Photo(NamedTuple):
    """A file, as it was when it was last read."""

    id: int
    path: str
    size: int  # bytes
    changed_ns: int  # time of last change, nanoseconds
    content: bytes | None  # hash of the content; None where it could not be read
    failure: str | None  # why it has no code


def rebuild_file(index: str | Path) -> Path:
    """Where an index is built again, before that takes its place."""
    index = Path(index)
    return index.with_name(f"{index.name}.rebuild")


def is_missing(path: str) -> bool:
    """Whether there is no file at this path; False where access is denied or the disk fails, as nobody knows."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


_KINDS: tuple[Any, ...] = (int, bytes, int, int, (bytes, type(None)), (str, type(None)))


class PhotoStore(Store):
    """An index file whose ids are photos. Reading raises DistilhashError where the file is damaged."""

    def photos(self) -> list[Photo]:
        """Every file that was read, by id."""
        return [self._photo(row) for row in self.rows("SELECT * FROM photos ORDER BY id")]

    def photos_of(self, ids: Iterable[int]) -> dict[int, Photo]:
        """The photos with these ids, by id; unknown ids are left out."""
        query = "SELECT * FROM photos WHERE id = ?"
        return {identity: self._photo(row) for identity in ids for row in self.rows(query, (identity,))}

    def newest(self) -> list[tuple[int, str, int]]:
        """Id, path and time of last change of the photos with a code, newest first, then by id."""
        rows = self.rows("SELECT * FROM photos WHERE failure IS NULL ORDER BY changed_ns DESC, id")
        return [(photo.id, photo.path, photo.changed_ns) for photo in map(self._photo, rows)]

    def roots(self) -> list[str]:
        """The folders that were indexed."""
        return [self._path(path) for (path,) in self.rows("SELECT path FROM roots ORDER BY path")]

    def put_roots(self, roots: Iterable[str]) -> None:
        """Add indexed folders. Call it inside writing(), like drop_roots, put_photos and drop_photos."""
        self.many("INSERT OR IGNORE INTO roots VALUES (?)", ((os.fsencode(root),) for root in roots))

    def drop_roots(self, roots: Iterable[str]) -> None:
        """Forget indexed folders, but not the photos below them."""
        self.many("DELETE FROM roots WHERE path = ?", ((os.fsencode(root),) for root in roots))

    def put_photos(self, photos: Iterable[Photo]) -> None:
        """Add photos, or replace those with the same ids."""
        values = (
            (identity, os.fsencode(path), size, changed, content, None if failure is None else text_bytes(failure))
            for identity, path, size, changed, content, failure in photos
        )
        self.many("INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?, CAST(? AS TEXT))", values)

    def next_id(self) -> int:
        """The first id that was never used."""
        ((highest,),) = self.rows("SELECT seq FROM sqlite_sequence WHERE name = 'photos'") or [(0,)]
        if not isinstance(highest, int) or highest < 0:
            raise self.damaged("its count of photos is not one")
        return highest + 1

    def drop_photos(self, photos: Iterable[Photo]) -> None:
        """Delete photos and their codes."""
        gone = list(photos)
        self.withdraw(np.array([photo.id for photo in gone if photo.failure is None], np.int64))
        self.many("DELETE FROM photos WHERE id = ?", ((photo.id,) for photo in gone))

    def begin_rebuild(self, other: PhotoStore) -> None:
        """Fill this new file with the folders and photos of an index, none of them encoded, under the same ids."""
        with self.writing():
            self.put_roots(other.roots())
            self.put_photos(photo._replace(failure=WAITING) for photo in other.photos())
            self.many("DELETE FROM sqlite_sequence", [()])
            self.many("INSERT INTO sqlite_sequence VALUES ('photos', ?)", [(other.next_id() - 1,)])

    def state(self) -> str:
        """A hash of the photos and folders, which tells whether anything was written since."""
        digest = hashlib.sha256()
        for photo in self.photos():
            digest.update(repr(photo).encode())
        digest.update(repr((self.roots(), self.next_id())).encode())
        return digest.hexdigest()[:16]

    def other_hasher(self, got: object, hasher: object) -> DistilhashError:
        """The error for a hasher that did not make this index."""
        words = ["distilhash", "index", "--hasher", str(hasher), "--index", str(self.path), "--rebuild"]
        fix = f"name that one with --hasher, or encode the photos again with: {shlex.join(words)}"
        return DistilhashError("the index was made with another hasher", got, fix)

    def _photo(self, row: tuple[Any, ...]) -> Photo:
        if not all(isinstance(value, kind) for value, kind in zip(row, _KINDS, strict=True)):
            raise self.damaged("a photo has values of a wrong type")
        return Photo(row[0], self._path(row[1]), *row[2:])

    def _path(self, path: Any) -> str:
        if not isinstance(path, bytes) or b"\0" in path or not path:
            raise self.damaged("a path is none")
        return os.fsdecode(path)
