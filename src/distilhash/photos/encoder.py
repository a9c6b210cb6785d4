"""Photos to packed codes: which hasher an index has, and the codes of files of which some may be unreadable.

The default hasher is the frozen EfficientNet-Lite0 of this package, hashed without labels by ITQ. It is fitted to a
sample of the photos and kept beside the index as INDEX.hasher, where the next run and every search find it: a directory
as an exported hasher has it, with an int8 model alone.

Shapes: n images of a call, P bytes of a code.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from distilhash.codes import Bytes
from distilhash.config import ScanConfig, as_dict
from distilhash.data.decode import UnreadableImage
from distilhash.data.folders import walk
from distilhash.data.order import SPLITS, shuffled
from distilhash.data.sources import FileSource
from distilhash.deploy.runtime import FLOAT, FORMAT, INT8, ExportedConfig, ExportedHasher, with_head
from distilhash.errors import DistilhashError
from distilhash.files import write_directory_atomically, write_json
from distilhash.hasher import Hasher
from distilhash.itq import itq
from distilhash.photos.catalogue import PhotoStore, rebuild_file
from distilhash.progress import log, progress

BACKBONE = Path(__file__).parents[1] / "assets"  # EfficientNet-Lite0, whose outputs are its features
DEFAULT_BITS = 256  # with 64, near-duplicates are told less well from photos that are alike
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


def default_hasher(
    store: PhotoStore, roots: Sequence[str], *, bits: int | None = None, scan: ScanConfig | None = None
) -> Path:
    """The default hasher fitted to the photos below these folders, where it does not replace one that is in use.

    Args:
        store: the index; its file need not exist yet.
        bits: of a code. None: as many as the index has, or DEFAULT_BITS.
        scan: which files below the folders are read.

    Raises:
        DistilhashError: no photo can be read.
    """
    about, place = store.about(), default_place(store.path)
    if "encoder" in about:
        place, bits = default_place(rebuild_file(store.path)), bits or int(about["num_bits"])
    elif _is_hasher(place) and (bits is None or ExportedConfig.load(place.parent).bits == bits):
        return place  # of an index that was interrupted before its first photos
    _fit(place, roots, scan, bits or DEFAULT_BITS)
    return place


def settle_default(store: PhotoStore) -> None:
    """Put the default hasher of a rebuild in its place, once the index is made with it."""
    new = default_place(rebuild_file(store.path)).parent
    with write_directory_atomically(default_place(store.path).parent) as folder:
        for file in new.iterdir():
            shutil.copyfile(file, folder / file.name)
    shutil.rmtree(new)


def default_place(index: str | Path) -> Path:
    """The model file of the default hasher of an index."""
    index = Path(index)
    return index.with_name(f"{index.name}.hasher").absolute() / INT8


def is_default(about: Mapping[str, str], index: str | Path) -> bool:
    """Whether an index was made with its default hasher, also where both were moved or renamed since."""
    stored, place = Path(about.get("encoder_path", "")), default_place(index)
    gone = not os.path.exists(stored)  # noqa: PTH110
    home = stored if stored.suffix == place.parent.suffix else stored.parent
    return home.name == place.parent.name or (gone and (_is_hasher(place) or home.suffix == place.parent.suffix))


def fitted_to(hasher: str | Path) -> int | None:
    """The number of photos that a default hasher was fitted to; None for another one."""
    try:
        source = ExportedConfig.load(Path(hasher).parent).source
    except DistilhashError:
        return None
    return source.get("unlabelled_images") if source.get("label_free") == "itq" else None


def rebuild_pays(fitted: int, codes: int) -> bool:
    """Whether a default hasher that was fitted to so many photos is worth fitting again to those of an index."""
    return fitted < FEW and codes >= GROWTH * fitted


def _is_hasher(place: Path) -> bool:
    names = ("model/model.safetensors", "model.safetensors", FLOAT, INT8)
    files = [place] if place.name in names else [place / name for name in names]
    return any(os.path.isfile(file) for file in files)  # noqa: PTH113


def _fit(place: Path, roots: Sequence[str], scan: ScanConfig | None, bits: int) -> None:
    found = sorted(file.path for file in walk(roots, scan).files)
    photos = PhotoFiles([found[i] for i in shuffled(np.arange(len(found)), 0, SPLITS)[:SAMPLE]])
    backbone = ExportedHasher.open(BACKBONE, int8=True)
    features = list[NDArray[np.float32]]()
    if found:
        log.info(
            "no hasher is named: the frozen EfficientNet-Lite0 is hashed without labels (ITQ, %d bits), fitted to %s "
            "of %s photos, and kept in %s", bits, f"{len(photos):,}", f"{len(found):,}", place.parent,
        )  # fmt: skip
        with progress("fitting the default hasher", len(photos), "photos") as counter:
            for features_nD in backbone.outputs(photos, np.arange(len(photos))):
                features.append(features_nD)
                counter.add(len(features_nD))
    read = [i for i in range(len(photos)) if i not in photos.failures]
    if not read:
        raise DistilhashError("there are no photos to fit a hasher to", ", ".join(roots), "name a hasher with --hasher")
    features_ND = np.concatenate(features)[read]
    lengths_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    head = itq(features_ND / np.where(lengths_N1 > 0, lengths_N1, 1), bits)
    content = with_head((BACKBONE / INT8).read_bytes(), head.weight, head.bias)
    digest = hashlib.sha256(content).hexdigest()
    source = {"backbone": "the frozen EfficientNet-Lite0", "label_free": "itq", "unlabelled_images": len(read)}
    with write_directory_atomically(place.parent) as folder:
        (folder / INT8).write_bytes(content)
        write_json(folder / "config.json", {
            "format": FORMAT, "input": as_dict(backbone.input), "bits": bits, "hasher": digest[:16], "source": source,
            "files": {INT8: {"sha256": digest, "bytes": len(content)}},
        })  # fmt: skip


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
