"""Images that are files, below a folder or named by list files; one file, as photos and training find them by one walk.

A folder is read as what its folders say: classes; or the parts of a split (train, val and test, or query, gallery and
train), with the classes below them; or nothing, where all images lie in it directly. Whatever is in doubt is told, and
refused where labels matter, for a labelled set that is taken for an unlabelled one would be distilled on whole.

Shapes: N images, C classes.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilhash.config import ScanConfig
from distilhash.data.decode import EXTENSIONS, SIGNATURE_BYTES, is_image
from distilhash.data.sources import FileSource
from distilhash.errors import DistilhashError, refused
from distilhash.progress import log

LISTS = ("train.txt", "database.txt", "test.txt")
# A folder that is a part of a split, such as "Train", "test_set" or "val2"; the group is the list that it stands for.
_PART = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<validation>val(?:id(?:ation)?)?)|(?P<test>test(?:ing)?|query|queries)"
    r"|(?P<database>gallery|database))s?(?:[ _.-]?(?:set|data|images|split))?(?:[ _.-]?\d+)?"
)
# What programs keep for themselves, in lower case: thumbnails, snapshots, bins.
SKIPPED = frozenset({
    "__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin",
    "system volume information", "node_modules", "lost+found",
})  # fmt: skip
KINDS = 6  # endings that are told of files that are no images

# Without a space and with a letter: in "10.15.33" and "Dr. Smith" there is none.
_ENDING = re.compile(r"\.(?=.*[a-z])\S{1,12}")
# The path ends at the last image ending of the line, so that it may hold spaces; or, without an ending, at the labels.
_LINE = re.compile(rf"(.*(?:{'|'.join(re.escape(e) for e in sorted(EXTENSIONS))}))(?:\s+(.*))?", re.IGNORECASE)
_PLAIN_LINE = re.compile(r"(?![01]\s)(.*?\S)\s+([01](?:\s+[01])*)")


class FoundFile(NamedTuple):
    """A file that looks like an image. A link to nowhere has size -1: reading it tells why."""

    path: str  # the root as it was given, and what lies below it
    size: int  # bytes
    changed_ns: int  # time of last change, nanoseconds modulo 2**64, as an int64: any date is one

    @classmethod
    def of(cls, path: str, status: os.stat_result | None) -> FoundFile:
        """The file at a path, as its status says."""
        if status is None:
            return cls(path, -1, 0)
        return cls(path, status.st_size, (status.st_mtime_ns + (1 << 63)) % (1 << 64) - (1 << 63))


class Walk(NamedTuple):
    """What was found below the roots."""

    files: list[FoundFile]  # root by root, folder by folder, by name
    unreadable: list[tuple[str, str]]  # (folder, reason)
    others: Counter[str]  # number of other files by their ending, in lower case; "" where there is none


def walk(roots: Iterable[str], scan: ScanConfig | None = None) -> Walk:
    """Find the images below these folders."""
    files: list[FoundFile] = []
    unreadable: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    for root in roots:
        passes = passing_over(root, scan or ScanConfig())
        folders, links = [root], list[str]()
        while folders or links:
            if not folders:  # links last, so that an image gets the name of the place where it really lies
                links.sort(reverse=True)
            folder = folders.pop() if folders else links.pop()
            try:
                here = Path(folder).stat()
                if (here.st_dev, here.st_ino) in seen:
                    continue
                seen.add((here.st_dev, here.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                unreadable.append((folder, error.strerror or str(error)))
                continue
            below = list[str]()
            for entry in entries:
                if passes(entry.path):
                    continue
                status = _status(entry.path)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    (links if entry.is_symlink() else below).append(entry.path)
                elif status is None or stat.S_ISREG(status.st_mode):
                    ending = _ending(entry.name)
                    if ending in EXTENSIONS or (not ending and _begins_as_image(entry.path)):
                        files.append(FoundFile.of(entry.path, status))
                    else:
                        others[ending] += 1
            folders += reversed(below)
    return Walk(files, unreadable, others)


def told_others(others: Mapping[str, int]) -> str:
    """How many files are no images, by ending, in one line; empty where there are none."""
    shown = Counter(others).most_common(KINDS)
    kinds = [f"{count:,} {ending or 'without an ending'}" for ending, count in shown]
    total = sum(others.values())
    rest = total - sum(count for _, count in shown)
    kinds += [f"{rest:,} of other kinds"] * (rest > 0)
    return f"files that are no images: {total:,} ({', '.join(kinds)})" if total else ""


def passing_over(root: str, scan: ScanConfig) -> Callable[[str], bool]:
    """Whether a path below this root is left out, with all below it; of the folders above it nothing is asked."""
    patterns = [fnmatch.translate(pattern.rstrip("/")) for pattern in scan.exclude]
    excluded = re.compile("|".join(patterns)) if patterns else None
    start = len(os.path.join(root, ""))  # noqa: PTH118

    def passes(path: str) -> bool:
        name = os.path.basename(path)  # noqa: PTH119 (a Path a file is slow)
        if not scan.hidden and (name.startswith(".") or name.lower() in SKIPPED):
            return True
        below = path[start:].replace(os.sep, "/")
        # "/raw" is the one directly in the root; "**/raw" any, as everywhere.
        return excluded is not None and any(map(excluded.fullmatch, (name, below, f"/{below}")))

    return passes


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether a path lies in one of these folders, or is one."""
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def _status(path: str) -> os.stat_result | None:
    """Of what the path leads to; None for a link to nowhere or to itself, and for no path at all."""
    try:
        return os.stat(path)  # noqa: PTH116 (a Path of 200,000 is slow)
    except (OSError, ValueError):
        return None


