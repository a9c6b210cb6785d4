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
        source: the opened images.
        images: what they were opened by.
        protocol: of CIFAR-10, one of CIFAR10_PROTOCOLS; other images have their own way.
        seed: what is drawn is drawn by it.
        file: a saved split, which goes before.
        needed: whether labels too few to split by are an error; else there is no split then.

    Raises:
        DistilhashError: the file is of other images, or the images cannot be split.
    """
    if file is not None:
        split = Split.load(file)
        if split.num_images != len(source):
            raise DistilhashError(
                "the split is of other images",
                f"{file}: {split.num_images:,} images, here {len(source):,}",
                "name the split of these images",
            )
        return split
    if images == "cifar10":
        return cifar10_split(np.asarray(source.labels), protocol, seed)
    lists = _lists(source)
    if lists is not None:
        return list_split(lists, len(source), seed=seed)
    if source.labels is not None and (needed or _can_be_split(source.labels)):
        return holdout_split(np.asarray(source.labels), seed=seed, class_names=tuple(source.class_names))
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
        split: a saved split; left out: the one beside the hasher.
        beside: the hasher's directory.

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


def _lists(source: ImageSource) -> Mapping[str, NDArray[np.int64]] | None:
    """Each list's images as indices into the source, also where some of those listed could not be read."""
    if isinstance(source, ListSource):
        return source.lists
    if not (isinstance(source, Subset) and isinstance(source.source, ListSource)):
        return None
    place = {int(index): i for i, index in enumerate(source.indices)}
    return {
        name: np.array([place[int(i)] for i in listed if int(i) in place], np.int64)
        for name, listed in source.source.lists.items()
    }


def _can_be_split(labels: NDArray[np.int64] | NDArray[np.uint8]) -> bool:
    return labels.ndim == 2 or bool((np.bincount(labels) >= 3).all())
