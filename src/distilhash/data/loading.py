"""What a verb is told to read: the images behind a name, without those that cannot be read, and their split.

Shapes: N images, C classes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import FolderSource, checked_folder
from distilhash.data.lists import LISTS, ListSource
from distilhash.data.sources import ImageSource, Subset, readable
from distilhash.data.splits import Split, cifar10_split, holdout_split, list_split
from distilhash.errors import DistilhashError, unknown_name

PARTS = ("all", "query", "database", "train", "validation")
LISTED = 10  # unreadable images that the report names
SAY_SECONDS = 5.0


def to_stderr(text: str) -> None:
    """Where progress goes by default."""
    print(text, file=sys.stderr, flush=True)


def open_images(
    where: str | Path, labelled: bool = False, progress: Callable[[str], object] | None = None
) -> ImageSource:
    """The source that ``where`` names: "cifar10", a folder with train.txt, database.txt and test.txt, or a folder.

    ``labelled`` is about a plain folder: are the folders in it its classes? ``progress`` gets a sentence for each
    step of fetching CIFAR-10. Errors: DistilhashError.
    """
    if where == "cifar10":
        return load_cifar10(progress=progress)
    root = checked_folder(where)
    listed = [(root / name).is_file() for name in LISTS]
    if all(listed) or (labelled and any(listed)):
        return ListSource(root)
    return FolderSource(root, labelled)


def open_readable(
    images: str | Path, *, labelled: bool | None, say: Callable[[str], None] = to_stderr, quiet: bool = False
) -> ImageSource:
    """The source that ``images`` names without what cannot be read, which is counted and listed through ``say``.

    ``labelled``: are the folders in a folder its classes? None: where they can be. ``quiet`` keeps progress, but not
    that report, from ``say``. Errors: DistilhashError.
    """
    progress = (lambda text: None) if quiet else say
    source, report = readable(_opened(images, labelled, progress), counter(progress))
    if report.unreadable:
        say(report.summary(LISTED))
    return source


def split_of(
    source: ImageSource, images: str | Path, protocol: str, seed: int, file: Path | None, *, needed: bool
) -> Split | None:
    """The split in ``file``, or the one that the source is drawn by; None where there is none and none is needed."""
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
    source: ImageSource,
    images: str | Path,
    part: str,
    protocol: str,
    seed: int,
    split: Path | None,
    *,
    beside: Path,
    say: Callable[[str], None] = to_stderr,
) -> NDArray[np.int64]:
    """The indices of one of PARTS; without a ``split`` file the one beside the hasher is taken. Errors: DistilhashError."""
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    if part == "all":
        return np.arange(len(source))
    saved = split_beside(beside)
    if split is None and saved is not None:
        say(f"the split is the hasher's own, {saved}")
        split = saved
    indices: NDArray[np.int64] = getattr(split_of(source, images, protocol, seed, split, needed=True), part)
    return indices


def _opened(images: str | Path, labelled: bool | None, progress: Callable[[str], None]) -> ImageSource:
    if labelled is None and images != "cifar10":
        try:
            return open_images(images, True, progress)
        except DistilhashError:  # no class folders: a folder of any shape will do
            labelled = False
    return open_images(images, bool(labelled), progress)


def counter(progress: Callable[[str], None]) -> Callable[[int, int], None]:
    """Tells every few seconds how many images have been looked at."""
    said = time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            progress(f"images looked at {done:,}/{total:,}")

    return count


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
