"""Splits: the published sizes, what may never overlap, and files that somebody edited."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilhash.data import Split, cifar10_split, holdout_split, list_split
from distilhash.errors import DistilhashError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6000))
SIZES = {"cifar10": (1000, 5000, 54_000), "cifar10-1": (1000, 5000, 59_000), "cifar10-2": (10_000, 50_000, 50_000)}
PARTS = ("query", "train", "validation", "database")


def same(a: Split, b: Split) -> bool:
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in PARTS)


@pytest.mark.parametrize("protocol", SIZES)
def test_published_protocols(protocol: str) -> None:
    split = cifar10_split(LABELS, protocol, seed=3)
    query, train, database = (set(getattr(split, part).tolist()) for part in ("query", "train", "database"))
    assert (len(query), len(train), len(database)) == SIZES[protocol]
    assert (len(split.query), len(split.train), len(split.database)) == SIZES[protocol]
    for part in PARTS:
        counts = np.bincount(LABELS[getattr(split, part)], minlength=10)
        assert (counts == counts[0]).all(), f"{part} holds as many images of each class"
        assert getattr(split, part).dtype == np.int64
    everything = set(range(60_000))
    assert not query & (train | database)
    assert {
        "cifar10": not train & database and query | train | database == everything,
        "cifar10-1": train < database and database == everything - query,
        "cifar10-2": train == database and database == everything - query,
    }[protocol]
    validation, fit = set(split.validation.tolist()), set(split.fit.tolist())
    assert len(validation) == 500 and validation < train and fit == train - validation
    assert set(split.unlabelled.tolist()) == train | database == everything - query


def test_the_seed_decides() -> None:
    first = cifar10_split(LABELS, seed=1)
    assert same(first, cifar10_split(LABELS, seed=1))
    other = cifar10_split(LABELS, seed=2)
    assert not any(np.array_equal(getattr(first, part), getattr(other, part)) for part in PARTS)
    # Fixture: a saved seed means the same split on any machine and with any NumPy.
    assert cifar10_split(np.repeat(np.arange(10), 6000), seed=0).query[:5].tolist() == [58, 89, 317, 396, 399]


def test_no_validation_where_none_is_wanted() -> None:
    split = cifar10_split(LABELS, validation_per_class=0)
    assert split.validation.size == 0 and np.array_equal(split.fit, split.train)


def test_mistakes_about_cifar10() -> None:
    with pytest.raises(DistilhashError, match="cifar10-1"):
        cifar10_split(LABELS, "cifar100")
    for labels in (LABELS[:50_000], np.zeros(60_000, np.int64)):
        with pytest.raises(DistilhashError, match="60,000"):
            cifar10_split(labels)
    for number in (-1, 500):
        with pytest.raises(DistilhashError, match="0 to 499"):
            cifar10_split(LABELS, validation_per_class=number)


def test_holdout_takes_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 5], [100, 50, 3, 11])
    split = holdout_split(labels, query_share=0.2, validation_share=0.1, seed=1)
    number = {part: np.bincount(labels[getattr(split, part)], minlength=6) for part in PARTS}
    assert number["query"].tolist() == [20, 10, 1, 0, 0, 2]
    assert number["validation"].tolist() == [8, 4, 1, 0, 0, 1]
    assert number["train"].tolist() == [80, 40, 2, 0, 0, 9]
    assert np.array_equal(split.database, split.train)
    assert sorted(np.concatenate([split.query, split.train]).tolist()) == list(range(164))
    assert same(split, holdout_split(labels, 0.2, 0.1, 1)) and not same(split, holdout_split(labels, 0.2, 0.1, 2))
    greedy = holdout_split(labels, 0.99, 0.99)
    assert np.bincount(labels[greedy.fit]).min(initial=9, where=[True, True, True, False, False, True]) >= 1


def digests_of_numbers(numbers: np.ndarray) -> np.ndarray:
    """(N, 16): equal numbers, equal digests."""
    return np.ascontiguousarray(np.repeat(numbers.astype("<u8")[:, None], 2, axis=1)).view(np.uint8)


def test_copies_of_a_picture_have_one_part() -> None:
    labels = np.repeat([0, 1], 40)
    assert same(holdout_split(labels, digests=digests_of_numbers(np.arange(80))), holdout_split(labels))
    numbers = np.concatenate([np.arange(40) % 10, np.arange(40) % 15])  # some pictures are in both classes
    for seed in range(5):
        split = holdout_split(labels, 0.3, 0.3, seed, digests=digests_of_numbers(numbers))
        for one, other in ((split.query, split.train), (split.validation, split.fit)):
            assert len(one) and not set(numbers[one]) & set(numbers[other])
        assert sorted([*split.query, *split.train]) == list(range(80))


def test_holdout_of_multi_labels_draws_from_all_images() -> None:
    labels = np.random.default_rng(1).integers(0, 2, (40, 5))
    split = holdout_split(labels, 0.25, 0.1)
    assert (len(split.query), len(split.train), len(split.validation)) == (10, 30, 3)


def test_holdout_names_the_classes_that_are_too_small() -> None:
    with pytest.raises(DistilhashError, match="too few in cat, dog"):
        holdout_split(np.repeat([0, 1, 2], [2, 5, 1]), class_names=("cat", "cow", "dog"))
    with pytest.raises(DistilhashError, match="too few in class 7"):
        holdout_split(np.repeat([0, 7], [5, 1]))
    with pytest.raises(DistilhashError, match="no images"):
        holdout_split(np.zeros(0, np.int64))
    with pytest.raises(DistilhashError, match="too few in dog"):  # three files, two pictures
        numbers = np.array([0, 1, 2, 3, 4, 3])
        holdout_split(np.repeat([0, 1], 3), class_names=("cat", "dog"), digests=digests_of_numbers(numbers))
    for shares in ((0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, float("nan"))):
        with pytest.raises(DistilhashError, match="between 0 and 1"):
            holdout_split(np.zeros(9, np.int64), *shares)


def test_list_split() -> None:
    lists = {"train": np.arange(20), "database": np.arange(10, 50), "test": np.arange(50, 60)}
    split = list_split(lists, 60, validation_share=0.25)
    assert split.query.tolist() == list(range(50, 60)) and split.database.tolist() == list(range(10, 50))
    assert len(split.validation) == 5 and set(split.validation) < set(range(20))
    assert split.protocol == "lists"
    with pytest.raises(DistilhashError, match="query images lie in database"):
        list_split({**lists, "test": np.arange(49, 60)}, 60)
    alone = list_split({"train": lists["train"], "test": lists["test"]}, 60)
    assert np.array_equal(alone.database, alone.train), "without a database train is searched"
    assert list_split({"database": np.arange(9), "test": np.array([9])}, 10).train.tolist() == list(range(9))
    given = list_split({**lists, "validation": np.arange(60, 64)}, 64)
    assert given.validation.tolist() == list(range(60, 64)) and set(given.validation) < set(given.train)
    with pytest.raises(DistilhashError, match="only database, train"):
        list_split({"train": lists["train"], "database": lists["database"]}, 60)
    with pytest.raises(DistilhashError, match="outside the images"):
        list_split(lists, 59)


def small(**changes: Any) -> Split:
    parts: dict[str, Any] = {
        "protocol": "p",
        "seed": 5,
        "num_images": 10,
        "query": np.array([9, 0]),
        "train": np.array([1, 2, 3]),
        "validation": np.array([2]),
        "database": np.array([3, 4]),
        "class_names": ("ä", "b"),
        "source": "0123",
    }
    return Split(**(parts | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"query": np.array([0, 1])}, "query images lie in train"),
        ({"query": np.array([4])}, "query images lie in database"),
        ({"validation": np.array([4])}, "part of train"),
        ({"validation": np.array([1, 2, 3])}, "every training image"),
        ({"query": np.array([10])}, "outside the images"),
        ({"query": np.array([-1])}, "outside the images"),
        ({"database": np.array([4, 4])}, "twice"),
        ({"database": np.array([], np.int64)}, "no database"),
    ],
)
def test_parts_that_contradict_each_other(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DistilhashError, match=sentence):
        small(**changes)


def test_saved_and_loaded(tmp_path: Path) -> None:
    split = small()
    assert split.query.tolist() == [0, 9], "parts are ascending"
    split.save(tmp_path / "split.json")
    loaded = Split.load(tmp_path / "split.json")
    assert same(split, loaded)
    for name in ("protocol", "seed", "num_images", "class_names", "source"):
        assert getattr(loaded, name) == getattr(split, name)
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save(tmp_path / "split.json")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distilhash.files.os.fsync", full)
    with pytest.raises(DistilhashError, match=r"cannot write.*No space left"):
        small(seed=6).save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json").seed == 5
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"query": [0, 1.5]},
        {"query": [0, True]},
        {"query": ["0"]},
        {"query": [[0]]},
        {"query": [10**30]},
        {"query": [1e400]},
        {"query": None},
        {"query": {"0": 1}},
        {"query": [1]},
        {"query": [77]},
        {"query": []},
        {"seed": "5"},
        {"seed": False},
        {"num_images": 3},
        {"num_images": 10**40},
        {"protocol": 1},
        {"class_names": ["a", 1]},
        {"class_names": "ab"},
        {"source": None},
        {"extra": 1},
    ],
)
def test_an_edited_file_is_a_users_mistake(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = tmp_path / "split.json"
    small().save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DistilhashError):
        Split.load(file)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b"[" * 100_000, b"9" * 10_000])
def test_what_is_no_split_file_is_a_users_mistake(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "split.json"
    file.write_bytes(text)
    with pytest.raises(DistilhashError, match="split"):
        Split.load(file)
    with pytest.raises(DistilhashError, match=r"absent\.json.*No such file"):
        Split.load(tmp_path / "absent.json")


class Files:
    """What a split asks of a source of files."""

    decodes, labels, class_names = True, None, ()

    def __init__(self, **numbers: int) -> None:
        self.names = [name.replace("_", "/") for name in numbers]
        self.digests = digests_of_numbers(np.array(list(numbers.values())))
        self.fingerprint = repr(numbers)

    def __len__(self) -> int:
        return len(self.names)


BEFORE = Files(a_1=1, a_2=2, a_3=3, b_1=4, b_2=5)


def drawn() -> Split:
    everything = {"query": [0], "train": [1, 2, 3], "validation": [2], "database": [1, 2, 3, 4]}
    return Split(protocol="p", seed=0, num_images=5, **{k: np.array(v) for k, v in everything.items()}).bound(BEFORE)


@pytest.mark.parametrize(
    ("now", "places"),
    [
        (BEFORE, [0, 1, 2, 3, 4]),
        (Files(b_1=4, b_2=5, z_1=1, z_2=2, z_3=3), [2, 3, 4, 0, 1]),  # a class was renamed
        (Files(a_1=2, a_2=1, a_3=3, b_1=4, b_2=5), [1, 0, 2, 3, 4]),  # two names were swapped
        (Files(a_0=7, a_1=1, a_2=2, a_3=3, a_9=1, b_1=4, b_2=5), [1, 2, 3, 5, 6]),  # one was added, and a copy
    ],
)
def test_a_saved_split_follows_the_content_of_its_images(tmp_path: Path, now: Files, places: list[int]) -> None:
    drawn().save(tmp_path / "split.json")
    found = Split.load(tmp_path / "split.json").of(now, tmp_path / "split.json")
    for part in PARTS:
        assert getattr(found, part).tolist() == sorted(places[i] for i in getattr(drawn(), part))
    assert found.num_images == len(now) and found.source == now.fingerprint and found.images == found.bound(now).images


@pytest.mark.parametrize(
    ("now", "facts"),
    [
        (Files(a_1=1, a_2=2, a_3=3, b_1=4, b_2=6), ("1 images changed", "b/2")),
        (Files(a_2=2, a_3=3, b_1=4, b_2=5), ("1 images missing", "a/1")),
        (
            Files(a_1=1, a_2=8, a_3=9, b_1=4, b_3=7),
            ("2 images changed", "a/2", "1 images missing", "b/2", "added", "b/3"),
        ),
        (Files(c_1=11, c_2=12, c_3=13, c_4=14, c_5=15), ("5 images missing", "5 images added")),
    ],
)
def test_a_split_of_changed_or_missing_images_is_refused(now: Files, facts: tuple[str, ...]) -> None:
    with pytest.raises(DistilhashError) as caught:
        drawn().of(now, Path("split.json"))
    assert all(fact in caught.value.got for fact in ("split.json", *facts))


def test_a_split_that_names_no_images_is_refused_but_of_cifar10(cifar10: Any) -> None:
    old = dataclasses.replace(drawn(), images=(), source="")
    for now in (BEFORE, cifar10):
        with pytest.raises(DistilhashError, match=r"split\.json"):
            old.of(now, Path("split.json"))
    assert dataclasses.replace(drawn(), images=()).of(BEFORE, Path("split.json")).query.tolist() == [0]
    published = cifar10_split(np.asarray(cifar10.labels))
    for held in (published, published.bound(cifar10)):
        assert same(published, held.of(cifar10, Path("split.json"))) and held.images == ()


def test_a_split_file_is_for_people_too(tmp_path: Path) -> None:
    drawn().save(tmp_path / "split.json")
    lines = (tmp_path / "split.json").read_text().splitlines()
    assert f'"{digests_of_numbers(np.array([5])).tobytes().hex()}  b/2"]}}' in lines
    file = tmp_path / "split.json"
    data = json.loads(file.read_text())
    for images in (["x  a/1"] * 5, data["images"][:4], [1] * 5):
        file.write_text(json.dumps(data | {"images": images}))
        with pytest.raises(DistilhashError):
            Split.load(file)
