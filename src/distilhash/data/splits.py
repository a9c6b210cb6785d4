"""Query, train, validation and database splits: drawn once, saved, and checked.

The published CIFAR-10 protocols draw from all 60,000 images, per class:

    name        query   train   database
    cifar10       100     500      5,400   the database is what is left: 1k / 5k / 54k
    cifar10-1     100     500      5,900   as published: 1k / 5k / 59k, train lies inside the database
    cifar10-2   1,000   5,000      5,000   10k / 50k / 50k, train is the database

The published code draws anew for every run, chooses its best epoch on the query images, and distils on them. Here a
split is a function of its seed (a hash of seed, class and image: the same for any NumPy version); every choice is made
on the validation set, which is a part of train; and ``unlabelled``, what distillation may see, never holds a query.

Shapes: N images, C classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distilhash.data.order import SPLITS, shuffled
from distilhash.errors import DistilhashError, unknown_name
from distilhash.files import write_atomically

# protocol -> (query, train, is the database all that is no query?) images a class
CIFAR10_PROTOCOLS = {"cifar10": (100, 500, False), "cifar10-1": (100, 500, True), "cifar10-2": (1000, 5000, True)}

_PARTS = ("query", "train", "validation", "database")
_MAX_BYTES = 256 << 20  # of a split file; the largest published one has a few megabytes


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Indices of the images of each part, each ascending and int64.

    Raises:
        DistilhashError: the parts contradict each other.
    """

    protocol: str
    seed: int
    num_images: int  # of the source that the indices point into
    query: NDArray[np.int64]  # of the final evaluation, used nowhere else
    train: NDArray[np.int64]  # labelled; the published training set, validation included
    validation: NDArray[np.int64]  # a part of train, on which every choice is made; may be empty
    database: NDArray[np.int64]  # what is searched
    class_names: tuple[str, ...] = ()
    source: str = ""  # fingerprint of that source; empty: not recorded

    def __post_init__(self) -> None:
        """Sort the parts and refuse those that contradict each other."""
        for part in _PARTS:
            indices = np.sort(np.asarray(getattr(self, part), np.int64))
            object.__setattr__(self, part, indices)
            if part != "validation" and indices.size == 0:
                raise DistilhashError(f"the split has no {part} images")
            if indices.size and (indices[0] < 0 or indices[-1] >= self.num_images):
                got = f"{indices[0]}..{indices[-1]} for {self.num_images} images"
                raise DistilhashError(f"an index of {part} lies outside the images", got)
            twice = indices[1:][indices[1:] == indices[:-1]]
            if twice.size:
                raise DistilhashError(f"{part} holds one image twice", twice[0])
        for part in ("train", "database"):
            shared = np.intersect1d(self.query, getattr(self, part))
            if shared.size:
                got = f"{shared.size} of them, such as image {shared[0]}"
                raise DistilhashError(f"query images lie in {part}, too", got)
        outside = np.setdiff1d(self.validation, self.train)
        if outside.size:
            raise DistilhashError("validation must be a part of train", f"image {outside[0]} outside it")
        if self.fit.size == 0:
            raise DistilhashError("validation takes every training image", f"{self.train.size} of them")

    @property
    def fit(self) -> NDArray[np.int64]:
        """Train without validation: what the weights are fitted to while something is still to be chosen."""
        return np.setdiff1d(self.train, self.validation)

    @property
    def unlabelled(self) -> NDArray[np.int64]:
        """Database and train together: the images that distillation may see. Never a query."""
        return np.union1d(self.database, self.train)

    def cut(
        self, seed: int, *, query: int | None = None, train: int | None = None, database: int | None = None
    ) -> Split:
        """The same split with at most so many images of a part, drawn by the seed; left out: all of them."""

        def drawn(part: NDArray[np.int64], size: int | None, stream: int) -> NDArray[np.int64]:
            return shuffled(part, seed, SPLITS, stream)[:size]

        kept = drawn(self.train, train, 1001)
        return dataclasses.replace(
            self, query=drawn(self.query, query, 1002), train=kept, database=drawn(self.database, database, 1000),
            validation=np.intersect1d(self.validation, kept),
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, whole or not at all. Raises DistilhashError where the disk refuses."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data |= {part: data[part].tolist() for part in _PARTS}
        write_atomically(Path(path), json.dumps(data))

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read a split. Raises DistilhashError for a file that is missing, or is not a split in every detail."""
        path = Path(path)
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise DistilhashError("a split file is too large", f"{path}: {path.stat().st_size:,} bytes")
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise DistilhashError("a split file cannot be read", f"{path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise DistilhashError("a split file is not JSON", f"{path}: {error}") from error
        return cls(**_checked(data, path))


def cifar10_split(
    labels_N: ArrayLike, protocol: str = "cifar10", seed: int = 0, validation_per_class: int = 50
) -> Split:
    """Draw a published CIFAR-10 protocol from the labels of all 60,000 images. Raises DistilhashError for others."""
    if protocol not in CIFAR10_PROTOCOLS:
        raise unknown_name("CIFAR-10 protocol", protocol, CIFAR10_PROTOCOLS)
    labels = np.asarray(labels_N)
    if labels.shape != (60_000,) or not np.array_equal(np.bincount(labels), np.full(10, 6000)):
        raise DistilhashError("the CIFAR-10 protocols need the labels of all 60,000 images", f"shape {labels.shape}")
    num_query, num_train, database_is_rest = CIFAR10_PROTOCOLS[protocol]
    if not 0 <= validation_per_class < num_train:
        raise DistilhashError(f"validation takes 0 to {num_train - 1} images a class", str(validation_per_class))
    drawn = np.stack([shuffled(np.flatnonzero(labels == c), seed, SPLITS, c) for c in range(10)])
    return Split(
        protocol=protocol, seed=seed, num_images=len(labels),
        query=drawn[:, :num_query].ravel(),
        train=drawn[:, num_query : num_query + num_train].ravel(),
        validation=drawn[:, num_query : num_query + validation_per_class].ravel(),
        database=drawn[:, num_query if database_is_rest else num_query + num_train :].ravel(),
    )  # fmt: skip


def holdout_split(
    labels: ArrayLike, query_share: float = 0.1, validation_share: float = 0.1, seed: int = 0,
    *, class_names: tuple[str, ...] = (),
) -> Split:  # fmt: skip
    """Draw a split of one's own labelled images: a share of every class is query, the rest is train and database.

    Args:
        labels: (N,) classes, drawn class by class, or (N, C) of 0/1, drawn from all images at once, since an image
            with several labels belongs to no one class.
        query_share, validation_share: of each class, and of its train images; rounded, at least one image.
        seed: decides the draw.
        class_names: kept with the split, and used in errors.

    Raises:
        DistilhashError: a class with fewer than three images, or a share outside (0, 1).
    """
    labels = np.asarray(labels)
    if not (0 < query_share < 1 and 0 < validation_share < 1):
        raise DistilhashError("a share lies between 0 and 1", f"query {query_share}, validation {validation_share}")
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    numbers, counts = np.unique(classes, return_counts=True)
    few = [class_names[c] if c < len(class_names) else f"class {c}" for c in numbers[counts < 3]]
    if few or len(numbers) == 0:
        raise DistilhashError(
            "every class needs three images: a query, one to train on and one to validate on",
            f"too few in {', '.join(few[:5])}{', ...' if len(few) > 5 else ''}" if few else "no images",
            "add images or take the class away",
        )
    query, validation, train = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for c in numbers:
        drawn = shuffled(np.flatnonzero(classes == c), seed, SPLITS, int(c))
        num_query = min(max(1, round(query_share * len(drawn))), len(drawn) - 2)
        kept = drawn[num_query:]
        query.append(drawn[:num_query])
        train.append(kept)
        validation.append(kept[: min(max(1, round(validation_share * len(kept))), len(kept) - 1)])
    return Split(
        protocol=f"holdout-{query_share:g}", seed=seed, num_images=len(labels), query=np.concatenate(query),
        train=np.concatenate(train), validation=np.concatenate(validation), database=np.concatenate(train),
        class_names=class_names,
    )  # fmt: skip


def list_split(
    lists: Mapping[str, NDArray[np.int64]], num_images: int, validation_share: float = 0.1, seed: int = 0
) -> Split:
    """The split that list files prescribe (``ListSource.lists``): test is query; validation is drawn from train.

    Raises:
        DistilhashError: a list is missing, the lists overlap as they must not, or the share is not in [0, 1).
    """
    missing = sorted({"train", "database", "test"} - set(lists))
    if missing:
        raise DistilhashError("a split by lists needs train, database and test", f"no {', '.join(missing)}")
    if not 0 <= validation_share < 1:
        raise DistilhashError("the validation share lies in [0, 1)", str(validation_share))
    train = lists["train"]
    return Split(
        protocol="lists", seed=seed, num_images=num_images, query=lists["test"], train=train,
        validation=shuffled(train, seed, SPLITS)[: round(validation_share * len(train))], database=lists["database"],
    )  # fmt: skip


def _checked(data: Any, path: Path) -> dict[str, Any]:
    """The fields of a split from JSON that anyone may have edited."""
    names = {field.name for field in dataclasses.fields(Split)}
    if not isinstance(data, dict) or set(data) != names:
        raise DistilhashError("a file is not a split", str(path), f"its fields must be {', '.join(sorted(names))}")

    def is_integer(value: object) -> bool:
        return type(value) is int and -(2**62) < value < 2**62  # type() because True is an int, too

    def is_text(value: object) -> bool:
        return isinstance(value, str)

    def is_list(value: object, fits: Callable[[object], bool]) -> bool:
        return isinstance(value, list) and all(map(fits, value))

    sound = {name: is_text(data[name]) for name in ("protocol", "source")}
    sound |= {name: is_integer(data[name]) for name in ("seed", "num_images")}
    sound |= {part: is_list(data[part], is_integer) for part in _PARTS}
    sound["class_names"] = is_list(data["class_names"], is_text)
    wrong = sorted(name for name, fine in sound.items() if not fine)
    if wrong:
        raise DistilhashError("a split file holds a value of the wrong type", f"{', '.join(wrong)} in {path}")
    return {**data, "class_names": tuple(data["class_names"])}
