"""Photos to packed codes: which hasher an index has, and how it encodes files, with or without PyTorch.

The default hasher is a frozen teacher from a pip package, hashed without labels by ITQ. It is fitted to a sample of
the photos and kept beside the index as INDEX.hasher, where the next run and every search find it.

Shapes: n images of a call, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from distilhash.codes import Bytes, pack
from distilhash.data.decode import UnreadableImage
from distilhash.data.folders import walk
from distilhash.data.order import SPLITS, shuffled
from distilhash.data.sources import FileSource
from distilhash.deploy.runtime import INT8, ExportedHasher, model_file
from distilhash.errors import DistilhashError
from distilhash.progress import log

DEFAULT_TEACHER, DEFAULT_BITS = "pip/efficientnet_lite0", 64
SAMPLE = 2_000  # photos that the default hasher is fitted to


def hasher_of(about: Mapping[str, str], index: Path, hasher: str | Path | None = None) -> Path:
    """The place of the hasher that made an index: the stored one, or beside the index where both were moved together.

    Args:
        about: what the index stores of its hasher (``Store.about()``).
        hasher: the place that the user names instead; its fingerprint remains to be compared.

    Raises:
        DistilhashError: the index was made without a hasher, or the hasher is gone.
    """
    if "encoder" not in about:
        raise DistilhashError("this index does not say which hasher made it", index, "search it by --id")
    if hasher is not None:
        return Path(hasher)
    stored, beside = Path(about.get("encoder_path", "")), _beside(index)
    # Not Path.exists(), which raises where access is denied.
    if stored not in (Path(), beside) and os.path.exists(stored):  # noqa: PTH110
        return stored
    if _is_whole(beside):
        return beside
    fix = "say where it is with --hasher"
    if stored == beside:
        fix += ", or fit a new one and encode again with: distilhash index --rebuild"
    raise DistilhashError("the hasher of the index is gone", stored, fix)


def default_hasher(
    about: Mapping[str, str], index: Path, roots: Sequence[str], *, hidden: bool = False, rebuild: bool = False
) -> Path:
    """The hasher that an index was made with, or else the default hasher, fitted to the photos below these folders.

    Args:
        about, index: as in hasher_of(); the file need not exist yet.
        hidden: also sample hidden files.
        rebuild: fit the default hasher again where the index was made with it.

    Raises:
        DistilhashError: the hasher is gone, the teacher is not installed, or no photo can be read.
    """
    beside = _beside(index)
    if about.get("encoder_path") and not (rebuild and Path(about["encoder_path"]) == beside):
        return hasher_of(about, index)
    if rebuild or not _is_whole(beside):
        _fit(beside, roots, hidden)
    return beside


def _beside(index: Path) -> Path:
    return index.with_name(f"{index.name}.hasher").absolute()


def _is_whole(hasher: Path) -> bool:
    return (hasher / "model" / "model.safetensors").exists()


def _fit(place: Path, roots: Sequence[str], hidden: bool) -> None:
    # PyTorch is imported here: an index made with an exported hasher is updated without it.
    from distilhash.checkpoint import save_model
    from distilhash.inference import head_inputs
    from distilhash.models import create_teacher
    from distilhash.training.unlabelled import itq_hasher

    try:
        teacher = create_teacher(DEFAULT_TEACHER)
    except DistilhashError as error:
        raise DistilhashError(error.what, error.got, f"{error.fix}, or name a hasher with --hasher") from error
    found = sorted(file.path for file in walk(roots, hidden).files)
    photos = PhotoFiles([found[i] for i in shuffled(np.arange(len(found)), 0, SPLITS)[:SAMPLE]])
    if found:
        log.info(
            "no hasher is named: the frozen %s is hashed without labels (ITQ, %d bits), fitted to %s of %s photos, "
            "and kept in %s", DEFAULT_TEACHER, DEFAULT_BITS, f"{len(photos):,}", f"{len(found):,}", place,
        )  # fmt: skip
        features_ND = head_inputs(photos, np.arange(len(photos)), teacher)
    read = [i for i in range(len(photos)) if i not in photos.failures]
    if not read:
        raise DistilhashError("there are no photos to fit a hasher to", ", ".join(roots), "name a hasher with --hasher")
    description = {
        "kind": "hasher", "architecture": teacher.architecture, "bits": DEFAULT_BITS, "label_free": "itq",
        "labelled_images": 0, "unlabelled_images": len(read), "backbone": f"the frozen {DEFAULT_TEACHER}",
        "teacher": DEFAULT_TEACHER, "teacher_fingerprint": teacher.fingerprint,
    }  # fmt: skip
    save_model(place / "model", itq_hasher(teacher, features_ND[read], DEFAULT_BITS), description)


def named(hasher: str | Path, *, int8: bool = False) -> Path:
    """The place of a hasher; of an exported one the model file that is to run.

    Args:
        hasher: a run directory, a model directory, an exported directory or one of its model files.
        int8: False means float32, or the model that the path names.

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


class PhotoFiles(FileSource):
    """An image source of these paths, in which an unreadable file is a black pixel and a noted failure."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths, paths, None, [])
        self.fingerprint = ""  # the index knows its files: none is read for it
        self.failures: dict[int, str] = {}  # position: why it cannot be read

    def read(self, indices: ArrayLike, least_side: int | None = None) -> list[Image.Image]:
        """The images of these indices."""
        images = []
        for index in np.asarray(indices).tolist():
            try:
                images += super().read([index], least_side)
            except UnreadableImage as error:
                self.failures[index] = error.reason
                images.append(Image.new("RGB", (1, 1)))
        return images


class Encoder(NamedTuple):
    """A hasher that encodes image files; open_encoder() makes one."""

    path: str
    num_bits: int
    fingerprint: str  # of the network with its weights: other codes, other fingerprint
    run: Callable[[PhotoFiles], Bytes]

    def encode(self, paths: Sequence[str]) -> Encoded:
        """The codes of these files, in their order."""
        files = PhotoFiles(paths)
        packed = self.run(files) if paths else np.empty((0, -(-self.num_bits // 8)), np.uint8)
        return Encoded(packed, files.failures)


def open_encoder(hasher: str | Path, *, int8: bool = False) -> Encoder:
    """The encoder of a hasher, which is named as in named(); PyTorch is imported only for one that was not exported."""
    place = named(hasher, int8=int8)
    path = str(place.absolute())
    if model_file(place) is not None:
        exported = ExportedHasher.open(place.parent, int8=place.name == INT8)
        bits, fingerprint = exported.num_bits, exported.model_fingerprint
        return Encoder(path, bits, fingerprint, lambda files: exported.encode(files).packed)

    import torch

    from distilhash.checkpoint import load_hasher
    from distilhash.inference import outputs
    from distilhash.models.backbone import fingerprint_of

    network, _ = load_hasher(place)

    def run(files: PhotoFiles) -> Bytes:
        # float32 on the CPU: on every machine a photo keeps its code, so an index may move.
        blocks = outputs(files, np.arange(len(files)), network, precision="float32", device=torch.device("cpu"))
        return np.concatenate([pack(outputs_nK) for outputs_nK in blocks])

    return Encoder(path, network.num_bits, fingerprint_of(network), run)
