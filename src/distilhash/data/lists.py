"""Images named by list files, one ``path 0 1 0 ...`` a line: the form in which NUS-WIDE and its like are published.

The three lists of a protocol (train.txt, database.txt, test.txt) lie in one folder, and paths are relative to it.
Here they become one source, in which an image that two lists name is one image, and the positions of each list in it.

Shapes: N images, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from distilhash.data.decode import EXTENSIONS
from distilhash.data.folders import FileSource, checked_folder, image_file
from distilhash.errors import UserError

LISTS = ("train.txt", "database.txt", "test.txt")

# The path ends at the last image ending of the line, so that it may hold spaces.
_LINE = re.compile(rf"(.*(?:{'|'.join(re.escape(e) for e in sorted(EXTENSIONS))}))(?:\s+(.*))?", re.IGNORECASE)


class ListSource(FileSource):
    """The images that the list files of a folder name, with their labels.

    ``lists`` gives the indices of each list's images, in the order of its lines, by the list's name without ending.
    Labels are (N, C) uint8, or (N,) int64 classes where every line has exactly one 1. Errors: UserError with the
    file and line.
    """

    def __init__(self, root: str | Path, names: Sequence[str] = LISTS) -> None:
        root = checked_folder(root)
        label_of: dict[str, str] = {}
        self.lists: dict[str, NDArray[np.int64]] = {}
        position: dict[str, int] = {}
        columns: int | None = None
        for name in names:
            lines = _parse(root / name, columns)
            for path, labels in lines.items():
                if label_of.setdefault(path, labels) != labels:
                    raise UserError("two lists give one image different labels", f"{path} in {root / name}")
                position.setdefault(path, len(position))
                columns = len(labels.split())
            self.lists[Path(name).stem] = np.array([position[path] for path in lines], np.int64)
        if columns is None or columns < 2:
            raise UserError("list files need two label columns or more", f"{columns or 0} in {root}")
        files = [image_file(root, path) for path in label_of]
        missing = [path for path, file in zip(label_of, files, strict=True) if file is None]
        if missing:
            raise UserError(
                "the list files name images that are not there",
                f"{len(missing)} of {len(files)} missing under {root}: {', '.join(missing[:3])}",
                "put them there or take the lines out",
            )
        present = [file for file in files if file is not None]
        labels_NC = np.array([np.fromstring(text, np.uint8, sep=" ") for text in label_of.values()], np.uint8)
        one_hot = bool((labels_NC.sum(axis=1) == 1).all())
        super().__init__(
            root, present, labels_NC.argmax(axis=1) if one_hot else labels_NC, [str(c) for c in range(columns)]
        )


def _parse(file: Path, columns: int | None) -> dict[str, str]:
    """{relative path: labels as "0 1 0"} of one list file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError("a list file cannot be read", f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError("a list file is not UTF-8 text", f"{file}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {file}"
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError("a list line must begin with the path of an image", f"{line.strip()[:80]!r} in {where}")
        path, values = _inside(match[1], where), (match[2] or "").split()
        if columns is None:
            columns = len(values)
        if not values:
            raise UserError("a list line must have labels after the path", where)
        if len(values) != columns:
            raise UserError(
                "a list line has another number of labels than those before it",
                f"{len(values)} instead of {columns} in {where}",
            )
        if not set(values) <= {"0", "1"}:
            wrong = next(value for value in values if value not in ("0", "1"))
            raise UserError("labels in a list are 0 or 1", f"{wrong!r} in {where}")
        if path in found:
            raise UserError("a list names one image twice", f"{path} in {where}", "take one of the lines out")
        found[path] = " ".join(values)
    if not found:
        raise UserError("a list file is empty", str(file))
    return found


def _inside(text: str, where: str) -> str:
    """The path without ``.``; refused where it leaves the root. Links inside the root are its owner's business."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", text) or "\0" in text:
        raise UserError(
            "a list path must stay inside the folder of the list",
            f"{text!r} in {where}",
            "write it relative to that folder",
        )
    return str(path)
