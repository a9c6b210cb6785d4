"""What a command is told to read: the images behind a name, without those that cannot be read, and their split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from distilhash.config import Part, ScanConfig
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import LISTS, FolderSource, ListSource, checked_folder, list_files, told_others
from distilhash.data.sources import ImageSource, count_seen, readable
from distilhash.data.splits import Split, cifar10_split, holdout_split, list_split
from distilhash.data.tables import DatasetSource, TableSource, is_table
from distilhash.errors import DistilhashError, unknown_name
from distilhash.progress import log

PARTS = get_args(Part)
LISTED = 10  # unreadable images that the report names


def open_images(
    where: str | Path | Any, labelled: bool | None = False, *, certain: bool = False, scan: ScanConfig | None = None
) -> ImageSource:
    """Open the images that ``where`` names; what a scan leaves out is logged.

    Args:
        where: "cifar10", a folder with train.txt, database.txt and test.txt, any other folder, a table
            (data/tables.py), or in Python a dataset object or an ImageSource.
        labelled, certain, scan: as in FolderSource.

    Raises:
        DistilhashError: there are none, or not of this form.
    """
    if where == "cifar10":
        return load_cifar10()
    if is_table(where):
        return TableSource(where, labelled)
    if not isinstance(where, str | Path):
        return where if isinstance(where, ImageSource) else DatasetSource(where, labelled)
    root = checked_folder(where)
    found = list_files(root)
    if len(found) == len(LISTS) or (found and (labelled or certain)):
        return ListSource(root)
    if found and labelled is None:
        log.warning("no labels are read: beside %s there is no other list file in %s", ", ".join(found), root)
        labelled = False
    source = FolderSource(root, labelled, certain=certain, scan=scan)
    for folder, reason in source.found.unreadable:
        log.warning("a folder cannot be listed and is left out: %s (%s)", folder, reason)
    if source.found.others:
        log.info("%s", told_others(source.found.others))
    return source


def open_readable(
    images: str | Path | Any, *, labelled: bool | None, certain: bool = False, scan: ScanConfig | None = None
) -> ImageSource:
    """Open images as open_images() does, without those that cannot be read, which are logged."""
    source, report = readable(open_images(images, labelled, certain=certain, scan=scan))
    if report.unreadable:
        log.warning("%s", report.summary(LISTED))
    return source


def split_of(
    source: ImageSource, images: str | Path | Any, protocol: str, seed: int, file: str | Path | None, *, needed: bool
) -> Split | None:
    """The split of a source, bound to its images: that of a file, of its lists or folders, or drawn by a protocol.

    Args:
        source, images: the opened images, and what they were opened by.
        protocol: of CIFAR-10, one of CIFAR10_PROTOCOLS; other images have their own way.
        seed: decides what is drawn.
        file: a saved split, which goes before.
        needed: whether labels too few to split by are an error; else there is no split then, and a warning.

    Raises:
        DistilhashError: the file is of other images, or the images cannot be split.
    """
    if file is not None:
        split = Split.load(file).of(source, file)
    elif images == "cifar10":
        split = cifar10_split(np.asarray(source.labels), protocol, seed)
    elif source.lists:
        split = list_split(source.lists, len(source), seed=seed)
        if not {"train", "database"} <= set(source.lists):
            log.info("train and database are the same images: there is %s alone", " and ".join(sorted(source.lists)))
    elif source.labels is None:
        return None
    else:
        try:
            names = tuple(source.class_names)
            split = holdout_split(source.labels, seed=seed, class_names=names, digests=source.digests)
        except DistilhashError as error:
            if needed:
                raise
            log.warning("no split is drawn: %s", error)
            return None
    if source.decodes:  # no two images of CIFAR-10 are the same
        copies = [count_seen(source, split.query, source.digests[part]) for part in (split.train, split.database)]
        if any(copies):
            said = "of %d queries %d have a copy in train and %d in the database: numbers on them will be optimistic"
            log.warning(said, len(split.query), *copies)
    return split.bound(source)


def split_beside(hasher: str | Path) -> Path | None:
    """The split that the run of a hasher saved, so that its codes are of the parts it was trained by."""
    hasher = Path(hasher)
    for folder in (hasher, hasher.parent, hasher.parent.parent):
        if (folder / "split.json").is_file():
            return folder / "split.json"
    return None


def part_of(
    source: ImageSource, images: str | Path | Any, part: str, protocol: str, seed: int, split: str | Path | None, *,
    beside: str | Path,
) -> NDArray[np.int64]:  # fmt: skip
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
    if not len(indices):
        raise DistilhashError("this part of the split holds no images", part, "name another with --part")
    return indices
