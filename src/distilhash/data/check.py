"""What a folder holds and what it lacks, before anything is trained on it: ``distilhash check``.

Every image is decoded once. Lists are read and splits are drawn by the functions that training uses, so that both
refuse the same data.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilhash.config import ScanConfig
from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import (
    FolderSource,
    Listed,
    Walk,
    checked_folder,
    list_files,
    listed_files,
    read_lists,
    told_others,
    walk,
)
from distilhash.data.loading import LISTED, split_of
from distilhash.data.sources import DIGEST_BYTES, FileSource, Labels, Subset, find_unreadable, keys_of
from distilhash.data.splits import list_split
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
    found: dict[str, Any] = {"parts": [], "label_columns": 0, "overlaps": {}, "copies": {}}
    found |= {"missing": [], "unreadable": [], "problems": [], "notes": [], "unlistable": [], "other_files": {}}
    if images == "cifar10":
        source = load_cifar10()
        found |= {"kind": "cifar10", "parts": [_part("all", len(source))], "label_columns": len(source.class_names)}
    else:
        root = checked_folder(images)
        found |= _check_lists(root) if list_files(root) else _check_folder(root, scan)
    return found | {
        "images": str(images),
        "ready": not found["problems"],
        "missing": found["missing"][:LISTED],
        "unreadable": [{"image": name, "reason": reason} for name, reason in found["unreadable"][:LISTED]],
        "problems": [problem.removesuffix(".") for problem in found["problems"]],
        "notes": [note.removesuffix(".") for note in found["notes"]],
    }


def _check_lists(root: Path) -> dict[str, Any]:
    try:
        listed = read_lists(root)
    except DistilhashError as error:
        return {"kind": "list files", "problems": [str(error)]}
    files = listed_files(root, listed)
    missing_N = np.array([file is None for file in files])
    readable_N = np.zeros(len(files), bool)
    digests_N16 = np.zeros((len(files), DIGEST_BYTES), np.uint8)
    unreadable: list[tuple[str, str]] = []
    present = [file.path for file in files if file is not None]
    if present:
        names = [path for path, file in zip(listed.paths, files, strict=True) if file is not None]
        source = FileSource(present, names, None, [])
        report = find_unreadable(source)
        digests_N16[~missing_N] = source.digests
        readable_N[np.flatnonzero(~missing_N)[report.readable]] = True
        unreadable = report.unreadable
    counts = [
        listed.among(chosen_N)
        for chosen_N in (missing_N, ~missing_N & ~readable_N, listed.labels.sum(axis=1) == 0, readable_N)
    ]
    parts = [_part(name, len(listed.lists[name]), *(count[name] for count in counts[:3])) for name in listed.lists]
    overlaps, problems = _overlaps(listed)
    columns = listed.labels.shape[1]
    if missing_N.any():
        fix = f"fetch them from the authors' page, {NUS_WIDE_PAGE}" if columns == NUS_WIDE_COLUMNS else "fetch them"
        problems.append(
            f"{int(missing_N.sum()):,} of {len(files):,} images are missing; {fix}, or take their lines out"
        )
    problems += [f"no image of {name} can be read" for name, count in counts[3].items() if not count]
    copies, copied, notes = _copies(
        np.flatnonzero(readable_N), digests_N16, listed.paths, listed.labels, listed.lists,
    )  # fmt: skip
    problems += copied
    if not problems:  # whatever else the split would refuse
        place = np.cumsum(readable_N) - 1
        kept = {name: place[indices[readable_N[indices]]] for name, indices in listed.lists.items()}
        problems = _refusal(lambda: list_split(kept, int(readable_N.sum())))
    return {
        "kind": "list files", "parts": parts, "label_columns": columns, "overlaps": overlaps, "copies": copies,
        "problems": problems,
        "missing": [path for path, gone in zip(listed.paths, missing_N, strict=True) if gone],
        "unreadable": unreadable, "notes": _notes(listed, parts) + notes,
    }  # fmt: skip


def _check_folder(root: Path, scan: ScanConfig | None) -> dict[str, Any]:
    try:
        source = FolderSource(root, None, certain=True, scan=scan)
    except DistilhashError as error:
        return {"kind": "folder", "problems": [str(error)], **_left_out(walk([str(root)], scan))}
    report = find_unreadable(source)
    kind, problems = "class folders", list[str]()
    notes = [f"the folder {folder} cannot be listed: {reason}" for folder, reason in source.found.unreadable]
    notes += [told_others(source.found.others)] * bool(source.found.others)
    if source.labels is None:
        kind = "folder without labels"
        why = _refusal(lambda: FolderSource(root, True, scan=scan))
        notes.append(f"to distil only, as there are no labels: {why[0]}")
    if source.lists:
        kind = f"the parts of a split: {', '.join(sorted(source.lists))}; {kind}"
    found: dict[str, Any] = {"parts": [_part("all", len(source), unreadable=len(report.unreadable))]}
    if not len(report.readable):
        return found | {"kind": kind, "problems": ["none of the images can be read"], "unreadable": report.unreadable}
    kept = Subset(source, report.readable)
    if source.labels is not None:
        empty = sorted(set(source.class_names) - {source.class_names[c] for c in np.unique(np.asarray(kept.labels))})
        notes += [f"no image of class {name} can be read: training would go on without it" for name in empty]
    found["copies"], problems, copied = _copies(
        report.readable, source.digests, source.names, source.labels, source.lists
    )
    if not problems:
        problems = _refusal(lambda: split_of(kept, root, "", 0, None, needed=True))
    return found | {
        "kind": kind, "label_columns": len(source.class_names), "problems": problems, "unreadable": report.unreadable,
        "notes": notes + copied, **_left_out(source.found),
    }  # fmt: skip


def _copies(
    readable: NDArray[np.int64], digests: NDArray[np.uint8], names: Sequence[str], labels: Labels,
    lists: Mapping[str, NDArray[np.int64]],
) -> tuple[dict[str, int], list[str], list[str]]:  # fmt: skip
    """Readable images that hold the same as another one: counts, problems and notes."""
    keys = keys_of(digests)
    _, first, copies = np.unique(keys[readable], return_index=True, return_inverse=True)
    first_N = np.arange(len(keys))
    first_N[readable] = readable[first[copies.ravel()]]
    counts, problems, notes = dict[str, int](), list[str](), list[str]()

    def pairs(what: str, copied: NDArray[np.int64], originals: NDArray[np.int64]) -> str:
        counts[what] = len(copied)
        return f"{len(copied):,} {what}, such as {names[copied[0]]} ({names[originals[0]]})" if len(copied) else ""

    for part in ("train", "validation", "database"):
        if "test" not in lists or part not in lists:
            continue
        queries, others = (np.intersect1d(lists[name], readable) for name in ("test", part))
        place = {int(first_N[i]): int(i) for i in others}
        shared = np.array([i for i in queries if place.get(int(first_N[i]), i) != i], np.int64)
        said = pairs(f"queries have a copy in {part}", shared, np.array([place[int(first_N[i])] for i in shared]))
        if said and part == "database":
            notes.append(f"{said}: a copy is found at distance 0")
        elif said:
            problems.append(f"{said}; a query must not be seen before: take one of the two out")
    copied = np.flatnonzero(first_N != np.arange(len(keys)))
    said = pairs("images are copies of another", copied, first_N[copied])
    if said:
        notes.append(said + ("" if lists else "; a drawn split keeps copies together"))
    if labels is not None:
        differ = np.array([i for i in copied if np.any(labels[i] != labels[first_N[i]])], np.int64)
        said = pairs("images are copies of one with other labels", differ, first_N[differ])
        notes += [said] if said else []
    return counts, problems, notes


def _left_out(found: Walk) -> dict[str, Any]:
    unlistable = [{"folder": folder, "reason": reason} for folder, reason in found.unreadable]
    return {"unlistable": unlistable, "other_files": dict(found.others)}


def _overlaps(listed: Listed) -> tuple[dict[str, int], list[str]]:
    """Images that two lists share, by "train in test" and so on; and a sentence where they must share none."""
    overlaps, problems = {}, []
    for part, whole in (("train", "database"), ("train", "test"), ("database", "test")):
        shared = np.intersect1d(listed.lists[part], listed.lists[whole])
        overlaps[f"{part} in {whole}"] = len(shared)
        if whole == "test" and len(shared):
            problems.append(
                f"{len(shared):,} images of {part} are in test, too, such as {listed.paths[shared[0]]}; a query must "
                "not be seen before: take it out of one of the two"
            )
    return overlaps, problems


def _notes(listed: Listed, parts: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    columns = listed.labels.shape[1]
    if columns == NUS_WIDE_COLUMNS:
        counts = {part["part"]: part["images"] for part in parts}
        as_published = all(counts[name] == count for name, count in NUS_WIDE_COUNTS.items())
        wanted = " and ".join(f"{count:,} in {name}" for name, count in NUS_WIDE_COUNTS.items())
        notes.append(
            f"{columns} columns are those of NUS-WIDE-21, web photographs with their 21 most frequent concepts: "
            f"published with {wanted}, {'as here' if as_published else 'which these lists do not have'}"
        )
    unlabelled = sum(part["without_label"] for part in parts if part["part"] == "test")
    if unlabelled:
        notes.append(f"{unlabelled:,} queries have no label: nothing is relevant to them, and they count as 0")
    return notes


def _refusal(draw: Callable[[], object]) -> list[str]:
    """The sentence with which a split is refused, if it is."""
    try:
        draw()
    except DistilhashError as error:
        return [str(error).removesuffix(".")]
    return []


def _part(name: str, images: int, missing: int = 0, unreadable: int = 0, without_label: int = 0) -> dict[str, Any]:
    return {
        "part": name, "images": images, "missing": missing, "unreadable": unreadable, "without_label": without_label,
    }  # fmt: skip
