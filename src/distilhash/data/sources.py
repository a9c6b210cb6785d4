"""Where images come from: arrays, files, subsets, and which images can be read.

An image is what it holds: its digest is BLAKE2b with 16 bytes of a file's content (what ``b2sum -l 128`` prints) or of
an array's pixels. Dates, roots and positions are never part of an identity. One file, as all sources share it.

Shapes: N images, n images of a batch, C classes, H, W sides in pixels.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from distilhash.data.decode import UnreadableImage, decode_image, upright_rgb
from distilhash.data.prefetch import cores, prefetch
from distilhash.errors import DistilhashError
from distilhash.progress import progress

Images = NDArray[np.uint8] | list[Image.Image]  # (n, H, W, 3) of an array, or n files in mode RGB
Labels = NDArray[np.int64] | NDArray[np.uint8] | None  # (N,) classes, or (N, C) of 0/1
Given = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]  # a path, or an image in memory
T = TypeVar("T")

CHECKED = 16  # images that a thread reads in one go
DIGEST_BYTES = 16


class ImageSource:
    """What every source of images has. A subclass gives names, digests and read()."""

    names: list[str]  # N, each one's identity in codes, splits and reports
    labels: Labels = None
    class_names: list[str] = []  # noqa: RUF012 (C, none where there are no labels; never changed in place)
    lists: Mapping[str, NDArray[np.int64]] = {}
    decodes = False  # whether read() opens files, so that a single image may take much memory

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """(N, 16) uint8: equal content, equal digest. Zeros for a file that cannot be opened."""
        raise NotImplementedError

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of names, digests and labels: other images, other fingerprint."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        digest.update(self.digests.tobytes())
        if self.labels is not None:
            digest.update(f"{self.labels.dtype} {self.labels.shape}".encode() + self.labels.tobytes())
        return digest.hexdigest()[:16]

    def read(self, indices: ArrayLike) -> Images:
        """The images of these indices, a copy. Raises UnreadableImage."""
        raise NotImplementedError


class ArraySource(ImageSource):
    """Images that are already an array.

    Args:
        images: uint8 (N, H, W, 3), in memory or memory-mapped.
        labels, names, class_names: as in ImageSource; names left out: 00000 and so on.
        fingerprint: spares the hashing where the caller already knows it.

    Raises:
        DistilhashError: another type or shape.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: ArrayLike | None = None, names: Sequence[str] | None = None,
        class_names: Sequence[str] = (), fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
            raise DistilhashError("images must be uint8 of shape (N, H, W, 3)", f"{images.dtype} {images.shape}")
        self.images = images
        self.names = [f"{i:05d}" for i in range(len(images))] if names is None else list(names)
        if len(self.names) != len(images):
            raise DistilhashError("every image needs one name", f"{len(self.names)} names for {len(images)} images")
        self.labels = None if labels is None else checked_labels(np.asarray(labels), len(images))
        self.class_names = list(class_names)
        if fingerprint is not None:
            self.fingerprint = fingerprint

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """(N, 16) of each image's shape and pixels."""
        return digests_of(np.asarray(self.images))  # rows of a memory map are slow to make

    def read(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """The images of these indices, uint8 (n, H, W, 3), a copy."""
        return self.images[np.asarray(indices, np.int64)]


class FileSource(ImageSource):
    """Images that are files, N paths with a name each."""

    decodes = True

    def __init__(self, paths: Sequence[str], names: Sequence[str]) -> None:
        self.paths, self.names = list(paths), list(names)
        self._digests: dict[int, bytes] = {}

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
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
        return [decode_image(Path(self.paths[i]), self.names[i]) for i in np.asarray(indices, np.int64)]


class GivenSource(ImageSource):
    """Images as a caller has them: paths, PIL images, or uint8 arrays (H, W, 3) of any sizes, also side by side.

    The name of a file is its path, that of an image in memory its position.
    """

    def __init__(self, images: Sequence[Given]) -> None:
        if isinstance(images, str | os.PathLike | Image.Image):
            raise DistilhashError("images are given as a list", type(images).__name__, "write [image]")
        self.images = images
        self.names = [str(image) if _is_path(image) else f"{i:05d}" for i, image in enumerate(images)]
        self.decodes = any(map(_is_path, images))
        for image in images:
            if not _is_path(image) and not isinstance(image, Image.Image):
                _checked_array(image)

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """(N, 16): of a file its content, of an image in memory its shape and pixels."""
        images = map(self._image, range(len(self)))
        return _rows([digest_file(str(i)) if _is_path(i) else _digest(np.asarray(_rgb(i, ""))) for i in images])

    def read(self, indices: ArrayLike) -> list[Image.Image]:
        """The images of these indices in mode RGB."""
        found = []
        for index in np.asarray(indices, np.int64).tolist():
            image, name = self._image(index), self.names[index]
            try:
                found.append(_rgb(image, name))
            except (OSError, ValueError) as error:
                raise error if isinstance(error, DistilhashError) else UnreadableImage(name, str(error)) from error
        return found

    def _image(self, index: int) -> Given:
        return self.images[index]


class Subset(ImageSource):
    """Some images of a source, in the order of ``indices``."""

    def __init__(self, source: ImageSource, indices: ArrayLike) -> None:
        self.source, self.indices = source, np.asarray(indices, np.int64)
        if self.indices.ndim != 1 or self.indices.size == 0:
            raise DistilhashError("a subset needs at least one index, in one dimension", f"shape {self.indices.shape}")
        if self.indices.min() < 0 or self.indices.max() >= len(source):
            got = f"{self.indices.min()}..{self.indices.max()} for {len(source)} images"
            raise DistilhashError("an index lies outside the source", got)
        self.names = [source.names[i] for i in self.indices]
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.class_names, self.decodes = source.class_names, source.decodes
        places = {index: place for place, index in enumerate(self.indices.tolist())}
        self.lists = {
            name: np.array([places[index] for index in listed.tolist() if index in places], np.int64)
            for name, listed in source.lists.items()
        }

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """(N, 16), as the source has them."""
        return self.source.digests[self.indices]

    def read(self, indices: ArrayLike) -> Images:
        """The images of these indices of the subset."""
        return self.source.read(self.indices[np.asarray(indices, np.int64)])


class Report(NamedTuple):
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

    def reason(index: int) -> str | None:
        if isinstance(source, FileSource):
            source.digest(index)
        try:
            source.read([index])
        except UnreadableImage as error:
            return error.reason
        return None

    reasons = _each("check images", reason, range(len(source))) if source.decodes else [None] * len(source)
    unreadable = [(name, reason) for name, reason in zip(source.names, reasons, strict=True) if reason is not None]
    return Report(len(source), np.flatnonzero([reason is None for reason in reasons]), unreadable)


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


def digests_of(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(N, 16): the digest of each array's shape and pixels."""
    return _rows([_digest(image) for image in images])


def first_copies(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N,) of each image the first one with its digest: itself where it is no copy."""
    _, first, copies = np.unique(_keys(digests), return_index=True, return_inverse=True)
    return first[copies.ravel()]


def count_seen(source: ImageSource, indices: NDArray[np.int64], seen: NDArray[np.uint8]) -> int:
    """How many of these images are among those with the digests ``seen`` (M, 16), under whatever name."""
    return int(np.isin(_keys(source.digests[indices]), _keys(seen)).sum())


def _is_path(image: Given) -> bool:
    return isinstance(image, str | os.PathLike)


def _rgb(image: Given, name: str) -> Image.Image:
    """A given image in mode RGB."""
    if isinstance(image, str | os.PathLike):
        return decode_image(Path(image), name)
    return upright_rgb(image) if isinstance(image, Image.Image) else Image.fromarray(_checked_array(image))


def _checked_array(image: Any) -> NDArray[np.uint8]:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        got = f"{type(image).__name__}, {array.dtype} {array.shape}"
        raise DistilhashError("an image is a path, a PIL image or a uint8 array (H, W, 3)", got)
    return array


def _digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(str(pixels.shape).encode() + pixels.tobytes(), digest_size=DIGEST_BYTES).digest()


def _keys(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").ravel()


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


def checked_labels(labels: NDArray[np.int64], count: int) -> Labels:
    """Labels as in ImageSource; DistilhashError where they are none of so many images."""
    if labels.ndim not in (1, 2) or len(labels) != count or labels.dtype.kind not in "iub":
        got = f"{labels.dtype} {labels.shape} for {count} images"
        raise DistilhashError("labels must be integers of shape (N,) or (N, C)", got)
    if labels.size and (labels.min() < 0 or (labels.ndim == 2 and labels.max() > 1)):
        what = "labels must be 0, 1, ... (classes) or 0/1 (one column a class)"
        raise DistilhashError(what, f"{labels.min()}..{labels.max()}")
    return labels.astype(np.int64) if labels.ndim == 1 else labels.astype(np.uint8)
