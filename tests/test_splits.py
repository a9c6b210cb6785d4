"""Splits: the published sizes, what may never overlap, and files that somebody edited."""

from __future__ import annotations

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
    with pytest.raises(DistilhashError, match="no database"):
        list_split({"train": lists["train"], "test": lists["test"]}, 60)
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
    with pytest.raises(DistilhashError, match="cannot be read"):
        Split.load(tmp_path / "absent.json")
