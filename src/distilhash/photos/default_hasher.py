"""The default hasher: what encodes an index for which no hasher was named.

A frozen teacher from a pip package, hashed without labels by ITQ. It is fitted to a sample of the photos and kept
beside the index as INDEX.hasher, where the next run and every search find it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from distilhash.data.order import SPLITS, shuffled
from distilhash.data.walk import walk
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import PhotoStore
from distilhash.photos.encoder import PhotoFiles, beside_index, hasher_of, is_whole
from distilhash.photos.update import checked_roots
from distilhash.progress import log

TEACHER = "pip/efficientnet_lite0"
BITS = 64
SAMPLE = 2_000  # photos that ITQ is fitted to


def default_hasher(index: Path, folders: Iterable[str | Path], *, hidden: bool = False, rebuild: bool = False) -> Path:
    """The hasher that an index was made with, or else the default hasher, fitted to the photos below these folders.

    Args:
        index: the index file, which need not exist yet.
        folders: roots of the photos to sample.
        hidden: also sample hidden files.
        rebuild: fit the default hasher again where the index was made with it.

    Raises:
        DistilhashError: the hasher is gone, the teacher is not installed, or no photo can be read.
    """
    beside, about = beside_index(index), _about(index)
    if about.get("encoder_path") and not (rebuild and Path(about["encoder_path"]) == beside):
        return hasher_of(about, index)
    if rebuild or not is_whole(beside):
        _fit(beside, checked_roots(folders), hidden)
    return beside


def _about(index: Path) -> dict[str, str]:
    store = PhotoStore(index)
    try:
        return store.about()
    finally:
        store.close()


def _fit(place: Path, roots: list[str], hidden: bool) -> None:
    # PyTorch is imported here: an index made with an exported hasher is updated without it.
    from distilhash.checkpoint import save_model
    from distilhash.inference import head_inputs
    from distilhash.models import create_teacher
    from distilhash.training.unlabelled import itq_hasher

    try:
        teacher = create_teacher(TEACHER)
    except DistilhashError as error:
        raise DistilhashError(error.what, error.got, f"{error.fix}, or name a hasher with --hasher") from error
    found = sorted(file.path for file in walk(roots, hidden).files)
    chosen = shuffled(np.arange(len(found)), 0, SPLITS)[:SAMPLE]
    photos = PhotoFiles([found[i] for i in chosen])
    if found:
        log.info(
            "no hasher is named: the frozen %s is hashed without labels (ITQ, %d bits), fitted to %s of %s photos, "
            "and kept in %s", TEACHER, BITS, f"{len(chosen):,}", f"{len(found):,}", place,
        )  # fmt: skip
        features_ND = head_inputs(photos, np.arange(len(photos)), teacher)
    read = [i for i in range(len(photos)) if i not in photos.failures]
    if not read:
        raise DistilhashError("there are no photos to fit a hasher to", ", ".join(roots), "name a hasher with --hasher")
    hasher = itq_hasher(teacher, features_ND[read], BITS)
    description = {
        "kind": "hasher", "architecture": teacher.architecture, "bits": BITS, "label_free": "itq",
        "labelled_images": 0, "unlabelled_images": len(read), "backbone": f"the frozen {TEACHER}", "teacher": TEACHER,
        "teacher_fingerprint": teacher.fingerprint,
    }  # fmt: skip
    save_model(place / "model", hasher, description)
