"""Where images come from: the protocol of a source, arrays, files, subsets, and which images can be read.

An image is what it holds: its digest is BLAKE2b with 16 bytes of a file's content (what ``b2sum -l 128`` prints) or of
an array's pixels. Dates, roots and positions are never part of an identity.

Shapes: N images, n images of a batch, C classes, H, W sides in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.prefetch import cores, prefetch
from distilhash.errors import DistilhashError
from distilhash.progress import progress

Images = NDArray[np.uint8] | list[Image.Image]  # (n, H, W, 3) of an array, or n files in mode RGB
Labels = NDArray[np.int64] | NDArray[np.uint8] | None  # (N,) classes, or (N, C) of 0/1
T = TypeVar("T")

CHECKED = 16  # images that a thread reads in one go
DIGEST_BYTES = 16


class ImageSource(Protocol):
    """What every source of images has."""

    names: list[str]  # N, each one's identity in codes, splits and reports
    class_names: list[str]  # C; none where there are no labels
    decodes: bool  # whether read() opens files, so that a single image may take much memory

    @property
    def labels(self) -> Labels:
        """(N,) int64 classes, (N, C) uint8 of 0/1, or None."""

    @property
    def digests(self) -> NDArray[np.uint8]:
        """(N, 16) uint8: equal content, equal digest. Zeros for a file that cannot be opened."""

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of names, digests and labels: other images, other fingerprint."""

    def __len__(self) -> int:
        """The number of images."""

    def read(self, indices: ArrayLike) -> Images:
        """The images of these indices. Raises UnreadableImage."""


class Fingerprinted:
    """A source whose fingerprint follows from its other parts."""

    names: list[str]
    labels: Labels
    digests: NDArray[np.uint8]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of names, digests and labels."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        digest.update(self.digests.tobytes())
        if self.labels is not None:
            digest.update(f"{self.labels.dtype} {self.labels.shape}".encode() + self.labels.tobytes())
        return digest.hexdigest()[:16]


