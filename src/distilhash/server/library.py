"""An index of photos as the service reads it: pages of photos, nearest neighbours, and where the files are.

Requests name photos by id, never by path. A file is opened only if its resolved path lies below an indexed folder, so a
symbolic link or a row of the index that leads elsewhere counts as a missing file.

Shapes: K bits, P = ceil(K / 8) bytes, n hits.
"""

import os
import stat
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from distilhash.codes import Bytes, hamming
from distilhash.data.folders import is_below
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import Photo, PhotoStore, is_missing
from distilhash.photos.duplicates import near_duplicates, present_groups
from distilhash.retrieval.index import Index

MAX_ID = 2**63 - 1

Id = Annotated[int, Field(ge=0, le=MAX_ID)]
Count = Annotated[int, Field(ge=0)]


class PhotoItem(BaseModel, extra="forbid"):
    """A photo. Its path starts at the indexed folder. The relative addresses change when the file does.

    ``missing``: its file is gone, or its disk is not mounted.
    """

    id: Id
    name: str
    path: str
    missing: bool
    thumbnail: str
    image: str


class ListedPhoto(PhotoItem):
    """A photo, with the number of its near-duplicates in the index."""

    near_duplicates: Count


class Hit(ListedPhoto):
    """A photo near a query.

    ``like``: the first nearer hit of which it is a near-duplicate. ``near_duplicates``: how many hits were left out as
    near-duplicates of this one; 0 where hits are not grouped.
    """

    distance: Count
    near_duplicate: bool
    like: Id | None


class Neighbours(BaseModel, extra="forbid"):
    """Hits, nearest first, but those that are missing last.

    ``query``: null for an upload; ``within``: photos within the radius, if one is given.
    """

    query: PhotoItem | None
    hits: list[Hit]
    within: Count | None


class Library:
    """An index of photos, open for reading from several threads. Raises DistilhashError if it is none."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        if not path.is_file():
            raise DistilhashError("there is no such index", path, "make it with: distilhash index FOLDER")
        self._store, self._index = PhotoStore(path), Index.open(path)
        if "encoder" not in self.about():
            raise DistilhashError("this index holds no photos", path, "make one with: distilhash index FOLDER")

    def __len__(self) -> int:
        """The number of photos that have a code."""
        return len(self._index)

    @property
    def num_bits(self) -> int:
        """K; 0 for an empty index."""
        return self._index.num_bits or 0

    @property
    def near_duplicate_bits(self) -> int:
        """In how many bits near-duplicates differ at most."""
        return near_duplicates(self.about()).bits

    def about(self) -> dict[str, str]:
        """What the index stores about the hasher that made it."""
        return self._store.about()

    def close(self) -> None:
        """Close the file."""
        self._index.close()
        self._store.close()

    def page(self, after: int, limit: int) -> list[ListedPhoto]:
        """The first ``limit`` photos whose id is greater than ``after``, by id."""
        photos, roots = self._store.page(after, limit), self._store.roots()
        if not photos:
            return []
        near = self._index.radius(self._index.codes_of([photo.id for photo in photos]), self.near_duplicate_bits)
        return [
            ListedPhoto(**_fields(photo, roots), near_duplicates=max(0, len(ids) - 1))
            for photo, (ids, _) in zip(photos, near, strict=True)
        ]

    def photo(self, photo_id: int) -> Photo | None:
        """The photo with this id; None if there is none, or it has no code."""
        photo = self._store.photos_of([photo_id]).get(photo_id)
        return photo if photo is not None and photo.failure is None else None

    def search(self, query: Photo | Bytes, top: int, radius: int | None = None, group: bool = False) -> Neighbours:
        """The nearest photos to a packed code (1, P), or to a photo of the index, without itself.

        Args:
            top: most hits.
            radius: largest distance in bits; None for any.
            group: leave out near-duplicates of a nearer hit, and count them there.

        Raises:
            DistilhashError: the photo is gone.
        """
        near, roots, own, item = self.near_duplicate_bits, self._store.roots(), -1, None
        if isinstance(query, Photo):
            own, item, query = query.id, PhotoItem(**_fields(query, roots)), self._index.codes_of([query.id])
        groups, photos, _ = present_groups(
            self._store.photos_of, self._index, query, near if group else None, limit=top, within=radius, skip=[own]
        )
        within = None if radius is None else int((self._index.radius(query, radius)[0][0] != own).sum())
        groups = [group for group in groups if group[0][0] in photos]  # an update may have removed one just now
        ids_n = np.array([ids[0] for ids, _ in groups], np.int64)
        codes_nP = self._index.codes_of(ids_n)
        hits = []
        for row, (ids, away) in enumerate(groups):
            like = int((hamming(codes_nP[row : row + 1], codes_nP)[0] <= near).argmax())  # at the latest the hit itself
            hits.append(
                Hit(
                    **_fields(photos[int(ids[0])], roots), distance=int(away[0]), near_duplicate=bool(away[0] <= near),
                    near_duplicates=len(ids) - 1, like=int(ids_n[like]) if like < row else None,
                )
            )  # fmt: skip
        return Neighbours(query=item, hits=hits, within=within)

    def file_of(self, photo: Photo) -> Path | None:
        """The resolved path of a photo's file; None unless it is a regular file below an indexed folder."""
        roots = self._store.roots()
        try:
            real = Path(photo.path).resolve(strict=True)
            inside = is_below(str(real), [str(Path(root).resolve()) for root in roots])
            return real if inside and stat.S_ISREG(real.stat().st_mode) else None
        except (OSError, RuntimeError, ValueError):  # a loop of links is a RuntimeError up to Python 3.12
            return None


def _fields(photo: Photo, roots: list[str]) -> dict[str, Any]:
    root = next((root for root in sorted(roots, key=len, reverse=True) if is_below(photo.path, [root])), "")
    relative = os.path.relpath(photo.path, os.path.dirname(root)) if root else os.path.basename(photo.path)  # noqa: PTH119, PTH120
    version = f"{photo.size & 0xFFFFFFFF:x}-{photo.changed_ns & 0xFFFFFFFFFFFFFFFF:x}"
    return {
        "id": photo.id,
        "name": _printable(os.path.basename(photo.path)),  # noqa: PTH119
        "path": _printable(relative),
        "missing": is_missing(photo.path),
        "thumbnail": f"api/photos/{photo.id}/thumbnail?version={version}",
        "image": f"api/photos/{photo.id}/image?version={version}",
    }


def _printable(path: str) -> str:
    """Text that JSON can carry: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
