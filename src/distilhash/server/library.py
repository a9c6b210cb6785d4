"""An index of photos as the service reads it: pages of photos, nearest neighbours, and where the files are.

Requests name photos by id, never by path. A file is opened only if its resolved path lies below an indexed folder, so a
symbolic link or a row of the index that leads elsewhere counts as a missing file.
The models of answers stay beside what fills them.

Shapes: K bits, P = ceil(K / 8) bytes, n hits.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from distilhash.codes import Bytes, hamming
from distilhash.data.folders import is_below
from distilhash.errors import DistilhashError
from distilhash.photos import copies
from distilhash.photos.catalogue import Photo, PhotoStore, is_missing
from distilhash.photos.copies import candidates, date_of
from distilhash.photos.duplicates import near_duplicates, present_groups
from distilhash.retrieval.backends import Ids
from distilhash.retrieval.index import Index

MAX_ID = 2**63 - 1

Id = Annotated[int, Field(ge=0, le=MAX_ID)]
Count = Annotated[int, Field(ge=0)]


class PhotoItem(BaseModel, extra="forbid"):
    """A photo. Its path starts at the indexed folder. The relative addresses change when the file does.

    ``file``: the absolute path; ``size``: bytes; ``date``: of the last change of the file, local time of the server;
    ``missing``: its file is gone, or its disk is not mounted.
    """

    id: Id
    name: str
    path: str
    file: str
    size: int
    date: str
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

    ``query``: null for an upload; ``code``: of an upload, for searching with it again; ``within``: photos within the
    radius, if one is given.
    """

    query: PhotoItem | None
    code: str | None = None
    hits: list[Hit]
    within: Count | None


class Copy(PhotoItem):
    """A photo of a group of near-duplicates: pixels (0 if unreadable), and bits from the best copy."""

    width: Count
    height: Count
    distance: Count


class Folder(BaseModel, extra="forbid"):
    """A folder as paths of photos begin with it, and the number of photos below it."""

    path: str
    photos: Count


class Month(BaseModel, extra="forbid"):
    """A month (2024-05) in which files were last changed, and their number."""

    month: str
    photos: Count


class Places(BaseModel, extra="forbid"):
    """Where photos are, in folders and, newest first, in months."""

    folders: list[Folder]
    months: list[Month]


class _Listing(NamedTuple):
    """The photos of a version of the index, newest first."""

    version: int
    ids: Ids
    changed: Ids  # time of last change, nanoseconds
    places: Ids  # positions in ``folders``
    folders: list[str]


