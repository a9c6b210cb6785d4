"""Photos to packed codes: where the hasher of an index is, and how it encodes files, with or without PyTorch.

Shapes: n images of a call, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from distilhash.codes import Bytes, pack
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.deploy.runtime import INT8, ExportedHasher, model_file
from distilhash.errors import DistilhashError


def hasher_of(about: Mapping[str, str], index: Path, hasher: str | Path | None = None) -> Path:
    """The place of the hasher that made an index.

    Args:
        about: what the index stores of its hasher (``Store.about()``).
        index: the index file.
        hasher: the place that the user names instead; its fingerprint remains to be compared.

    Returns:
        ``hasher``, or else the stored place, or the one beside the index where both were moved together.

    Raises:
        DistilhashError: the index was made without a hasher, or the hasher is gone.
    """
    if "encoder" not in about:
        raise DistilhashError("this index does not say which hasher made it", index, "search it by --id")
    if hasher is not None:
        return Path(hasher)
    stored, beside = Path(about.get("encoder_path", "")), beside_index(index)
    if stored not in (Path(), beside) and stored.exists():
        return stored
    if is_whole(beside):
        return beside
    fix = "say where it is with --hasher"
    if stored == beside:
        fix += ", or fit a new one and encode again with: distilhash index --rebuild"
    raise DistilhashError("the hasher of the index is gone", stored, fix)


def beside_index(index: Path) -> Path:
    """Where the default hasher of an index is kept."""
    return index.with_name(f"{index.name}.hasher").absolute()


def is_whole(hasher: Path) -> bool:
    """Whether a run directory holds a model."""
    return (hasher / "model" / "model.safetensors").exists()


def named(hasher: str | Path, *, int8: bool = False) -> Path:
    """The place of a hasher; of an exported one the model file that is to run.

    Args:
        hasher: a run directory, a model directory, an exported directory or one of its model files.
        int8: the int8 model of an exported hasher; left out, float32, or the model that the path names.

    Raises:
        DistilhashError: ``int8`` for a hasher that was not exported.
    """
    model = model_file(hasher, int8=int8)
    if model is None and int8:
        raise DistilhashError("int8 is for an exported hasher", hasher, "export it: distilhash export")
    return model or Path(hasher)


class Encoded(NamedTuple):
    """Codes of some files; the rows of unreadable ones are meaningless."""

    packed: Bytes  # (n, P)
    failures: dict[int, str]  # position: why it cannot be read


class PhotoFiles:
    """An image source of these paths, in which an unreadable file is a black pixel and a noted failure."""

    labels = None
    decodes = True
    fingerprint = ""

    def __init__(self, paths: Sequence[str]) -> None:
        self.names = list(paths)
        self.class_names: list[str] = []
        self.failures: dict[int, str] = {}  # position: why it cannot be read

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


class Encoder:
    """A hasher that encodes image files; open_encoder() makes one."""

    def __init__(self, place: Path, num_bits: int, fingerprint: str, run: Callable[[PhotoFiles], Bytes]) -> None:
        self.path = str(place.absolute())
        self.num_bits = num_bits
        self.fingerprint = fingerprint  # of the network with its weights: other codes, other fingerprint
        self._run = run

    def encode(self, paths: Sequence[str]) -> Encoded:
        """The codes of these files, in their order."""
        files = PhotoFiles(paths)
        packed = self._run(files) if paths else np.empty((0, -(-self.num_bits // 8)), np.uint8)
        return Encoded(packed, files.failures)


def open_encoder(hasher: str | Path, *, int8: bool = False) -> Encoder:
    """The encoder of a hasher; PyTorch is imported only for one that was not exported.

    Args:
        hasher, int8: as in named().

    Raises:
        DistilhashError: there is no hasher, or it is damaged.
    """
    place = named(hasher, int8=int8)
    if model_file(place) is not None:
        exported = ExportedHasher.open(place.parent, int8=place.name == INT8)
        return Encoder(
            place, exported.num_bits, exported.model_fingerprint, lambda files: exported.encode(files).packed
        )

    import torch

    from distilhash.checkpoint import load_hasher
    from distilhash.inference import outputs
    from distilhash.models.backbone import fingerprint_of

    network, _ = load_hasher(place)

    def run(files: PhotoFiles) -> Bytes:
        # float32 on the CPU: on every machine a photo keeps its code, so an index may move.
        blocks = outputs(files, np.arange(len(files)), network, precision="float32", device=torch.device("cpu"))
        return np.concatenate([pack(outputs_nK) for outputs_nK in blocks])

    return Encoder(place, network.num_bits, fingerprint_of(network), run)
