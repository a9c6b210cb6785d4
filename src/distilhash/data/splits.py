"""Query, train, validation and database splits: drawn once, saved, and checked.

The published CIFAR-10 protocols draw from all 60,000 images, per class:

    name        query   train   database
    cifar10       100     500      5,400   the database is what is left: 1k / 5k / 54k
    cifar10-1     100     500      5,900   as published: 1k / 5k / 59k, train lies inside the database
    cifar10-2   1,000   5,000      5,000   10k / 50k / 50k, train is the database

The published code draws anew for every run, chooses its best epoch on the query images, and distils on them. Here a
split is a function of its seed (a hash of seed, class and image: the same for any NumPy version); every choice is made
on the validation set, which is a part of train; and ``unlabelled``, what distillation may see, never holds a query.

A split that was saved is applied to images by their content. Of files it keeps a digest and a name each, of an array
the fingerprint. Images that were renamed or moved keep their part, added ones have none, and it is refused where one
of its images was changed or is missing. One file: what draws a split, saves it and applies it must agree.

Shapes: N images, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from numpy.typing import ArrayLike, NDArray

from distilhash.data.order import SPLITS, shuffled
from distilhash.data.sources import DIGEST_BYTES, ImageSource, first_copies
from distilhash.errors import DistilhashError, refused, unknown_name
from distilhash.files import write_atomically
from distilhash.progress import log

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
    images: tuple[str, ...] = ()  # of a source of files: digest and name of each, as b2sum prints them

    def __post_init__(self) -> None:
        """Sort the parts and refuse those that contradict each other."""
        if self.images and len(self.images) != self.num_images:
            got = f"{len(self.images)} digests for {self.num_images} images"
            raise DistilhashError("a split must name each of its images", got)
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

    def bound(self, source: ImageSource) -> Split:
        """The same split, with the identity of the images that it was drawn from."""
        return dataclasses.replace(self, source=source.fingerprint, images=images_of(source))

    def of(self, source: ImageSource, file: str | Path) -> Split:
        """This split, which was saved in ``file``, of these images, wherever they are now.

        Raises:
            DistilhashError: one of its images was changed or is not there, or it does not say which they are.
        """
        if source.fingerprint == self.source and len(source) == self.num_images:
            return self
        fix = "name the split of these images with --split"
        if not self.images:
            # A split of CIFAR-10 is of all its images: their order is fixed, and they never change.
            if not self.source and self.protocol in CIFAR10_PROTOCOLS and not source.decodes:
                return self.bound(source)
            if self.source and not source.decodes:
                raise DistilhashError("the split is of other images", f"{file}, of {self.num_images:,} images", fix)
            raise DistilhashError("the split does not say which images it is of", file, "draw a new one: run it again")
        here = images_of(source)
        place_N, changes = matched(self.images, here)
        if (place_N < 0).any():
            fix = f"put them back as they were, or {fix}"
            raise DistilhashError("the split is of other images", f"{file}: {changes}", fix)
        log.warning(
            "%s: %s since it was drawn; images are known by their content, and added ones are in no part", file, changes
        )
        parts = {part: place_N[getattr(self, part)] for part in _PARTS}
        names = tuple(source.class_names) if self.class_names else ()
        return dataclasses.replace(
            self, num_images=len(source), class_names=names, source=source.fingerprint, images=here, **parts
        )

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, whole or not at all. Raises DistilhashError where the disk refuses."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data |= {part: data[part].tolist() for part in _PARTS}
        images = ",\n".join(json.dumps(line, ensure_ascii=False) for line in data.pop("images"))
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in data.items()]
        write_atomically(Path(path), "{" + ",\n".join([*lines, f'"images": [\n{images}]']) + "}\n")

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read a split. Raises DistilhashError for a file that is missing, or is not a split in every detail."""
        path = Path(path)
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise DistilhashError("a split file is too large", f"{path}: {path.stat().st_size:,} bytes")
            return cls(**dict(_saved().model_validate_json(path.read_bytes())))
        except OSError as error:
            raise refused(f"cannot read the split {path}", error, "name the split.json of a run") from error
        except pydantic.ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            place = "".join(f"{part}: " for part in wrong["loc"])
            raise DistilhashError("a file is not a split", f"{path}: {place}{wrong['msg']}") from error


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
    *, class_names: tuple[str, ...] = (), digests: NDArray[np.uint8] | None = None,
) -> Split:  # fmt: skip
    """Draw a split of one's own labelled images: a share of every class is query, the rest is train and database.

    Pictures are drawn, not files: all copies of one have the part of the first of them.

    Args:
        labels: (N,) classes, drawn class by class, or (N, C) of 0/1, drawn from all images at once, since an image
            with several labels belongs to no one class.
        query_share, validation_share: of each class, and of its train images; rounded, at least one image.
        seed: decides the draw.
        class_names: kept with the split, and used in errors.
        digests: (N, 16), by which copies are known; None: there are none.

    Raises:
        DistilhashError: a class with fewer than three different images, or a share outside (0, 1).
    """
    labels = np.asarray(labels)
    if not (0 < query_share < 1 and 0 < validation_share < 1):
        raise DistilhashError("a share lies between 0 and 1", f"query {query_share}, validation {validation_share}")
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    first_N = np.arange(len(labels)) if digests is None else first_copies(digests)
    pictures = np.unique(first_N)
    numbers = np.unique(classes)
    few = [c for c in numbers.tolist() if (classes[pictures] == c).sum() < 3]
    if few or len(numbers) == 0:
        names = [class_names[c] if c < len(class_names) else f"class {c}" for c in few[:5]]
        raise DistilhashError(
            "every class needs three different images: a query, one to train on and one to validate on",
            f"too few in {', '.join(names)}{', ...' * (len(few) > 5)}" if few else "no images",
            "add images, take the class away, or distil with --unlabelled",
        )
    query, validation, train = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for c in numbers.tolist():
        drawn = shuffled(pictures[classes[pictures] == c], seed, SPLITS, c)
        num_query = min(max(1, round(query_share * len(drawn))), len(drawn) - 2)
        kept = drawn[num_query:]
        query.append(drawn[:num_query])
        train.append(kept)
        validation.append(kept[: min(max(1, round(validation_share * len(kept))), len(kept) - 1)])
    parts = {"query": query, "train": train, "validation": validation, "database": train}
    with_copies: dict[str, Any] = {
        part: np.flatnonzero(np.isin(first_N, np.concatenate(chosen))) for part, chosen in parts.items()
    }
    protocol = f"holdout-{query_share:g}"
    return Split(protocol=protocol, seed=seed, num_images=len(labels), class_names=class_names, **with_copies)