def _ending(name: str) -> str:
    """What follows the last dot, with it and in lower case; empty where that is no ending."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return ending if ending in EXTENSIONS or _ENDING.fullmatch(ending) else ""


def _begins_as_image(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return is_image(file.read(SIGNATURE_BYTES))
    except OSError:
        return False


class FolderSource(FileSource):
    """The images of a folder and of all folders below it, in the order of their relative paths.

    A folder below it that cannot be listed is left out, and is in ``found``. Where the folders are the parts of a
    split, ``lists`` gives the images of each.

    Args:
        root: the folder.
        labelled: are the folders its classes, or parts with classes? None: where they can be, and a warning says why
            not.
        certain: with None, images in folders that are neither are an error; so only a flat folder has no labels.
        scan: which files below it are read.

    Raises:
        DistilhashError: the folder has no images, or is no labelled one.
    """

    def __init__(
        self, root: str | Path, labelled: bool | None = False, *, certain: bool = False, scan: ScanConfig | None = None
    ) -> None:
        self.root, self.scan = checked_folder(root), scan or ScanConfig()
        found = walk([str(self.root)], self.scan)
        if not found.files:
            why = [f"{folder} cannot be listed: {reason}" for folder, reason in found.unreadable[:1]]
            why += [told_others(found.others)] * bool(found.others)
            endings = f"known endings: {' '.join(sorted(EXTENSIONS))}"
            raise DistilhashError("a folder holds no images", "; ".join([str(root), *why]), endings)
        paths = sorted((self._name(file.path), file.path) for file in found.files)
        super().__init__([path for _, path in paths], [name for name, _ in paths])
        self.found = found._replace(files=[])
        if labelled is not False:
            self.read_labels(needed=bool(labelled), certain=certain)

    def read_labels(self, *, needed: bool = False, certain: bool = False) -> None:
        """Take the folders for classes or parts: in any case where that is ``needed``, else where they can be."""
        try:
            self.lists = self._parts()
            level = 1 if self.lists else 0  # of the folders that are classes
            if needed or any(name.count("/") > level for name in self.names):
                # A gallery's queries may all be of one class.
                self.labels, self.class_names = self._classes(level, 2 if needed or certain else 1)
        except DistilhashError as error:
            if needed or (certain and not self.lists):  # parts say enough to leave the queries out
                raise
            log.warning("no labels are read: %s", error)

    def _name(self, path: str) -> str:
        """A path relative to the root, with "/"."""
        return _escaped(path[len(os.path.join(self.root, "")) :].replace(os.sep, "/"))  # noqa: PTH118

    def _parts(self) -> dict[str, NDArray[np.int64]]:
        """The images of each part, where the folders just below the root are the parts of a split; else none."""
        tops = [name.partition("/")[0] if "/" in name else "" for name in self.names]
        matches = {top: _PART.fullmatch(top.lower()) for top in sorted(set(tops))}
        folders = {top: str(match.lastgroup) for top, match in matches.items() if match}
        others = [top or "loose images" for top, match in matches.items() if not match]
        deep = any(top in folders and name.count("/") > 1 for top, name in zip(tops, self.names, strict=True))
        if folders and others and (len(folders) > 1 or deep or "" in matches):
            beside = f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"
            raise DistilhashError(
                "a folder holds either the parts of a split or classes",
                f"{', '.join(folders)} beside {beside} in {self.root}",
                "move one of the two away, or distil with --unlabelled",
            )
        of_one_kind = len(folders) > 1 and len({re.sub(r"[ _.-]?\d+$", "", folder) for folder in folders}) == 1
        if folders and (others or of_one_kind):
            log.warning("read as classes, not as parts of a split: %s in %s", ", ".join(folders), self.root)
            return {}
        if len(set(folders.values())) < len(folders):
            got = f"{', '.join(folders)} in {self.root}"
            raise DistilhashError("two folders stand for one part of the split", got, "join them")
        return {part: np.flatnonzero([top == folder for top in tops]) for folder, part in folders.items()}

    def _classes(self, level: int, least: int) -> tuple[NDArray[np.int64], list[str]]:
        """(N,) classes and their names: the folders just below the root, or below its parts, which is level 1."""
        loose = [name for name in self.names if name.count("/") <= level]
        if loose:
            raise DistilhashError(
                "in a labelled folder every image lies in the folder of its class",
                f"{len(loose)} images beside the class folders in {self.root}, such as {loose[0]}",
                "move them into class folders or away, or distil with --unlabelled",
            )
        class_names, classes_N = np.unique([name.split("/")[level] for name in self.names], return_inverse=True)
        if level == 0:
            passes = passing_over(str(self.root), self.scan)
            paths = [os.path.join(self.root, name) for name in os.listdir(self.root)]  # noqa: PTH118, PTH208
            folders = [path for path in paths if os.path.isdir(path) and not passes(path)]  # noqa: PTH112
            empty = sorted({self._name(path) for path in folders}.difference(class_names.tolist()))
            if empty:
                closed = {self._name(folder): f" (cannot be listed: {why})" for folder, why in self.found.unreadable}
                where = f"{', '.join(name + closed.get(name, '') for name in empty[:3])} in {self.root}"
                fix = "fill it, give access to it, or leave it out with --exclude"
                raise DistilhashError("a class folder holds no images", where, fix)
        if len(class_names) < least:
            raise DistilhashError(
                "a labelled folder needs images in two class folders or more",
                f"only {str(class_names[0])!r} in {self.root}",
                "name the folder inside, if that holds the classes, or distil with --unlabelled",
            )
        return classes_N.astype(np.int64), class_names.tolist()


class ListSource(FileSource):
    """The images that the list files of a folder name, with their labels: ``path 0 1 0 ...`` a line, as in NUS-WIDE.

    Paths are relative to the folder. ``lists`` gives the images of each list, in the order of its lines; an image that
    two of them name is one image of the source. Labels are (N, C) uint8, or (N,) int64 classes where every line has
    exactly one 1.

    Args:
        root: the folder.
        complete: whether an image that is not there is an error.

    Raises:
        DistilhashError: with the file and line, or with the images that are not there.
    """

    def __init__(self, root: str | Path, *, complete: bool = True) -> None:
        root = checked_folder(root)
        digits, lists = _read_lists(root)
        super().__init__([os.path.join(root, path) for path in digits], list(map(_escaped, digits)))  # noqa: PTH118
        place = {path: index for index, path in enumerate(digits)}
        self.lists = {name: np.array([place[path] for path in paths], np.int64) for name, paths in lists.items()}
        labels_NC = np.frombuffer("".join(digits.values()).encode(), np.uint8).reshape(len(digits), -1) - ord("0")
        self.labels = labels_NC.argmax(axis=1) if (labels_NC.sum(axis=1) == 1).all() else labels_NC
        self.class_names = [str(c) for c in range(labels_NC.shape[1])]
        self.missing_N = np.array([not os.path.isfile(path) for path in self.paths])  # noqa: PTH113
        missing = [name for name, gone in zip(self.names, self.missing_N, strict=True) if gone]
        if missing and complete:
            gone_of = {name: self.missing_N[part].sum() for name, part in self.lists.items()}
            counts = ", ".join(f"{count:,} in {name}" for name, count in gone_of.items() if count)
            raise DistilhashError(
                "the list files name images that are not there",
                f"{len(missing)} of {len(self)} missing under {root}: {', '.join(missing[:3])}",
                f"put them there or take the lines out ({counts}); distilhash check {root} counts them",
            )


def part_of_folder(name: str) -> str | None:
    """The part of a split that a name such as "Train" or "test_set" stands for."""
    found = _PART.fullmatch(name.strip().lower())
    return found.lastgroup if found else None


def checked_folder(root: str | Path) -> Path:
    """The folder as a path. Raises DistilhashError where there is none."""
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "a folder is wanted, and this is a file" if path.exists() else "there is no such folder"
        raise DistilhashError(what, str(root), "name a folder of images, or cifar10")
    return path


def list_files(root: str | Path) -> dict[str, Path]:
    """The list files of a folder by their names in LISTS, in whatever case they are written."""
    try:
        with os.scandir(root) as listing:
            files = sorted(entry.name for entry in listing if entry.name.lower() in LISTS and entry.is_file())
    except OSError:
        return {}
    found = {name.lower(): Path(root) / name for name in files}
    if len(found) < len(files):
        raise DistilhashError("two list files differ only in case", f"{', '.join(files)} in {root}", "keep one")
    return found


def _read_lists(root: Path) -> tuple[dict[str, str], dict[str, dict[str, None]]]:
    """The labels of each path, as "010", and the paths of each list by its name without ending; in order."""
    found = list_files(root)
    missing = [name for name in LISTS if name not in found]
    if missing:
        got = f"{', '.join(sorted(found)) or 'none'} and no {', '.join(missing)} in {root}"
        fix = "add what is missing, or take the others away"
        raise DistilhashError("a folder with list files needs train.txt, database.txt and test.txt", got, fix)
    labels_of: dict[str, str] = {}
    lists: dict[str, dict[str, None]] = {}
    columns = 0
    for name in LISTS:
        listed = lists[Path(name).stem] = {}
        for path, labels, where in _lines(found[name]):
            columns = columns or len(labels)
            if len(labels) != columns:
                what = "a list line has another number of labels than those before it"
                raise DistilhashError(what, f"{len(labels)} instead of {columns} in {where}")
            if path in listed:
                raise DistilhashError("a list names one image twice", f"{path} in {where}", "take one line out")
            listed[path] = None
            if labels_of.setdefault(path, labels) != labels:
                raise DistilhashError("two lists give one image different labels", f"{path} in {where}")
        if not listed:
            raise DistilhashError("a list file is empty", str(found[name]))
    if columns < 2:
        raise DistilhashError("list files need two label columns or more", f"{columns} in {root}")
    return labels_of, lists


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """(relative path, labels as "010", where it stands) of each line of a list file that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise refused(f"cannot read the list {file}", error) from error
    except UnicodeDecodeError as error:
        raise DistilhashError("a list file is not UTF-8 text", f"{file}: {error}") from error
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line:
            continue
        where = f"line {number} of {file}"
        match = _LINE.fullmatch(line) or _PLAIN_LINE.fullmatch(line)
        if match is None or _ending(match[1]) not in ("", *EXTENSIONS):
            raise DistilhashError("a list line must begin with the path of an image", f"{line[:80]!r} in {where}")
        labels = (match[2] or "").split()
        if not labels:
            raise DistilhashError("a list line must have labels after the path", where)
        wrong = [label for label in labels if label not in ("0", "1")]
        if wrong:
            raise DistilhashError("labels in a list are 0 or 1", f"{wrong[0]!r} in {where}")
        yield _inside(match[1], where), "".join(labels), where


def _inside(text: str, where: str) -> str:
    """The path without ``.``; refused where it leaves the root. Links inside the root are its owner's business."""
    path = text.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", path) or "\0" in path:
        what = "a list path must stay inside the folder of the list"
        raise DistilhashError(what, f"{text!r} in {where}", "write it relative to that folder")
    return "/".join(parts)


def _escaped(name: str) -> str:
    """The name with any byte that is not UTF-8 escaped."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
