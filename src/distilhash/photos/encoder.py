"""Photos to packed codes: which hasher an index has, and the codes of files of which some may be unreadable.

The default hasher is a frozen teacher from a pip package, hashed without labels by ITQ. It is fitted to a sample of
the photos and kept beside the index as INDEX.hasher, where the next run and every search find it.

Shapes: n images of a call, P bytes of a code.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from distilhash.codes import Bytes
from distilhash.config import ScanConfig
from distilhash.data.decode import UnreadableImage
from distilhash.data.folders import walk
from distilhash.data.order import SPLITS, shuffled
from distilhash.data.sources import FileSource
from distilhash.deploy.runtime import FLOAT, INT8
from distilhash.errors import DistilhashError, require_train
from distilhash.files import read_json
from distilhash.hasher import Hasher
from distilhash.photos.catalogue import PhotoStore, rebuild_file
from distilhash.progress import log

DEFAULT_TEACHER, DEFAULT_BITS = "pip/efficientnet_lite0", 64
SAMPLE = 2_000  # photos that the default hasher is fitted to
FEW, GROWTH = 500, 2  # it is fitted again where it knows fewer than FEW, and there are GROWTH times as many now


def hashers_of(about: Mapping[str, str], index: str | Path, hasher: str | Path | None = None) -> list[Path]:
    """Where the hasher that made an index may be, likeliest first; its fingerprint tells which one it is.

    Args:
        about: what the index stores of its hasher (``Store.about()``).
        hasher: the place that the user names instead.

    Raises:
        DistilhashError: the index was made without a hasher, or there is none where it was nor beside the index.
    """
    if "encoder" not in about:
        raise DistilhashError("this index does not say which hasher made it", index, "search it by --id")
    if hasher is not None:
        return [Path(hasher)]
    stored, index = Path(about.get("encoder_path", "")), Path(index).absolute()
    # Both were moved together, into one folder or with the folders above them.
    ends = [Path(*stored.parts[first:]) for first in range(1, len(stored.parts))]
    moved = [base / end for base in index.parents[:2] for end in ends]
    places = [*moved, default_place(index), default_place(rebuild_file(index))]
    # Not Path.exists(), which raises where access is denied.
    found = [stored] if stored != Path() and os.path.exists(stored) else []  # noqa: PTH110
    found += [place for place in places if place not in found and _is_hasher(place)]
    if not found:
        fix = "say where it is with --hasher"
        if is_default(about, index):
            again = shlex.join(["distilhash", "index", "--index", str(index), "--rebuild"])
            fix += f", or fit a new one and encode again with: {again}"
        raise DistilhashError("the hasher of the index is gone", stored, fix)
    return found


def encoder_of(store: PhotoStore, hasher: str | Path | None = None, *, int8: bool = False) -> Hasher:
    """The encoder that made an index, wherever it is now; ``hasher`` and errors as in hashers_of() and Hasher.open().

    Raises:
        DistilhashError: the hashers that were found are others, or cannot be opened.
    """
    about, refused = store.about(), list[DistilhashError]()
    for place in hashers_of(about, store.path, hasher):
        try:
            encoder = Hasher.open(place, int8=int8)
            if encoder.fingerprint == about["encoder"]:
                return encoder
            refused.append(store.other_hasher(place, place))
        except DistilhashError as error:
            refused.append(error)
    raise refused[0]


def default_hasher(store: PhotoStore, roots: Sequence[str], *, scan: ScanConfig | None = None) -> Path:
    """The default hasher fitted to the photos below these folders, where it does not replace one that is in use.

    Args:
        store: the index; its file need not exist yet.
        scan: which files below the folders are read.

    Raises:
        DistilhashError: the teacher is not installed, or no photo can be read.
    """
    place = default_place(store.path)
    if "encoder" in store.about():
        place = default_place(rebuild_file(store.path))
    elif _is_hasher(place):  # of an index that was interrupted before its first photos
        return place
    _fit(place, roots, scan)
    return place


def settle_default(store: PhotoStore) -> None:
    """Put the default hasher of a rebuild in its place, once the index is made with it."""
    new, place = default_place(rebuild_file(store.path)) / "model", default_place(store.path) / "model"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("README.md", "config.json", "model.safetensors"):  # the last file alone is a hasher
        if (new / name).exists():
            (new / name).replace(place / name)
    shutil.rmtree(new.parent)


def default_place(index: str | Path) -> Path:
    """Where the default hasher of an index is kept."""
    index = Path(index)
    return index.with_name(f"{index.name}.hasher").absolute()


def is_default(about: Mapping[str, str], index: str | Path) -> bool:
    """Whether an index was made with its default hasher, also where both were moved or renamed since."""
    stored, place = Path(about.get("encoder_path", "")), default_place(index)
    gone = not os.path.exists(stored)  # noqa: PTH110
    return stored.name == place.name or (gone and (_is_hasher(place) or stored.suffix == place.suffix))


def fitted_to(hasher: str | Path) -> int | None:
    """The number of photos that a default hasher was fitted to; None for another one."""
    try:
        about = read_json(Path(hasher) / "model" / "config.json", "hasher")
    except DistilhashError:
        return None
    return about.get("unlabelled_images") if about.get("label_free") == "itq" else None


def rebuild_pays(fitted: int, codes: int) -> bool:
    """Whether a default hasher that was fitted to so many photos is worth fitting again to those of an index."""
    return fitted < FEW and codes >= GROWTH * fitted


def _is_hasher(place: Path) -> bool:
    names = ("model/model.safetensors", "model.safetensors", FLOAT, INT8)
    files = [place] if place.name in names else [place / name for name in names]
    return any(os.path.isfile(file) for file in files)  # noqa: PTH113


def _fit(place: Path, roots: Sequence[str], scan: ScanConfig | None) -> None:
    # PyTorch is imported here: an index made with an exported hasher is updated without it.
    require_train("the default hasher")
    from distilhash.checkpoint import save_model
    from distilhash.inference import head_inputs
    from distilhash.models import create_teacher
    from distilhash.training.unlabelled import itq_hasher

    try:
        teacher = create_teacher(DEFAULT_TEACHER)
    except DistilhashError as error:
        raise DistilhashError(error.what, error.got, f"{error.fix}, or name a hasher with --hasher") from error
    found = sorted(file.path for file in walk(roots, scan).files)
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


class Encoded(NamedTuple):
    """Codes of some files; the rows of unreadable ones are meaningless."""

    packed: Bytes  # (n, P)
    failures: dict[int, str]  # position: why it cannot be read


class PhotoFiles(FileSource):
    """An image source of these paths, in which an unreadable file is a black pixel and a noted failure."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths, paths)
        self.fingerprint = ""  # the index knows its files: none is read for it
        self.failures: dict[int, str] = {}  # position: why it cannot be read

    def read(self, indices: ArrayLike) -> list[Image.Image]:
        """The images of these indices."""
        images = []
        for index in np.asarray(indices).tolist():
            try:
                images += super().read([index])
            except UnreadableImage as error:
                self.failures[index] = error.reason
                images.append(Image.new("RGB", (1, 1)))
        return images


def encode_photos(hasher: Hasher, paths: Sequence[str]) -> Encoded:
    """The codes of files, some of which may be unreadable."""
    files = PhotoFiles(paths)
    return Encoded(hasher.codes(files), files.failures)
