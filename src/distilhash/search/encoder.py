"""Photographs to packed codes: what an index needs of a hasher, and the PyTorch hasher in that shape.

Shapes: n images of a call, H, W sides in pixels, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from distilhash.checkpoint import load_hasher
from distilhash.codes import Bytes, pack
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.encoding import outputs
from distilhash.models.backbone import fingerprint_of
from distilhash.runtime import keep_memory

keep_memory()  # before the first network runs

CPU = torch.device("cpu")


class Encoded(NamedTuple):
    """Codes of some images; the rows of those that cannot be read mean nothing."""

    packed: Bytes  # (n, P)
    failures: dict[int, str]  # position: why it cannot be read


class Encoder(Protocol):
    """What turns files into codes."""

    @property
    def num_bits(self) -> int:
        """K."""

    @property
    def fingerprint(self) -> str:
        """Names the network with its weights: other codes, other fingerprint."""

    @property
    def path(self) -> str:
        """Where it was opened from, absolute."""

    def encode(self, paths: Sequence[str]) -> Encoded:
        """The codes of these files, in their order."""


class TorchEncoder:
    """A hasher's run directory as an encoder. Errors: UserError where there is none."""

    def __init__(self, path: str | Path) -> None:
        self._hasher, _ = load_hasher(path)
        self.num_bits: int = self._hasher.num_bits
        self.fingerprint = fingerprint_of(self._hasher)
        self.path = str(Path(path).absolute())

    def encode(self, paths: Sequence[str]) -> Encoded:
        """The codes of these files, in their order."""
        files = PhotoFiles(paths)
        if not paths:
            return Encoded(np.empty((0, -(-self.num_bits // 8)), np.uint8), {})
        # In float32 on the processor, so that an index may move to another machine and its photos keep their codes.
        outputs_NK = outputs(files, np.arange(len(paths)), self._hasher, precision="float32", device=CPU)
        found = [pack(block) for block in outputs_NK]
        return Encoded(np.concatenate(found), files.failures)


def open_encoder(hasher: str | Path) -> Encoder:
    """The encoder in this place. Errors: UserError."""
    return TorchEncoder(hasher)


class PhotoFiles:
    """An image source of these paths in which a file that cannot be read is a black pixel and a note of why."""

    labels = None
    decodes = True
    fingerprint = ""

    def __init__(self, paths: Sequence[str]) -> None:
        self.names = list(paths)
        self.class_names: list[str] = []
        self.failures: dict[int, str] = {}

    def __len__(self) -> int:
        """The number of files."""
        return len(self.names)

    def read(self, indices: ArrayLike, least_side: int | None = None) -> list[NDArray[np.uint8]]:
        """The images of these indices."""
        return [self._one(int(index), least_side) for index in np.asarray(indices)]

    def _one(self, index: int, least_side: int | None) -> NDArray[np.uint8]:
        path = self.names[index]
        try:
            return decode_image(Path(path), path, least_side)
        except UnreadableImage as error:
            self.failures[index] = error.reason
            return np.zeros((1, 1, 3), np.uint8)
