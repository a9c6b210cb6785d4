"""What the service knows of an index: its photos page by page, their neighbours, and where their files are.

Ids come in, never paths. A file is opened only where it lies below a folder that was indexed, once every link on the
way is resolved: a row or a link that leads elsewhere is as good as no file.

Shapes: K bits, P = ceil(K / 8) bytes, n hits.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.codes import Bytes, hamming
from distilhash.data.walk import is_below
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import Photo, PhotoStore
from distilhash.retrieval.index import Index

NEAR_DUPLICATE = 2  # bits
LARGEST_ID = 2**63 - 1


class Library:
    """An index of photos, open for reading, also from several threads. Errors: DistilhashError where there is none."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DistilhashError("there is no such index", path, "make it with: distilhash index FOLDER")
        self.path, self._mutex = path, threading.Lock()
        self._store, self._index = PhotoStore(path), Index.open(path)
        if "encoder" not in self.about():
            raise DistilhashError("this index holds no photos", path, "make one with: distilhash index FOLDER")

    def __len__(self) -> int:
        """The number of photos that have a code."""
        return len(self._index)

    @property
    def num_bits(self) -> int:
        """K."""
        return self._index.num_bits or 0

    def about(self) -> dict[str, str]:
        """What the index says of the hasher that made it."""
        with self._mutex:
            return self._store.about()

    def close(self) -> None:
        """Close the file."""
        self._index.close()
        with self._mutex:
            self._store.close()

    def page(self, after: int, limit: int) -> list[dict[str, Any]]:
        """The next photos by id, each with the number of others that are nearly the same."""
        with self._mutex:
            photos, roots = self._store.page(after, limit), self._store.roots()
        found = [described(photo, roots) for photo in photos]
        if found:
            near = self._index.radius(self._index.codes_of([photo.id for photo in photos]), NEAR_DUPLICATE)
            for row, (ids, _) in zip(found, near, strict=True):
                row["near_duplicates"] = max(0, len(ids) - 1)
        return found

    def photo(self, identity: int) -> Photo | None:
        """The photo with this id; None where there is none with a code."""
        if not 0 <= identity <= LARGEST_ID:
            return None
        with self._mutex:
            photo = self._store.photos_of([identity]).get(identity)
        return photo if photo is not None and photo.failure is None else None

    def described(self, photo: Photo) -> dict[str, Any]:
        """A photo as the service shows it."""
        with self._mutex:
            return described(photo, self._store.roots())

    def code_of(self, identity: int) -> Bytes:
        """The code (1, P) of an id. Errors: DistilhashError for one that is not there."""
        return self._index.codes_of([identity])

    def near(self, code_1P: Bytes, top: int, radius: int | None, own: int | None) -> dict[str, Any]:
        """The nearest photos to a code, but ``own``; with a radius, in bits, also how many are so near."""
        count = None
        if radius is None:
            wanted = min(top + 1, max(1, len(self._index)))
            every_id, every_distance = self._index.search(code_1P, wanted)
            ids, distances = every_id[0], every_distance[0]
        else:
            ids, distances = self._index.radius(code_1P, radius)[0]
        keep = (ids >= 0) & (ids != (-1 if own is None else own))
        ids, distances = ids[keep], distances[keep]
        if radius is not None:
            count = len(ids)
        ids, distances = ids[:top], distances[:top]
        with self._mutex:
            photos, roots = self._store.photos_of(ids.tolist()), self._store.roots()
        there = np.array([identity in photos for identity in ids.tolist()], np.bool_)  # it may have gone just now
        ids, distances = ids[there], distances[there]
        hits = [
            {
                **described(photos[identity], roots),
                "distance": distance,
                "near_duplicate": distance <= NEAR_DUPLICATE,
                "like": like,
            }
            for identity, distance, like in zip(ids.tolist(), distances.tolist(), self._leaders(ids), strict=True)
        ]
        return {"hits": hits, "within": count}

    def _leaders(self, ids: Any) -> list[int | None]:
        """For each hit the first nearer hit of which it is a near-duplicate."""
        if not len(ids):
            return []
        codes = self._index.codes_of(ids)
        close = hamming(codes, codes) <= NEAR_DUPLICATE
        firsts = close.argmax(axis=1)
        return [int(ids[first]) if first < row else None for row, first in enumerate(firsts.tolist())]

    def place(self, photo: Photo) -> Path | None:
        """The real path of a photo's file; None where there is none below the folders that were indexed."""
        with self._mutex:
            roots = self._store.roots()
        try:
            real = Path(photo.path).resolve(strict=True)
            inside = is_below(str(real), [str(Path(root).resolve()) for root in roots])
            return real if inside and stat.S_ISREG(real.stat().st_mode) else None
        except (OSError, RuntimeError, ValueError):  # a loop of links is a RuntimeError up to Python 3.12
            return None


def described(photo: Photo, roots: list[str]) -> dict[str, Any]:
    """A photo as the service shows it: no path above the folder that was indexed."""
    root = next((root for root in sorted(roots, key=len, reverse=True) if is_below(photo.path, [root])), "")
    relative = os.path.relpath(photo.path, os.path.dirname(root)) if root else os.path.basename(photo.path)  # noqa: PTH119, PTH120
    version = f"{photo.size & 0xFFFFFFFF:x}-{photo.changed_ns & 0xFFFFFFFFFFFFFFFF:x}"
    return {
        "id": photo.id,
        "name": _shown(os.path.basename(photo.path)),  # noqa: PTH119
        "path": _shown(relative),
        "thumbnail": f"/api/photos/{photo.id}/thumbnail?version={version}",
        "image": f"/api/photos/{photo.id}/image?version={version}",
    }


def _shown(path: str) -> str:
    """Text that JSON can carry: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
