"""The hasher of an index that was given none: a frozen teacher from a pip package, hashed without labels by ITQ.

It is fitted to a sample of the photos and kept beside the index, as INDEX.hasher, so that the next run and every
search find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from distilhash.data.order import SPLITS, shuffled
from distilhash.data.walk import walk
from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import PhotoStore
from distilhash.photos.encoder import PhotoFiles
from distilhash.photos.update import checked_roots

TEACHER = "pip/efficientnet_lite0"
BITS = 64
SAMPLE = 2_000  # photos that the codes are fitted to


def hasher_of(
    index: Path,
    folders: Iterable[str | Path],
    *,
    hidden: bool = False,
    rebuild: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """The hasher that an index was made with, or else a new one, fitted to the photos below these folders.

    ``rebuild`` fits a new one where the old was fitted here, too. Errors: DistilhashError.
    """
    beside = index.with_name(f"{index.name}.hasher").absolute()
    whole = (beside / "model" / "model.safetensors").exists()
    own = _recorded(index)
    if own is not None and own != beside:
        if own.exists():
            return own
        if not whole:
            raise DistilhashError("the hasher of the index is gone", own, "say where it is with --hasher")
        return beside  # both were moved
    if whole and not rebuild:
        return beside
    if own is not None and not rebuild:
        raise DistilhashError("the hasher of the index is gone", own, "fit a new one, and encode again, with --rebuild")
    _fit(beside, checked_roots(folders), hidden, say)
    return beside


def _recorded(index: Path) -> Path | None:
    if not index.exists():
        return None
    store = PhotoStore(index)
    try:
        place = store.about().get("encoder_path")
    finally:
        store.close()
    return Path(place) if place else None


def _fit(place: Path, roots: list[str], hidden: bool, say: Callable[[str], None]) -> None:
    # PyTorch is imported here: an index of an exported hasher is brought up to date without it.
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
        say(
            f"no hasher is named: the frozen {TEACHER} is hashed without labels (ITQ, {BITS} bits), fitted to "
            f"{len(chosen):,} of {len(found):,} photos, and kept in {place}"
        )
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