def list_split(
    lists: Mapping[str, NDArray[np.int64]], num_images: int, validation_share: float = 0.1, seed: int = 0
) -> Split:
    """The split that lists or folders prescribe (``source.lists``): test is query.

    Validation is drawn from train where it has no list; where it has one, it is added to train. Where there is no
    database, train is searched, and where there is no train, the database trains.

    Raises:
        DistilhashError: a list is missing, the lists overlap as they must not, or the share is not in [0, 1).
    """
    if "test" not in lists or not {"train", "database"} & set(lists):
        got = f"only {', '.join(sorted(lists))}"
        fix = "add the missing one, name the folder inside, or distil with --unlabelled"
        raise DistilhashError("a split by lists or folders needs test, and train or database", got, fix)
    if not 0 <= validation_share < 1:
        raise DistilhashError("the validation share lies in [0, 1)", str(validation_share))
    train = lists["train"] if "train" in lists else lists["database"]
    if "validation" in lists:
        validation = lists["validation"]
        train = np.union1d(train, validation)
    else:
        validation = shuffled(train, seed, SPLITS)[: round(validation_share * len(train))]
    return Split(
        protocol="lists", seed=seed, num_images=num_images, query=lists["test"], train=train, validation=validation,
        database=lists.get("database", train),
    )  # fmt: skip


def images_of(source: ImageSource) -> tuple[str, ...]:
    """Digest and name of each image of a source of files, as b2sum prints them; none of an array."""
    if not source.decodes:
        return ()
    digests = source.digests.tobytes().hex()
    size = 2 * DIGEST_BYTES
    names = (name.replace("\n", "\\n") for name in source.names)  # a line each
    return tuple(f"{digests[size * i : size * (i + 1)]}  {name}" for i, name in enumerate(names))


def matched(before: Sequence[str], now: Sequence[str]) -> tuple[NDArray[np.int64], str]:
    """Where each image is now, -1 for one that is not; and what has happened to them, in words.

    An image is the one with its content: of several copies that of the same name, else any.
    """
    size = 2 * DIGEST_BYTES
    place = {line: index for index, line in enumerate(now)}
    place_N = np.array([place.get(line, -1) for line in before], np.int64)
    free = defaultdict[str, list[int]](list)
    for index in sorted(set(range(len(now))).difference(place_N.tolist()), reverse=True):
        free[now[index][:size]].append(index)
    others = np.flatnonzero(place_N < 0).tolist()
    for index in others:
        copies = free[before[index][:size]]
        if copies:
            place_N[index] = copies.pop()
    left = {now[index][size + 2 :] for copies in free.values() for index in copies}
    moved, lost = ({before[i][size + 2 :] for i in others if (place_N[i] < 0) == gone} for gone in (False, True))
    found = {"changed": left & lost, "missing": lost - left, "added": left - lost, "renamed or moved": moved}
    words = [f"{len(names):,} images {kind}, such as {min(names)}" for kind, names in found.items() if names]
    return place_N, "; ".join(words) or "other labels"


@functools.cache
def _saved() -> type[pydantic.BaseModel]:
    """The fields of a split in a file that anyone may have edited."""
    integer = Annotated[int, pydantic.Field(gt=-(2**62), lt=2**62)]
    line = Annotated[str, pydantic.Field(pattern=rf"^[0-9a-f]{{{2 * DIGEST_BYTES}}}  .*$")]  # of b2sum: digest and name
    fields: dict[str, Any] = dict.fromkeys(_PARTS, list[integer])
    fields |= {"protocol": str, "seed": integer, "num_images": integer, "class_names": tuple[str, ...], "source": str}
    fields["images"] = (tuple[line, ...], ())  # files of earlier versions name none
    return pydantic.create_model("_Saved", __config__={"extra": "forbid", "strict": True}, **fields)
