"""What a command is told to read: the images behind a name, without those that cannot be read, and their split.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import LISTS, FolderSource, ListSource, checked_folder
from distilhash.data.sources import ImageSource, Subset, readable
from distilhash.data.splits import Split, cifar10_split, holdout_split, list_split
from distilhash.errors import DistilhashError, unknown_name
from distilhash.progress import log

PARTS = ("all", "query", "database", "train", "validation")
LISTED = 10  # unreadable images that the report names


def open_images(where: str | Path, labelled: bool | None = False) -> ImageSource:
    """Open the images that ``where`` names.

    Args:
        where: "cifar10", a folder with train.txt, database.txt and test.txt, or any other folder.
        labelled: are the folders in a plain folder its classes? None: where they can be.

    Raises:
        DistilhashError: there are none, or not of this form.
    """
    if where == "cifar10":
        return load_cifar10()
    root = checked_folder(where)
    listed = [(root / name).is_file() for name in LISTS]
    if all(listed) or (labelled and any(listed)):
        return ListSource(root)
    return FolderSource(root, labelled)


def open_readable(images: str | Path, *, labelled: bool | None) -> ImageSource:
    """Open images as open_images() does, without those that cannot be read, which are logged."""
    source, report = readable(open_images(images, labelled))
    if report.unreadable:
        log.warning("%s", report.summary(LISTED))
    return source


def split_of(
    source: ImageSource, images: str | Path, protocol: str, seed: int, file: Path | None, *, needed: bool
) -> Split | None:
    """The split of a source: that of a file, of its lists, or drawn by a protocol.

    Args:
        source, images: the opened images, and what they were opened by.
        protocol: of CIFAR-10, one of CIFAR10_PROTOCOLS; other images have their own way.
        seed: decides what is drawn.
        file: a saved split, which goes before.
        needed: whether labels too few to split by are an error; else there is no split then.

    Raises:
        DistilhashError: the file is of other images, or the images cannot be split.
    """
    if file is not None:
        split = Split.load(file)
        if split.num_images != len(source):
            got = f"{file}: {split.num_images:,} images, here {len(source):,}"
            raise DistilhashError("the split is of other images", got, "name the split of these images")
        return split
    if images == "cifar10":
        return cifar10_split(np.asarray(source.labels), protocol, seed)
    lists = source.lists if isinstance(source, ListSource) else None
    if isinstance(source, Subset) and isinstance(source.source, ListSource):  # some of those listed cannot be read
        lists = _renumbered(source.source.lists, source.indices)
    if lists is not None:
        return list_split(lists, len(source), seed=seed)
    try:
        names = tuple(source.class_names)
        return None if source.labels is None else holdout_split(source.labels, seed=seed, class_names=names)
    except DistilhashError:
        if needed:
            raise
        return None


def split_beside(hasher: Path) -> Path | None:
    """The split that the run of a hasher saved, so that its codes are of the parts it was trained by."""
    for folder in (hasher, hasher.parent, hasher.parent.parent):
        if (folder / "split.json").is_file():
            return folder / "split.json"
    return None


def part_of(
    source: ImageSource, images: str | Path, part: str, protocol: str, seed: int, split: Path | None, *, beside: Path
) -> NDArray[np.int64]:
    """The indices of one of PARTS, by the split of split_of().

    Args:
        split: a saved split; left out: the one beside the hasher, whose directory is ``beside``.

    Raises:
        DistilhashError: an unknown part, or images that have no split.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if part == "all":
        return np.arange(len(source))
    saved = split_beside(beside)
    if split is None and saved is not None:
        log.info("the split is the hasher's own, %s", saved)
        split = saved
    indices: NDArray[np.int64] = getattr(split_of(source, images, protocol, seed, split, needed=True), part)
    return indices


def _renumbered(lists: Mapping[str, NDArray[np.int64]], kept: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The lists, as positions in the kept indices, without the others."""
    places = {int(index): place for place, index in enumerate(kept)}
    return {
        name: np.array([places[index] for index in indices.tolist() if index in places], np.int64)
        for name, indices in lists.items()
    }
