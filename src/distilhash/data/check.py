"""What a folder holds and what it lacks, before anything is trained on it: ``distilhash check``.

Every image is decoded once. Images are opened and splits are drawn by the functions that training uses, so that both
refuse the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilhash.config import ScanConfig
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import FolderSource, ListSource, checked_folder, list_files, told_others
from distilhash.data.loading import LISTED, split_of
from distilhash.data.sources import ImageSource, Subset, find_unreadable, first_copies
from distilhash.data.tables import TableSource, is_table
from distilhash.errors import DistilhashError

# NUS-WIDE-21, as the published comparisons split it: 100 query and 500 training images for each of 21 concepts.
NUS_WIDE_COLUMNS = 21
NUS_WIDE_COUNTS = {"train": 10_500, "test": 2_100}
NUS_WIDE_PAGE = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"


def inspect_images(images: str | Path, scan: ScanConfig | None = None) -> dict[str, Any]:
    """What a folder (or "cifar10") holds, as JSON data.

    Returns:
        ``ready``: whether training could begin. ``parts``: for each list file, or for the whole folder, images named,
        missing, unreadable and without a label. ``overlaps``: images that two lists share. ``copies``: images whose
        content another image has, by what that means. ``problems``: sentences, each a reason why training could not
        begin or its numbers would be wrong. ``notes``: what is worth knowing all the same. ``unlistable``: folders with
        the reason. ``other_files``: number of files that are no images, by their ending.

    Raises:
        DistilhashError: there is no folder.
    """
    kind = "cifar10" if images == "cifar10" else "table" if is_table(images) else "folder"
    if kind == "folder" and list_files(checked_folder(images)):
        kind = "list files"
    found: dict[str, Any] = {"images": str(images), "kind": kind, "parts": [], "label_columns": 0, "overlaps": {}}
    found |= {"copies": {}, "missing": [], "unreadable": [], "unlistable": [], "other_files": {}}
    found |= {"problems": [], "notes": []}
    try:
        source = _opened(images, scan, found)
        readable = _count_parts(source, found)
        if len(readable):
            _count_copies(Subset(source, readable), found)
        if not found["problems"]:  # whatever else the split would refuse
            split_of(Subset(source, readable), images, "cifar10", 0, None, needed=True)
    except DistilhashError as error:
        found["problems"].append(str(error).removesuffix("."))
    return found | {"ready": not found["problems"]}


def is_nus_wide(source: ImageSource) -> bool:
    """Whether lists have the columns and counts of the published NUS-WIDE-21."""
    counts = {name: len(source.lists.get(name, ())) for name in NUS_WIDE_COUNTS}
    return len(source.class_names) == NUS_WIDE_COLUMNS and counts == NUS_WIDE_COUNTS


def _opened(images: str | Path, scan: ScanConfig | None, found: dict[str, Any]) -> ImageSource:
    """The images as training opens them; but of lists also those that are missing."""
    if found["kind"] == "cifar10":
        return load_cifar10()
    if found["kind"] == "list files":
        return ListSource(images, complete=False)
    if found["kind"] == "table":
        return TableSource(images)
    source = FolderSource(images, scan=scan)
    found["unlistable"] = [{"folder": folder, "reason": reason} for folder, reason in source.found.unreadable]
    found["other_files"] = dict(source.found.others)
    source.read_labels(certain=True)
    found["notes"] += [f"the folder {folder} cannot be listed: {why}" for folder, why in source.found.unreadable]
    found["notes"] += [told_others(source.found.others)] * bool(source.found.others)
    found["kind"] = "folder without labels" if source.labels is None else "class folders"
    if source.labels is None:
        try:
            source.read_labels(needed=True)
        except DistilhashError as error:
            found["notes"].append(f"to distil only, as there are no labels: {str(error).removesuffix('.')}")
    if source.lists:
        found["kind"] = f"the parts of a split: {', '.join(sorted(source.lists))}; {found['kind']}"
    return source


def _count_parts(source: ImageSource, found: dict[str, Any]) -> NDArray[np.int64]:
    """Count what each part lacks; the images that can be read."""
    problems, notes = found["problems"], found["notes"]
    report = find_unreadable(source)
    readable_N = np.isin(np.arange(len(source)), report.readable)
    missing_N, bare_N = np.zeros((2, len(source)), bool)
    parts: Mapping[str, NDArray[np.int64]] = {"all": np.arange(len(source))}
    if isinstance(source, ListSource):
        missing_N, parts = source.missing_N, source.lists
    labels = source.labels
    if labels is not None and labels.ndim == 2:
        bare_N = labels.sum(axis=1) == 0
    counted = {"missing": missing_N, "unreadable": ~missing_N & ~readable_N, "without_label": bare_N}
    for name, part in parts.items():
        counts = {what: int(among_N[part].sum()) for what, among_N in counted.items()}
        found["parts"].append({"part": name, "images": len(part), **counts})
    missing = {name: None for name, gone in zip(source.names, missing_N, strict=True) if gone}
    unreadable = [{"image": name, "reason": reason} for name, reason in report.unreadable if name not in missing]
    found |= {
        "label_columns": len(source.class_names),
        "missing": [*missing][:LISTED],
        "unreadable": unreadable[:LISTED],
    }
    if isinstance(source, ListSource):
        _compare_lists(source, found)
    problems += [f"no image of {name} can be read" for name, part in source.lists.items() if not readable_N[part].any()]
    if not len(report.readable):
        problems.append("none of the images can be read")
    if labels is not None and labels.ndim == 1:
        lost = np.setdiff1d(labels, labels[report.readable]).tolist()
        notes += [
            f"no image of class {source.class_names[c]} can be read: training would go on without it" for c in lost
        ]
    return report.readable


def _compare_lists(source: ListSource, found: dict[str, Any]) -> None:
    """What lists share, and what is to be said of those of NUS-WIDE and of queries without a label."""
    problems, notes, columns = found["problems"], found["notes"], found["label_columns"]
    for part, whole in (("train", "database"), ("train", "test"), ("database", "test")):
        shared = np.intersect1d(source.lists[part], source.lists[whole])
        found["overlaps"][f"{part} in {whole}"] = len(shared)
        if whole == "test" and len(shared):
            problems.append(
                f"{len(shared):,} images of {part} are in test, too, such as {source.names[shared[0]]}; a query must "
                "not be seen before: take it out of one of the two"
            )
    missing = int(source.missing_N.sum())
    if missing:
        fix = f"fetch them from the authors' page, {NUS_WIDE_PAGE}" if columns == NUS_WIDE_COLUMNS else "fetch them"
        problems.append(f"{missing:,} of {len(source):,} images are missing; {fix}, or take their lines out")
    if columns == NUS_WIDE_COLUMNS:
        as_published = is_nus_wide(source)
        wanted = " and ".join(f"{count:,} in {name}" for name, count in NUS_WIDE_COUNTS.items())
        notes.append(
            f"{columns} columns are those of NUS-WIDE-21, web photographs with their 21 most frequent concepts: "
            f"published with {wanted}, {'as here' if as_published else 'which these lists do not have'}"
        )
    bare = sum(part["without_label"] for part in found["parts"] if part["part"] == "test")
    if bare:
        notes.append(f"{bare:,} queries have no label: nothing is relevant to them, and they count as 0")


def _count_copies(source: ImageSource, found: dict[str, Any]) -> None:
    """Count the images of a source that hold the same as another one."""
    first_N = first_copies(source.digests)

    def said(what: str, pairs: list[tuple[int, int]]) -> list[str]:
        found["copies"][what] = len(pairs)
        return [
            f"{len(pairs):,} {what}, such as {source.names[one]} ({source.names[other]})" for one, other in pairs[:1]
        ]

    for part in ("train", "validation", "database"):
        if not {"test", part} <= set(source.lists):
            continue
        place = {first_N[i]: i for i in source.lists[part]}
        queries = np.sort(source.lists["test"])
        shared = [(i, place[first_N[i]]) for i in queries if place.get(first_N[i], i) != i]
        sentences = said(f"queries have a copy in {part}", shared)
        if part == "database":
            found["notes"] += [f"{sentence}: a copy is found at distance 0" for sentence in sentences]
        else:
            fix = "a query must not be seen before: take one of the two out"
            found["problems"] += [f"{sentence}; {fix}" for sentence in sentences]
    copied = [(i, first) for i, first in enumerate(first_N) if i != first]
    kept_together = "" if source.lists else "; a drawn split keeps copies together"
    found["notes"] += [sentence + kept_together for sentence in said("images are copies of another", copied)]
    labels = source.labels
    if labels is not None:
        differ = [(i, first) for i, first in copied if np.any(labels[i] != labels[first])]
        found["notes"] += said("images are copies of one with other labels", differ)
