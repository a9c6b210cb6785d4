"""Images named by list files, one ``path 0 1 0 ...`` a line: the form in which NUS-WIDE and its like are published.

The three lists of a protocol (train.txt, database.txt, test.txt) lie in one folder, and paths are relative to it.
Here they become one source, in which an image that two lists name is one image, and the positions of each list in it.

Shapes: N images, C classes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from distilhash.data.decode import EXTENSIONS
from distilhash.data.folders import FileSource, ImageFile, checked_folder, image_file
from distilhash.errors import DistilhashError

LISTS = ("train.txt", "database.txt", "test.txt")

# The path ends at the last image ending of the line, so that it may hold spaces.
_LINE = re.compile(rf"(.*(?:{'|'.join(re.escape(e) for e in sorted(EXTENSIONS))}))(?:\s+(.*))?", re.IGNORECASE)
# A path that is what it will be: relative, no part that begins with a dot, no sign that any system reads otherwise.
_PLAIN = re.compile(r"(?:[^./\\:\0][^/\\:\0]*/)*[^./\\:\0][^/\\:\0]*")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listed:
    """What the list files of a folder say; nothing of it has been looked for on the disk."""

    paths: list[str]  # N, relative, each image once
    labels: NDArray[np.uint8]  # (N, C) of 0/1
    lists: dict[str, NDArray[np.int64]]  # by the list's name without ending: its images, in the order of its lines

    def among(self, chosen_N: NDArray[np.bool_]) -> dict[str, int]:
        """How many images of each list are among the chosen ones."""
        return {name: int(chosen_N[indices].sum()) for name, indices in self.lists.items()}


class ListSource(FileSource):
    """The images that the list files of a folder name, with their labels.

    ``lists`` gives the indices of each list's images, in the order of its lines, by the list's name without ending.
    Labels are (N, C) uint8, or (N,) int64 classes where every line has exactly one 1. Errors: DistilhashError with the
    file and line.
    """

    def __init__(self, root: str | Path, names: Sequence[str] = LISTS) -> None:
        root = checked_folder(root)
        listed = read_lists(root, names)
        files = listed_files(root, listed)
        present = [file for file in files if file is not None]
        if len(present) < len(files):
            missing = [path for path, file in zip(listed.paths, files, strict=True) if file is None]
            by_list = listed.among(np.array([file is None for file in files]))
            counts = ", ".join(f"{count:,} in {name}" for name, count in by_list.items() if count)
            raise DistilhashError(
                "the list files name images that are not there",
                f"{len(missing)} of {len(files)} missing under {root}: {', '.join(missing[:3])}",
                f"put them there or take the lines out ({counts}); distilhash check {root} counts them",
            )
        labels_NC = listed.labels
        one_hot = bool((labels_NC.sum(axis=1) == 1).all())
        class_names = [str(c) for c in range(labels_NC.shape[1])]
        super().__init__(root, present, labels_NC.argmax(axis=1) if one_hot else labels_NC, class_names)
        self.lists = listed.lists


def read_lists(root: Path, names: Sequence[str] = LISTS) -> Listed:
    """The list files of a folder. Errors: DistilhashError with the file and line; whether an image exists is not asked."""
    label_of: dict[str, str] = {}
    lists: dict[str, NDArray[np.int64]] = {}
    position: dict[str, int] = {}
    columns: int | None = None
    for name in names:
        lines = _parse(root / name, columns)
        for path, labels in lines.items():
            if label_of.setdefault(path, labels) != labels:
                raise DistilhashError("two lists give one image different labels", f"{path} in {root / name}")
            position.setdefault(path, len(position))
        columns = len(next(iter(lines.values())).split())
        lists[Path(name).stem] = np.array([position[path] for path in lines], np.int64)
    if columns is None or columns < 2:
        raise DistilhashError("list files need two label columns or more", f"{columns or 0} in {root}")
    # Few images have labels that no other has: each text is read once.
    texts, of_image_N = np.unique(np.array(list(label_of.values())), return_inverse=True)
    rows = np.array([text.split() for text in texts.tolist()], np.uint8)
    return Listed(paths=list(label_of), labels=rows[of_image_N], lists=lists)


def listed_files(root: Path, listed: Listed) -> list[ImageFile | None]:
    """The file of each listed image (N); None where there is none."""
    return [image_file(root, path) for path in listed.paths]


def _parse(file: Path, columns: int | None) -> dict[str, str]:
    """{relative path: labels as "0 1 0"} of one list file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DistilhashError("a list file cannot be read", f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DistilhashError("a list file is not UTF-8 text", f"{file}: {error}") from error
    found: dict[str, str] = {}
    checked: dict[str, str] = {}  # labels as they stand in the file, and as they are kept
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped:
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            where = f"line {number} of {file}"
            raise DistilhashError("a list line must begin with the path of an image", f"{stripped[:80]!r} in {where}")
        path, labels = match[1], match[2] or ""
        if _PLAIN.fullmatch(path) is None:
            path = _inside(path, f"line {number} of {file}")
        if labels not in checked:
            checked[labels] = _labels(labels.split(), columns, f"line {number} of {file}")
            columns = len(labels.split())
        if path in found:
            raise DistilhashError(
                "a list names one image twice", f"{path} in line {number} of {file}", "take one of the lines out"
            )
        found[path] = checked[labels]
    if not found:
        raise DistilhashError("a list file is empty", str(file))
    return found


def _labels(values: list[str], columns: int | None, where: str) -> str:
    """Labels as "0 1 0"; ``columns`` is how many there must be, None for any number."""
    if not values:
        raise DistilhashError("a list line must have labels after the path", where)
    if columns is not None and len(values) != columns:
        raise DistilhashError(
            "a list line has another number of labels than those before it",
            f"{len(values)} instead of {columns} in {where}",
        )
    if not set(values) <= {"0", "1"}:
        wrong = next(value for value in values if value not in ("0", "1"))
        raise DistilhashError("labels in a list are 0 or 1", f"{wrong!r} in {where}")
    return " ".join(values)


def _inside(text: str, where: str) -> str:
    """The path without ``.``; refused where it leaves the root. Links inside the root are its owner's business."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", text) or "\0" in text:
        raise DistilhashError(
            "a list path must stay inside the folder of the list",
            f"{text!r} in {where}",
            "write it relative to that folder",
        )
    return str(path)
