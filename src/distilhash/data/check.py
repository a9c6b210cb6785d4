"""What a folder holds and what it lacks, before anything is trained on it: ``distilhash check``.

Every image is decoded once. Lists are read and splits are drawn by the functions that training uses, so that both
refuse the same data.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilhash.data.cifar10 import load_cifar10
from distilhash.data.folders import LISTS, FolderSource, Listed, checked_folder, listed_files, read_lists
from distilhash.data.loading import LISTED
from distilhash.data.sources import FileSource, ImageSource, find_unreadable
from distilhash.data.splits import holdout_split, list_split
from distilhash.errors import DistilhashError

# NUS-WIDE-21, as the published comparisons split it: 100 query and 500 training images for each of 21 concepts.
NUS_WIDE_COLUMNS = 21
NUS_WIDE_COUNTS = {"train": 10_500, "test": 2_100}
NUS_WIDE_PAGE = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"


def inspect_images(images: str | Path) -> dict[str, Any]:
    """What a folder (or "cifar10") holds, as JSON data.

    Returns:
        ``ready``: whether training could begin. ``parts``: for each list file, or for the whole folder, images named,
        missing, unreadable and without a label. ``overlaps``: images that two lists share. ``problems``: sentences,
        each a reason why training could not begin. ``notes``: what is worth knowing all the same.

    Raises:
        DistilhashError: there is no folder.
    """
    found: dict[str, Any] = {"parts": [], "label_columns": 0, "overlaps": {}, "missing": [], "unreadable": []}
    found |= {"problems": [], "notes": []}
    if images == "cifar10":
        source = load_cifar10()
        found |= {"kind": "cifar10", "parts": [_part("all", len(source))], "label_columns": len(source.class_names)}
    else:
        root = checked_folder(images)
        found |= _check_lists(root) if any((root / name).is_file() for name in LISTS) else _check_folder(root)
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
    unreadable: list[tuple[str, str]] = []
    present = [file.path for file in files if file is not None]
    if present:
        names = [path for path, file in zip(listed.paths, files, strict=True) if file is not None]
        report = find_unreadable(FileSource(present, names, None, []))
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
    if not problems:  # whatever else the split would refuse
        place = np.cumsum(readable_N) - 1
        kept = {name: place[indices[readable_N[indices]]] for name, indices in listed.lists.items()}
        problems = _refusal(lambda: list_split(kept, int(readable_N.sum())))
    return {
        "kind": "list files", "parts": parts, "label_columns": columns, "overlaps": overlaps, "problems": problems,
        "missing": [path for path, gone in zip(listed.paths, missing_N, strict=True) if gone],
        "unreadable": unreadable, "notes": _notes(listed, parts),
    }  # fmt: skip


def _check_folder(root: Path) -> dict[str, Any]:
    notes: list[str] = []
    try:
        source: ImageSource = FolderSource(root, labelled=True)
        kind = "class folders"
    except DistilhashError as error:
        notes.append(f"to distil only, as there are no labels: {error}")
        try:
            source = FolderSource(root)
        except DistilhashError as nothing:
            return {"kind": "folder", "problems": [str(nothing)]}
        kind = "folder without labels"
    report = find_unreadable(source)
    problems: list[str] = []
    if not len(report.readable):
        problems = ["none of the images can be read"]
    elif source.labels is not None:
        labels_N = np.asarray(source.labels)[report.readable]
        problems = _refusal(lambda: holdout_split(labels_N, class_names=tuple(source.class_names)))
        empty = sorted(set(source.class_names) - {source.class_names[c] for c in np.unique(labels_N)})
        notes += [f"no image of class {name} can be read: training would go on without it" for name in empty]
    return {
        "kind": kind, "parts": [_part("all", len(source), unreadable=len(report.unreadable))],
        "label_columns": len(source.class_names), "problems": problems, "unreadable": report.unreadable, "notes": notes,
    }  # fmt: skip


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
