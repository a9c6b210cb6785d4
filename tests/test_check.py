"""The check before training: what is counted, what is a problem, and that it judges as training does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distilhash
from distilhash import cli
from distilhash.data import ListSource, find_unreadable
from distilhash.data import check as inspection
from distilhash.data import sources as images
from mistakes import everything, picture, refused

TRAIN, DATABASE, TEST = range(6), range(24), range(24, 30)


def lines(numbers, columns: int = 3, row: str | None = None) -> str:
    """A line for each image: two labels, or those of ``row``."""
    rows = {
        i: row or " ".join(str(int(c in (i % columns, (i + 1) % columns))) for c in range(columns)) for i in numbers
    }
    return "".join(f"images/{i}.png {labels}\n" for i, labels in rows.items())


def listed(root: Path, columns: int = 3) -> Path:
    """Thirty images and the three lists of a sound data set."""
    for i in range(30):
        picture(root / "images" / f"{i}.png", np.full((4, 4, 3), i, np.uint8))
    for name, numbers in (("train", TRAIN), ("database", DATABASE), ("test", TEST)):
        (root / f"{name}.txt").write_text(lines(numbers, columns))
    return root


def counts(found: dict) -> dict[str, tuple[int, ...]]:
    return {p["part"]: (p["images"], p["missing"], p["unreadable"], p["without_label"]) for p in found["parts"]}


def asked(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["check", *map(str, words), "--quiet"])
    return code, *capsys.readouterr()


def test_a_sound_data_set_is_ready(tmp_path, capsys):
    before = everything(listed(tmp_path))
    found = distilhash.check(tmp_path)
    assert found["ready"] and found["kind"] == "list files" and found["label_columns"] == 3
    assert counts(found) == {"train": (6, 0, 0, 0), "database": (24, 0, 0, 0), "test": (6, 0, 0, 0)}
    assert found["overlaps"] == {"train in database": 6, "train in test": 0, "database in test": 0}
    assert found["problems"] == found["notes"] == found["missing"] == found["unreadable"] == []
    code, out, err = asked(capsys, tmp_path, "--json", "--quiet")
    assert (code, json.loads(out), err) == (0, found, "")
    code, out, err = asked(capsys, tmp_path)
    assert code == 0 and "24" in out and "train in database: 6 images" in out and out.endswith("\nready\n")
    assert everything(tmp_path) == before


def test_what_is_missing_unreadable_and_without_label_is_counted_list_by_list(tmp_path, capsys):
    listed(tmp_path)
    for i in (2, 20, 25):
        (tmp_path / f"images/{i}.png").unlink()
    for i in (3, 4, 21, 26):
        (tmp_path / f"images/{i}.png").write_bytes(b"no image")
    (tmp_path / "test.txt").write_text(lines(range(24, 28)) + lines([28, 29], row="0 0 0"))
    found = distilhash.check(tmp_path)
    assert counts(found) == {"train": (6, 1, 2, 0), "database": (24, 2, 3, 0), "test": (6, 1, 1, 2)}
    assert found["missing"] == [f"images/{i}.png" for i in (2, 20, 25)]
    assert [bad["image"] for bad in found["unreadable"]] == [f"images/{i}.png" for i in (3, 4, 21, 26)]
    assert found["problems"] == ["3 of 30 images are missing; fetch them, or take their lines out"]
    assert found["notes"] == ["2 queries have no label: nothing is relevant to them, and they count as 0"]
    code, out, err = asked(capsys, tmp_path, "--json", "--quiet")
    assert code == 2 and json.loads(out) == found
    assert (
        err
        == "distilhash: these images are not ready: 3 of 30 images are missing; fetch them, or take their lines out.\n"
    )
    code, out, _ = asked(capsys, tmp_path)
    assert code == 2 and "missing: images/20.png" in out and out.endswith("\nnot ready\n")


def test_training_refuses_missing_images_and_names_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    listed(tmp_path / "set")
    (tmp_path / "set/images/2.png").unlink()
    (tmp_path / "set/images/25.png").unlink()
    for verb in ("hash", "distill"):
        said = refused(capsys, verb, "set", "--output", "run")
        assert "2 of 30 missing under set" in said
        assert "(1 in train, 1 in database, 1 in test); distilhash check set" in said


def test_lists_that_share_what_they_must_not_are_a_problem(tmp_path):
    listed(tmp_path)
    (tmp_path / "test.txt").write_text(lines([0, 1, 10, *TEST]))
    found = distilhash.check(tmp_path)
    assert found["overlaps"] == {"train in database": 6, "train in test": 2, "database in test": 3}
    assert len(found["problems"]) == 2 and not found["ready"]
    assert found["problems"][0].startswith("2 images of train are in test, too, such as images/0.png")


def test_copies_across_lists_and_classes_are_counted(tmp_path, capsys):
    root = listed(tmp_path / "lists")
    for original, copy in ((0, 24), (1, 25), (20, 26), (2, 3)):
        shutil.copy(root / f"images/{original}.png", root / f"images/{copy}.png")
    found = distilhash.check(root)
    assert (found["ready"], len(found["problems"])) == (False, 1)
    assert all(fact in found["problems"][0] for fact in ("2 queries", "train", "images/24.png", "images/0.png"))
    assert found["copies"] == {
        "queries have a copy in train": 2, "queries have a copy in database": 3, "images are copies of another": 4,
        "images are copies of one with other labels": 1,
    }  # fmt: skip
    root = tmp_path / "classes"
    for c in "ab":
        for i in range(6):
            picture(root / c / f"{i}.png", np.full((4, 4, 3), 30 * i + ord(c), np.uint8))
    shutil.copy(root / "a/1.png", root / "a/again.png")
    shutil.copy(root / "a/1.png", root / "b/again.png")
    found = distilhash.check(root)
    assert found["ready"] and found["copies"] == {
        "images are copies of another": 2, "images are copies of one with other labels": 1
    }  # fmt: skip
    assert any("b/again.png (a/1.png)" in note for note in found["notes"])
    for part in ("train", "val", "test"):
        shutil.copytree(root, tmp_path / "parts" / part)
    found = distilhash.check(tmp_path / "parts")
    assert not found["ready"] and "14 queries have a copy in train" in found["problems"][0]
    picture(tmp_path / "parts/test/stray.png", np.zeros((4, 4, 3), np.uint8))
    found = distilhash.check(tmp_path / "parts")
    assert found["label_columns"] == 0 and "stray.png" in "".join(found["notes"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda root: (root / "test.txt").unlink(), "no test.txt"),
        (lambda root: (root / "train.txt").write_text("images/0.png 0 1 2\n"), "labels in a list are 0 or 1"),
        (lambda root: [(root / f"images/{i}.png").write_bytes(b"") for i in TEST], "no image of test can be read"),
        (
            lambda root: [(root / f"images/{i}.png").write_bytes(b"") for i in range(30)],
            "no image of train can be read",
        ),
    ],
)
def test_what_training_would_refuse_is_a_problem(tmp_path, capsys, change, sentence):
    change(listed(tmp_path))
    code, out, err = asked(capsys, tmp_path, "--json", "--quiet")
    assert code == 2 and sentence in json.loads(out)["problems"][0] and err.count("\n") == 1
    assert cli.main(["hash", str(tmp_path), "--output", str(tmp_path / "run"), "--quiet"]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("train", "fits"), [(range(2), True), (range(1), False)])
def test_twenty_one_columns_are_known_as_those_of_nus_wide(tmp_path, monkeypatch, train, fits):
    monkeypatch.setattr(inspection, "NUS_WIDE_COUNTS", {"train": 2, "test": 6})
    listed(tmp_path, columns=21)
    (tmp_path / "train.txt").write_text(lines(train, 21))
    found = distilhash.check(tmp_path)
    assert found["ready"] and len(found["notes"]) == 1
    assert found["notes"][0].endswith("as here" if fits else "which these lists do not have")
    (tmp_path / "images/0.png").unlink()
    assert inspection.NUS_WIDE_PAGE in distilhash.check(tmp_path)["problems"][0]


def test_plain_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # what a refused command must leave as it was
    for c in "ab":
        for i in range(4):
            picture(tmp_path / "classes" / c / f"{i}.png", np.full((4, 4, 3), 30 * i + ord(c), np.uint8))
    found = distilhash.check(tmp_path / "classes")
    assert (found["kind"], found["label_columns"], counts(found)) == ("class folders", 2, {"all": (8, 0, 0, 0)})
    assert found["ready"]
    (tmp_path / "classes/b/0.png").write_bytes(b"")
    (tmp_path / "classes/b/1.png").write_bytes(b"")
    found = distilhash.check(tmp_path / "classes")
    assert counts(found) == {"all": (8, 0, 2, 0)}
    assert found["problems"] == [
        "every class needs three different images: a query, one to train on and one to validate on; got too few in b; "
        "add images, take the class away, or distil with --unlabelled"
    ]
    for i in (2, 3):
        (tmp_path / f"classes/b/{i}.png").write_bytes(b"")
    found = distilhash.check(tmp_path / "classes")
    assert found["ready"] and found["notes"] == ["no image of class b can be read: training would go on without it"]

    picture(tmp_path / "flat" / "0.png", np.zeros((4, 4, 3), np.uint8))
    found = distilhash.check(tmp_path / "flat")
    assert (found["kind"], found["ready"]) == ("folder without labels", True)
    assert "no labels" in found["notes"][0]
    (tmp_path / "flat/0.png").write_bytes(b"")
    assert distilhash.check(tmp_path / "flat")["problems"] == ["none of the images can be read"]
    (tmp_path / "empty").mkdir()
    assert "holds no images" in distilhash.check(tmp_path / "empty")["problems"][0]
    assert "no such folder" in refused(capsys, "check", tmp_path / "absent")


def test_cifar10_is_ready(cifar10):
    found = distilhash.check("cifar10")
    assert found["ready"] and counts(found) == {"all": (60_000, 0, 0, 0)} and found["label_columns"] == 10


def test_an_image_above_the_pixel_limit_is_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr("distilhash.data.decode.MAX_PIXELS", 15)
    Image.new("RGB", (3, 5)).save(listed(tmp_path) / "images/7.png")
    found = distilhash.check(tmp_path)
    assert counts(found)["database"] == (24, 0, 23, 0)
    assert "is more than 15 pixels" in found["unreadable"][0]["reason"]


def test_many_cores_find_what_one_finds(tmp_path, monkeypatch):
    listed(tmp_path)
    for i in (0, 7, 19, 29):
        (tmp_path / f"images/{i}.png").write_bytes(b"no image")
    source = ListSource(tmp_path)
    monkeypatch.setattr(images, "CHECKED", 4)
    monkeypatch.setattr("distilhash.data.sources.cores", lambda: 3)
    report = find_unreadable(source)
    wrong = [source.names.index(f"images/{i}.png") for i in (0, 7, 19, 29)]
    assert report.readable.tolist() == [i for i in range(30) if i not in wrong]
    assert [name for name, _ in report.unreadable] == [source.names[i] for i in wrong]
