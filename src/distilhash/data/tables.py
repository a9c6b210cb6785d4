"""Images that a table names (CSV, TSV or Parquet), or that a dataset object of Python holds.

A table has a column of paths and, where its images have labels, one of classes; "a|b" are several classes. Paths are
relative to the table. A column "split" says which part an image belongs to: train, validation, test or database.

Shapes: N images, C classes.
"""

from __future__ import annotations

import csv
import importlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distilhash.data.folders import part_of_folder
from distilhash.data.sources import FileSource, Given, GivenSource, checked_labels
from distilhash.errors import DistilhashError, refused

ENDINGS = (".csv", ".tsv", ".parquet")
PATHS = ("path", "file", "file_name", "filename", "image", "image_path")
LABELS = ("label", "labels", "class", "class_name", "target", "targets")
SPLIT = "split"


def is_table(where: object) -> bool:
    """Whether a place is named like a table."""
    return isinstance(where, str | Path) and Path(where).suffix.lower() in ENDINGS


class TableSource(FileSource):
    """The images of a table, in the order of its rows.

    Args:
        file: .csv, .tsv or .parquet (which needs pyarrow).
        labelled: are the labels read? None: where there is such a column.

    Raises:
        DistilhashError: the file is no such table, or names an image twice or one that is not there.
    """

    def __init__(self, file: str | Path, labelled: bool | None = None) -> None:
        columns = _columns(Path(file).expanduser())
        paths = [str(path) for path in _one_of(columns, PATHS, file)]
        root = str(Path(file).expanduser().parent)
        super().__init__([os.path.join(root, path) for path in paths], paths)  # noqa: PTH118
        twice = [path for path, count in Counter(paths).items() if count > 1]
        if not paths or twice:
            raise DistilhashError("a table names every image once", f"{', '.join(twice[:3]) or 'no image'} in {file}")
        missing = [path for path, full in zip(paths, self.paths, strict=True) if not os.path.isfile(full)]  # noqa: PTH113
        if missing:
            got = f"{len(missing)} of {len(paths)} missing in {file}: {', '.join(missing[:3])}"
            raise DistilhashError("a table names images that are not there", got, "paths are relative to the table")
        if labelled or (labelled is None and any(name in columns for name in LABELS)):
            several = [_classes(label) for label in _one_of(columns, LABELS, file)]
            bare = next((path for path, classes in zip(paths, several, strict=True) if not classes), None)
            if bare is not None:
                raise DistilhashError("an image of a table has no label", f"{bare} in {file}")
            self.class_names = sorted({name for classes in several for name in classes})
            place = {name: number for number, name in enumerate(self.class_names)}
            hot_NC = np.zeros((len(paths), len(place)), np.uint8)
            for row, classes in zip(hot_NC, several, strict=True):
                row[[place[name] for name in classes]] = 1
            self.labels = hot_NC.argmax(axis=1) if (hot_NC.sum(axis=1) == 1).all() else hot_NC
        if SPLIT in columns:
            parts = [part_of_folder(str(part)) for part in columns[SPLIT]]
            if None in parts:
                got = f"{columns[SPLIT][parts.index(None)]!r} in {file}"
                raise DistilhashError("a part of a split is train, validation, test or database", got)
            self.lists = {str(part): np.flatnonzero([part == each for each in parts]) for part in dict.fromkeys(parts)}


class DatasetSource(GivenSource):
    """The images of a dataset object, as of torchvision or Hugging Face datasets, decoded when they are read.

    Args:
        dataset: has a length, and rows (image, label) or {"image": ..., "label": ...}; an image is a path, a PIL image
            or a uint8 array (H, W, 3), a label a class or a row of 0/1.
        labelled: are the labels read? None: where there are any.

    Raises:
        DistilhashError: it is no such object.
    """

    def __init__(self, dataset: Any, labelled: bool | None = None) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or not len(dataset):
            raise DistilhashError("images are a name, a path or a dataset with rows", type(dataset).__name__)
        self.images, self.decodes = dataset, True
        self.names = [f"{i:05d}" for i in range(len(dataset))]
        key = _label_key(dataset[0])
        self._image(0)
        if labelled and key is None:
            raise DistilhashError("the rows of this dataset have no label", type(dataset).__name__)
        if labelled is not False and key is not None:
            features = getattr(dataset, "features", {})
            targets = dataset[key] if features else getattr(dataset, "targets", None)
            targets = [dataset[i][key] for i in range(len(dataset))] if targets is None else targets
            self.labels = checked_labels(np.asarray(list(targets)), len(dataset))
            names = getattr(dataset, "classes", None) or getattr(features.get(key), "names", None)
            self.class_names = [str(name) for name in names or ()]

    def _image(self, index: int) -> Given:
        row = self.images[index]
        values = list(row.values()) if isinstance(row, Mapping) else row if isinstance(row, tuple | list) else [row]
        for value in values:
            if isinstance(value, Image.Image) or getattr(value, "ndim", 0) == 3:
                return value
        found = next((value for value in values if isinstance(value, str | os.PathLike)), None)
        if found is None:
            raise DistilhashError("a row of this dataset holds no image", f"row {index}: {type(row).__name__}")
        return found


def _label_key(row: Any) -> Any:
    """The key of the label in a row of a dataset; None where it has none."""
    if isinstance(row, Mapping):
        return next((name for name in LABELS if name in row), None)
    return 1 if isinstance(row, tuple | list) and len(row) > 1 else None


def _columns(file: Path) -> Mapping[str, Sequence[Any]]:
    """The columns of a table by their names, in lower case."""
    try:
        if file.suffix.lower() == ".parquet":
            try:
                parquet: Any = importlib.import_module("pyarrow.parquet")
            except ImportError as error:
                raise DistilhashError("a Parquet file needs pyarrow", error, "pip install pyarrow") from error
            try:
                table = parquet.read_table(file).to_pydict()
            except ValueError as error:  # pyarrow's own errors are such, too
                raise DistilhashError("this file is no Parquet table", f"{file} ({error})") from error
            return {str(name).lower(): column for name, column in table.items()}
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            rows = list(csv.reader(stream, delimiter=max(",;\t", key=head.count)))
    except OSError as error:
        raise refused(f"cannot read the table {file}", error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DistilhashError("this file is no table of text", f"{file} ({error})") from error
    names, rows = [name.strip().lower() for name in (rows or [[]])[0]], [row for row in rows[1:] if row]
    wrong = next((row for row in rows if len(row) != len(names)), None)
    if wrong is not None:
        raise DistilhashError("a row of a table has another number of columns than its head", f"{wrong} in {file}")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}


def _one_of(columns: Mapping[str, Sequence[Any]], names: Sequence[str], file: str | Path) -> Sequence[Any]:
    for name in names:
        if name in columns:
            return columns[name]
    got = f"{', '.join(columns) or 'no column'} in {file}"
    raise DistilhashError(f"a table lacks a column {names[0]!r}", got, f"call it {' or '.join(names)}")


def _classes(label: Any) -> list[str]:
    """The names of the classes in a cell: a text, a number or a list."""
    cells = label if isinstance(label, list | tuple) else "" if label is None else str(label).split("|")
    return [str(cell).strip() for cell in cells if str(cell).strip()]
