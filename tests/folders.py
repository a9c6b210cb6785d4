"""What the tests of indexing share: a folder of small pictures, and an encoder that needs no network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from distilhash.data.decode import decode_image
from distilhash.photos.catalogue import PhotoStore
from distilhash.photos.encoder import PhotoFiles
from distilhash.photos.update import Summary, update


class PlainEncoder:
    """Codes of 20 bits from the pixels by a hash; it counts what it reads."""

    num_bits, path = 20, "/plain/hasher"

    def __init__(self, fingerprint: str = "plain") -> None:
        self.fingerprint = fingerprint
        self.read: list[str] = []

    def codes(self, files: PhotoFiles) -> np.ndarray:
        self.read += files.paths
        return np.array([self._code(image) for image in files.read(range(len(files)))], np.uint8).reshape(-1, 3)

    def encode(self, paths: Sequence[str]) -> np.ndarray:
        return np.array([self.code_of(path) for path in paths])

    def code_of(self, path: str | Path) -> np.ndarray:
        return self._code(decode_image(Path(path), str(path)))

    def _code(self, image: Image.Image) -> np.ndarray:
        digest = hashlib.sha256(self.fingerprint.encode() + image.tobytes()).digest()
        return np.frombuffer(digest[:3], np.uint8) & np.array([255, 255, 0xF0], np.uint8)


def picture(path: Path, seed: int) -> Path:
    """A small picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)).save(path)
    return path


def updated(index: Path, *folders: Path, encoder: PlainEncoder | None = None, **settings) -> tuple[Summary, list[str]]:
    """Bring an index up to date; what was done, and the names of the files that were encoded."""
    encoder = encoder or PlainEncoder()
    store = PhotoStore(index)
    try:
        summary = update(store, folders, encoder, **settings)
    finally:
        store.close()
    return summary, [Path(path).name for path in encoder.read]


def holds(index: Path, encoder: PlainEncoder | None = None) -> dict[str, int]:
    """The photos that have a code and a file, by path, once it is sure that each code is that of its file as it is."""
    encoder = encoder or PlainEncoder()
    store = PhotoStore(index)
    ids, codes = store.codes()
    coded = {photo.id: photo for photo in store.photos() if photo.failure is None}
    store.close()
    assert sorted(coded) == ids.tolist()
    for identity, code in zip(ids.tolist(), codes, strict=True):
        photo = coded[identity]
        if not os.path.exists(photo.path):  # noqa: PTH110
            del coded[identity]
            continue
        assert np.array_equal(code, encoder.code_of(photo.path)), photo.path
        status = os.stat(photo.path)  # noqa: PTH116
        assert (photo.size, photo.changed_ns) == (
            status.st_size,
            np.uint64(status.st_mtime_ns % 2**64).astype(np.int64),
        )
    return {photo.path: photo.id for photo in coded.values()}