class ArraySource(Fingerprinted):
    """Images that are already an array.

    Args:
        images: uint8 (N, H, W, 3), in memory or memory-mapped.
        labels, names, class_names: as in ImageSource; names left out: 00000 and so on.
        fingerprint: spares the hashing where the caller already knows it.

    Raises:
        DistilhashError: another type or shape.
    """

    decodes = False

    def __init__(
        self,
        images: NDArray[np.uint8], labels: ArrayLike | None = None, names: Sequence[str] | None = None,
        class_names: Sequence[str] = (), fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
            raise DistilhashError("images must be uint8 of shape (N, H, W, 3)", f"{images.dtype} {images.shape}")
        self.images = images
        self.names = [f"{i:05d}" for i in range(len(images))] if names is None else list(names)
        if len(self.names) != len(images):
            raise DistilhashError("every image needs one name", f"{len(self.names)} names for {len(images)} images")
        self.labels = _checked_labels(labels, len(images))
        self.class_names = list(class_names)
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """(N, 16) of each image's shape and pixels."""
        return digests_of(np.asarray(self.images))  # rows of a memory map are slow to make

    def read(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """The images of these indices, uint8 (n, H, W, 3), a copy."""
        return self.images[np.asarray(indices, np.int64)]


class FileSource(Fingerprinted):
    """Images that are files.

    Args:
        paths: of the files, N.
        names, labels, class_names: as in ImageSource.
    """

    decodes = True

    def __init__(self, paths: Sequence[str], names: Sequence[str], labels: Labels, class_names: Sequence[str]) -> None:
        self.paths = list(paths)
        self.names = list(names)
        self.labels = labels
        self.class_names = list(class_names)
        self._digests: dict[int, bytes] = {}

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """(N, 16) of each file's content; read once, by find_unreadable() where that came before."""
        unread = [index for index in range(len(self)) if index not in self._digests]
        if unread:
            _each("hash images", self.digest, unread)
        return _rows([self._digests.pop(index) for index in range(len(self))])

    def digest(self, index: int) -> None:
        """Read one file for ``digests``."""
        self._digests[index] = digest_file(self.paths[index])

    def read(self, indices: ArrayLike) -> list[Image.Image]:
        """The n images of these indices, decoded to mode RGB."""
        indices_n = np.asarray(indices, np.int64)
        return [decode_image(Path(self.paths[i]), self.names[i]) for i in indices_n]


class Subset(Fingerprinted):
    """Some images of a source, in the order of ``indices``."""

    def __init__(self, source: ImageSource, indices: ArrayLike) -> None:
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        if self.indices.ndim != 1 or self.indices.size == 0:
            raise DistilhashError("a subset needs at least one index, in one dimension", f"shape {self.indices.shape}")
        if self.indices.min() < 0 or self.indices.max() >= len(source):
            got = f"{self.indices.min()}..{self.indices.max()} for {len(source)} images"
            raise DistilhashError("an index lies outside the source", got)
        self.names = [source.names[i] for i in self.indices]
        self.labels: Labels = None if source.labels is None else source.labels[self.indices]
        self.class_names = source.class_names
        self.decodes = source.decodes

    def __len__(self) -> int:
        """The number of images."""
        return len(self.indices)

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """(N, 16), as the source has them."""
        return self.source.digests[self.indices]

    def read(self, indices: ArrayLike) -> Images:
        """The images of these indices of the subset."""
        return self.source.read(self.indices[np.asarray(indices, np.int64)])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Which images of a source can be read."""

    total: int
    readable: NDArray[np.int64]  # indices
    unreadable: list[tuple[str, str]]  # (name, reason)

    def summary(self, shown: int = 3) -> str:
        """One line for a person, where some cannot."""
        first = ", ".join(f"{name} ({reason})" for name, reason in self.unreadable[:shown])
        more = ", ..." if len(self.unreadable) > shown else ""
        return f"{len(self.unreadable)} of {self.total} images cannot be read and are left out: {first}{more}"


def find_unreadable(source: ImageSource) -> Report:
    """Decode every image once, on every core; of files the digest is taken, too, while they are at hand."""
    if isinstance(source, ArraySource):
        return Report(total=len(source), readable=np.arange(len(source)), unreadable=[])

    def reason(index: int) -> str | None:
        if isinstance(source, FileSource):
            source.digest(index)
        try:
            source.read([index])
        except UnreadableImage as error:
            return error.reason
        return None

    reasons = _each("check images", reason, range(len(source)))
    unreadable = [(name, reason) for name, reason in zip(source.names, reasons, strict=True) if reason is not None]
    readable_N = np.array([reason is None for reason in reasons], bool)
    return Report(total=len(source), readable=np.flatnonzero(readable_N), unreadable=unreadable)


def readable(source: ImageSource) -> tuple[ImageSource, Report]:
    """The source, or the part of it that can be read, and the report. Raises DistilhashError where that is none."""
    report = find_unreadable(source)
    if len(report.readable) == 0:
        name, reason = report.unreadable[0]
        raise DistilhashError("none of the images can be read", f"{report.total} of them, such as {name} ({reason})")
    return (Subset(source, report.readable) if report.unreadable else source), report


def digest_file(path: str) -> bytes:
    """The digest of a file's content; zeros where it cannot be opened."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a Path a file is slow)
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()
    except (OSError, ValueError):
        return bytes(DIGEST_BYTES)


def keys_of(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """(N,) one comparable value for each digest (N, 16), for sets of them."""
    keys: NDArray[np.bytes_] = np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").ravel()
    return keys


def count_seen(source: ImageSource, indices: NDArray[np.int64], seen: NDArray[np.uint8]) -> int:
    """How many of these images are among those with the digests ``seen`` (M, 16), under whatever name."""
    return int(np.isin(keys_of(source.digests[indices]), keys_of(seen)).sum())


def digests_of(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(N, 16): the digest of each array's shape and pixels."""
    hashes = (hashlib.blake2b(str(i.shape).encode() + i.tobytes(), digest_size=DIGEST_BYTES) for i in images)
    return _rows([found.digest() for found in hashes])


def _rows(digests: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def _each(what: str, work: Callable[[int], T], indices: Sequence[int]) -> list[T]:
    """``work`` of every index, on every core."""
    found: list[T] = []
    blocks = [indices[start : start + CHECKED] for start in range(0, len(indices), CHECKED)]
    with progress(what, len(indices)) as counter:
        for part in prefetch(lambda block: list(map(work, block)), blocks, ahead=2 * cores(), threads=cores()):
            found += part
            counter.add(len(part))
    return found


def _checked_labels(labels: ArrayLike | None, count: int) -> Labels:
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.ndim not in (1, 2) or len(array) != count or array.dtype.kind not in "iub":
        got = f"{array.dtype} {array.shape} for {count} images"
        raise DistilhashError("labels must be integers of shape (N,) or (N, C)", got)
    if array.size and (array.min() < 0 or (array.ndim == 2 and array.max() > 1)):
        what = "labels must be 0, 1, ... (classes) or 0/1 (one column a class)"
        raise DistilhashError(what, f"{array.min()}..{array.max()}")
    return array.astype(np.int64) if array.ndim == 1 else array.astype(np.uint8)
