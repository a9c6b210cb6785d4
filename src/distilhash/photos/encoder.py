"""Photographs to packed codes: what an index needs of a hasher, and an exported hasher in that shape.

Shapes: n images of a call, H, W sides in pixels, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from distilhash.codes import Bytes
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.deploy.runtime import INT8, ExportedHasher, model_file
from distilhash.errors import DistilhashError


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


class ExportedEncoder:
    """A model of an exported hasher as an encoder, without PyTorch. Errors: DistilhashError where it is damaged.

    Its path is the model file's, which says whether float32 or int8 runs: so an index remembers it.
    """

    def __init__(self, model: Path) -> None:
        self._hasher = ExportedHasher.open(model.parent, int8=model.name == INT8)
        self.num_bits: int = self._hasher.num_bits
        self.fingerprint = self._hasher.model_fingerprint
        self.path = str(model.absolute())

    def encode(self, paths: Sequence[str]) -> Encoded:
        """The codes of these files, in their order."""
        files = PhotoFiles(paths)
        return Encoded(self._hasher.encode(files).packed, files.failures)


def named(hasher: str | Path, *, int8: bool = False) -> Path:
    """The place of a hasher: of an exported one the model file that is to run. Errors: DistilhashError for int8 of another.

    ``int8`` left out: float32 of a directory, or the model that is named by its path.
    """
    model = model_file(hasher, int8=int8)
    if model is None and int8:
        raise DistilhashError("int8 is for an exported hasher", hasher, "export it: distilhash export")
    return model or Path(hasher)


def open_encoder(hasher: str | Path, *, int8: bool = False) -> Encoder:
    """The encoder in this place; PyTorch is imported only for a hasher that was not exported. Errors: DistilhashError."""
    place = named(hasher, int8=int8)
    if model_file(place) is not None:
        return ExportedEncoder(place)
    from distilhash.photos.torch_encoder import TorchEncoder

    return TorchEncoder(place)


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

    def read(self, indices: ArrayLike, least_side: int | None = None) -> list[Image.Image]:
        """The images of these indices."""
        return [self._one(int(index), least_side) for index in np.asarray(indices)]

    def _one(self, index: int, least_side: int | None) -> Image.Image:
        path = self.names[index]
        try:
            return decode_image(Path(path), path, least_side)
        except UnreadableImage as error:
            self.failures[index] = error.reason
            return Image.new("RGB", (1, 1))
