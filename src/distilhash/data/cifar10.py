"""CIFAR-10, all 60,000 images, fetched once and then memory-mapped from the user's cache folder.

It comes from the publisher's binary archive, which needs no pickle (torchvision's class unpickles the other one), or
from wherever the environment variable DISTILHASH_CIFAR10 says. Whatever the way, the arrays must have the pinned hash.
What is kept: images.npy, labels.npy, and source.json, which says where they came from. The order is torchvision's:
50,000 training images, then 10,000 test images.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import json
import os
import tarfile
import tokenize
import urllib.request
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from distilhash.data.sources import ArraySource
from distilhash.errors import DistilhashError
from distilhash.files import write_atomically
from distilhash.progress import log, progress

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
SHAPE = (60_000, 32, 32, 3)
ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"

_IMAGES_SHA256 = "0ac3ab5c78edb36ac68f69e287fd8f957b2d4f820b80e5fa9bd05c810fc0d95d"
_LABELS_SHA256 = "5083e6dd0895f94970ae8513f046bf3004b333931aad82b619d23ab76f2e1845"
_HOST_SECONDS = 10.0  # of silence after which a host counts as out of reach
_UNSOUND = (OSError, ValueError, EOFError, tokenize.TokenError)  # what np.load raises; TokenError: a header cut short
_RECORD = 1 + 32 * 32 * 3  # bytes of an image in the archive: its label, then its colours one after another


def load_cifar10(cache: str | Path | None = None) -> ArraySource:
    """Open CIFAR-10, read-only and memory-mapped; the first call fetches it, checks it and keeps it in ``cache``.

    The environment variable DISTILHASH_CIFAR10 may name the URL of the binary archive, its file, a folder that has it,
    or a folder with images.npy and labels.npy, which are then used where they are.

    Raises:
        DistilhashError: it can neither be found nor fetched, or not be kept.
    """
    folder, origin = cache_folder(cache), os.environ.get("DISTILHASH_CIFAR10", URL)
    if (folder / "images.npy").exists():
        try:
            return _opened(folder)
        except _UNSOUND as error:
            log.warning("the CIFAR-10 in %s cannot be used (%s); fetching it anew", folder, error)
    try:
        if not _is_url(origin) and (Path(origin).expanduser() / "images.npy").exists():
            return _opened(Path(origin).expanduser())
        keep_cifar10(folder, *_fetched(origin), origin)
        return _opened(folder)
    except DistilhashError:
        raise
    except (*_UNSOUND, tarfile.TarError, zlib.error, http.client.HTTPException) as error:
        raise DistilhashError(
            "CIFAR-10 could not be fetched",
            f"{origin}: {getattr(error, 'reason', None) or error}",  # URLError wraps the cause
            f"connect to the network; or let DISTILHASH_CIFAR10 name another URL of {ARCHIVE}, the file, or a folder "
            f"with images.npy (uint8 {SHAPE}) and labels.npy (int64); or put these two into {folder}",
        ) from error


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where CIFAR-10 is kept: in ``cache``, in that of the environment variable DISTILHASH_CACHE, or in the user's."""
    base = cache or os.environ.get("DISTILHASH_CACHE") or platformdirs.user_cache_dir("distilhash", appauthor=False)
    return Path(base).expanduser() / "cifar10"


def keep_cifar10(folder: str | Path, images: NDArray[np.uint8], labels: NDArray[np.int64], origin: str) -> None:
    """Write images (60000, 32, 32, 3) and labels (60000,) where load_cifar10() finds them.

    Raises:
        DistilhashError: they are not those of CIFAR-10 in the usual order, or the disk refuses.
    """
    if (_sha256(images), _sha256(labels)) != (_IMAGES_SHA256, _LABELS_SHA256):
        raise DistilhashError("these are not the images and labels of CIFAR-10", origin, "name another place")
    folder = Path(folder)
    write_atomically(folder / "labels.npy", lambda file: np.save(file, labels, allow_pickle=False))
    source = {"images_sha256": _IMAGES_SHA256, "labels_sha256": _LABELS_SHA256, "origin": origin}
    write_atomically(folder / "source.json", json.dumps(source, indent=1))
    # Last: a folder with images is complete.
    write_atomically(folder / "images.npy", lambda file: np.save(file, images, allow_pickle=False))


def _opened(folder: Path) -> ArraySource:
    """The kept arrays. Raises one of _UNSOUND where they are not those of CIFAR-10."""
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    if images.dtype != np.uint8 or images.shape != SHAPE or not images.flags.c_contiguous:
        raise ValueError("images.npy holds something else")
    status = (folder / "images.npy").stat()
    if _digest(folder / "images.npy", status.st_size, status.st_mtime_ns, status.st_ino) != _IMAGES_SHA256:
        raise ValueError("the images are not those of CIFAR-10")
    if labels.dtype != np.int64 or labels.shape != SHAPE[:1] or _sha256(labels) != _LABELS_SHA256:
        raise ValueError("the labels are not those of CIFAR-10")
    fingerprint = hashlib.sha256((_IMAGES_SHA256 + _LABELS_SHA256).encode()).hexdigest()[:16]
    return ArraySource(images, labels, [f"cifar10/{i:05d}" for i in range(len(images))], CLASS_NAMES, fingerprint)


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.data).hexdigest()


@functools.lru_cache(maxsize=8)  # 0.13 s, once for each state of the file in a process
def _digest(file: Path, size: int, changed_ns: int, inode: int) -> str:
    return _sha256(np.load(file, mmap_mode="r", allow_pickle=False))


def _is_url(origin: str) -> bool:
    return origin.startswith(("https://", "http://"))


def _fetched(origin: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels from the binary archive, read as it comes: nothing of it is unpacked to the disk."""
    images, labels = np.empty(SHAPE, np.uint8), np.empty(SHAPE[0], np.int64)
    wanted = {f"cifar-10-batches-bin/{name}.bin": slice(10_000 * i, 10_000 * (i + 1)) for i, name in enumerate(BATCHES)}
    with (
        _stream(origin) as file,
        tarfile.open(fileobj=file, mode="r|gz") as tar,
        progress(f"fetch CIFAR-10 from {origin}", len(wanted), "batches") as counter,
    ):
        for member in tar:
            if member.name not in wanted or not member.isfile() or member.size != 10_000 * _RECORD:
                continue
            content = tar.extractfile(member)
            assert content is not None, "a regular member has content"
            records = np.frombuffer(content.read(), np.uint8).reshape(10_000, _RECORD)
            part = wanted.pop(member.name)
            labels[part] = records[:, 0]
            images[part] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            counter.add()
    if wanted:
        raise ValueError(f"the archive lacks {', '.join(wanted)}")
    return images, labels


def _stream(origin: str) -> IO[bytes]:
    if _is_url(origin):
        response: IO[bytes] = urllib.request.urlopen(origin, timeout=_HOST_SECONDS)
        return response
    path = Path(origin).expanduser()
    return (path / ARCHIVE if path.is_dir() else path).open("rb")
