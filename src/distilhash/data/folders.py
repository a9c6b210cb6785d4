"""Images that are files: a folder, found by walking it, in an order that any machine agrees on.

The fingerprint of files is a hash of each one's relative path, size and time of last change, not of its content: it
costs no reading, and misses only an edit that keeps both.

Shapes: N images, n images of a batch, H, W sides in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from distilhash.data.decode import EXTENSIONS, decode_image
from distilhash.data.sources import Labels
from distilhash.errors import DistilhashError


@dataclasses.dataclass(frozen=True, order=True)
class ImageFile:
    """One file under a root. A link that leads nowhere has size -1: reading it tells why."""

    name: str  # relative, with "/", and with any byte that is not UTF-8 escaped
    path: str  # the same, as the operating system has it
    size: int  # bytes
    changed_ns: int  # time of last change, nanoseconds


class FileSource:
    """Images that are files under one root; a folder and its list files differ in how the files are found."""

    decodes = True

    def __init__(self, root: Path, files: Sequence[ImageFile], labels: Labels, class_names: Sequence[str]) -> None:
        self.root = root
        self.files = files
        self.names = [file.name for file in files]
        self.labels = labels
        self.class_names = list(class_names)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of every file's relative path, size and time of last change, and of the labels."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.size}\0{file.changed_ns}\n".encode())
        digest.update(b"" if self.labels is None else np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]

    def read(self, indices: ArrayLike, least_side: int | None = None) -> list[Image.Image]:
        """The images of these indices, decoded, in mode RGB. Errors: UnreadableImage."""
        files = [self.files[i] for i in np.asarray(indices, np.int64)]
        return [decode_image(self.root / file.path, file.name, least_side) for file in files]


class FolderSource(FileSource):
    """The images of a folder and of all folders below it, in the order of their relative paths.

    ``labelled``: the folders just below the root are the classes. Links are followed, each real folder is visited
    once; names that begin with a dot are passed over. Errors: DistilhashError where there is nothing to read, or where the
    folder is no labelled one.
    """

    def __init__(self, root: str | Path, labelled: bool = False) -> None:
        root = checked_folder(root)
        files = sorted(_image_files(root))
        if not files:
            raise DistilhashError(
                "a folder holds no images", str(root), f"known endings: {' '.join(sorted(EXTENSIONS))}"
            )
        labels, class_names = _folder_classes(root, files) if labelled else (None, [])
        super().__init__(root, files, labels, class_names)


def checked_folder(root: str | Path) -> Path:
    """The folder as a path. Errors: DistilhashError where there is none."""
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "a folder is wanted, and this is a file" if path.exists() else "there is no such folder"
        raise DistilhashError(what, str(root), "name a folder of images, or cifar10")
    return path


def image_file(root: Path, path: str) -> ImageFile | None:
    """The file of this relative path; None where there is none."""
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 (a list has 200,000 of them, and a Path costs more than this)
    except (OSError, ValueError):
        return None
    return _described(path, status) if stat.S_ISREG(status.st_mode) else None


def _described(path: str, status: os.stat_result | None) -> ImageFile:
    name = path.replace(os.sep, "/")
    if not name.isascii():
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return ImageFile(name, path, status.st_size if status else -1, status.st_mtime_ns if status else 0)


def _image_files(root: Path) -> Iterable[ImageFile]:
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        if folders:
            folder = folders.pop()
        else:  # links last, so that an image gets the name of the place where it really lies
            links.sort(reverse=True)
            folder = links.pop()
        try:
            here = (root / folder).stat()
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            entries = [entry for entry in os.scandir(root / folder) if not entry.name.startswith(".")]
        except OSError as error:
            raise DistilhashError("a folder cannot be listed", f"{root / folder}: {error.strerror}") from error
        for entry in entries:
            path = os.path.join(folder, entry.name)  # noqa: PTH118 (a relative string, not a place)
            status = _status(entry)
            if _is_folder(status):
                (links if entry.is_symlink() else folders).append(path)
            elif Path(entry.name).suffix.lower() in EXTENSIONS and (status is None or stat.S_ISREG(status.st_mode)):
                yield _described(path, status)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of what the entry leads to; None for a link to nowhere or to itself."""
    try:
        return entry.stat()
    except OSError:
        return None


def _is_folder(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISDIR(status.st_mode)


def _folder_classes(root: Path, files: Sequence[ImageFile]) -> tuple[NDArray[np.int64], list[str]]:
    loose = [file.name for file in files if "/" not in file.name]
    if loose:
        raise DistilhashError(
            "in a labelled folder every image lies in the folder of its class",
            f"{len(loose)} images directly in {root}, such as {loose[0]}",
            "move them into class folders, or open the folder as unlabelled",
        )
    of_file = [file.name.split("/")[0] for file in files]
    class_names = sorted(set(of_file))
    folders = {_described(entry.name, None).name for entry in os.scandir(root) if _is_folder(_status(entry))}
    empty = sorted(name for name in folders - set(class_names) if not name.startswith("."))
    if empty:
        raise DistilhashError(
            "a class folder holds no images", f"{', '.join(empty[:3])} in {root}", "fill it or take it away"
        )
    if len(class_names) < 2:
        raise DistilhashError(
            "a labelled folder needs images in two class folders or more", f"only {class_names[0]!r} in {root}"
        )
    number = {name: i for i, name in enumerate(class_names)}
    return np.array([number[name] for name in of_file], np.int64), class_names