class Library:
    """An index of photos, open for reading from several threads. Raises DistilhashError if it is none."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        if not path.is_file():
            raise DistilhashError("there is no such index", path, "make it with: distilhash index FOLDER")
        self._store, self._index = PhotoStore(path), Index.open(path)
        self._listed: _Listing | None = None
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

    def version(self) -> int:
        """A number that differs after the index was changed."""
        return self._store.version()

    def page(
        self, start: int, limit: int, folder: str = "", since: date | None = None, until: date | None = None
    ) -> tuple[list[ListedPhoto], int]:
        """The photos of a folder and its subfolders ("" for all) and of these days, newest first: a page, and all."""
        listing, roots = self._listing(), self._store.roots()
        wanted = np.ones(len(listing.ids), np.bool_)
        if folder:
            below = [name == folder or name.startswith(f"{folder}/") for name in listing.folders]
            wanted &= np.array([*below, False])[listing.places]
        if since is not None:
            wanted &= listing.changed >= _midnight(since)
        if until is not None:
            wanted &= listing.changed < _midnight(until, 1)
        ids_n = listing.ids[wanted]
        found = self._store.photos_of(ids_n[start : start + limit].tolist())
        photos = [photo for photo in found.values() if photo.failure is None]  # an update may have removed one just now
        if not photos:
            return [], len(ids_n)
        near = self._index.radius(self._index.codes_of([photo.id for photo in photos]), self.near_duplicate_bits)
        items = [
            ListedPhoto(**_fields(photo, roots), near_duplicates=max(0, len(ids) - 1))
            for photo, (ids, _) in zip(photos, near, strict=True)
        ]
        return items, len(ids_n)

    def places(self) -> Places:
        """The folders and months of the photos."""
        listing, counts, months, start = self._listing(), Counter[str](), list[Month](), 0
        for name, count in zip(listing.folders, np.bincount(listing.places, minlength=1).tolist(), strict=False):
            parts = name.split("/")
            counts.update({"/".join(parts[: depth + 1]): count for depth in range(len(parts))})
        while start < len(listing.ids):
            month = datetime.fromtimestamp(int(listing.changed[start]) // 10**9).replace(day=1).date()
            end = int(np.searchsorted(-listing.changed, -_midnight(month), side="right"))
            months.append(Month(month=f"{month:%Y-%m}", photos=end - start))
            start = end
        return Places(folders=[Folder(path=path, photos=counts[path]) for path in sorted(counts)], months=months)

    def _listing(self) -> _Listing:
        version = self.version()
        if self._listed is None or self._listed.version != version:
            rows, roots, folders = self._store.newest(), self._store.roots(), dict[str, int]()
            known = {os.path.dirname(path) for _, path, _ in rows}  # noqa: PTH120
            shown = {folder: _printable(_relative(folder, roots)).replace(os.sep, "/") for folder in known}
            for name in shown.values():
                folders.setdefault(name, len(folders))
            self._listed = _Listing(
                version, np.array([identity for identity, _, _ in rows], np.int64),
                np.array([changed for _, _, changed in rows], np.int64),
                np.array([folders[shown[os.path.dirname(path)]] for _, path, _ in rows], np.int64),  # noqa: PTH120
                list(folders),
            )  # fmt: skip
        return self._listed

    def near_copies(self) -> tuple[list[Photo], Bytes]:
        """The photos that have a near-duplicate, and their codes (n, P)."""
        photos, codes_nP, _ = candidates(self._store, self.near_duplicate_bits)
        return photos, codes_nP

    def copies(self, groups: Iterable[Iterable[copies.Copy]]) -> list[list[Copy]]:
        """Groups of near-duplicates as a client sees them."""
        roots = self._store.roots()
        return [
            [
                Copy(**_fields(copy.photo, roots), width=copy.size[0], height=copy.size[1], distance=copy.distance)
                for copy in group
            ]
            for group in groups
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


def _midnight(day: date, later: int = 0) -> int:
    """When a day begins in local time, or the one so many days later, nanoseconds since 1970."""
    day = min(max(day, date(1678, 1, 1)), date(2261, 12, 1)) + timedelta(days=later)  # what 64 bits of them hold
    return int(datetime.combine(day, time()).timestamp()) * 10**9


def _relative(path: str, roots: list[str]) -> str:
    root = next((root for root in sorted(roots, key=len, reverse=True) if is_below(path, [root])), "")
    return os.path.relpath(path, os.path.dirname(root)) if root else os.path.basename(path)  # noqa: PTH119, PTH120


def _fields(photo: Photo, roots: list[str]) -> dict[str, Any]:
    version = f"{photo.size & 0xFFFFFFFF:x}-{photo.changed_ns & 0xFFFFFFFFFFFFFFFF:x}"
    return {
        "id": photo.id,
        "name": _printable(os.path.basename(photo.path)),  # noqa: PTH119
        "path": _printable(_relative(photo.path, roots)),
        "file": _printable(photo.path),
        "size": photo.size,
        "date": date_of(photo),
        "missing": is_missing(photo.path),
        "thumbnail": f"api/photos/{photo.id}/thumbnail?version={version}",
        "image": f"api/photos/{photo.id}/image?version={version}",
    }


def _printable(path: str) -> str:
    """Text that JSON can carry: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
