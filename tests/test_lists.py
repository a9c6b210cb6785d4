"""List files: the labels they give, the images they share, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilhash.data import ListSource, list_split, open_images
from distilhash.errors import DistilhashError


def dataset(root: Path, train: str, database: str, test: str) -> Path:
    (root / "images").mkdir(exist_ok=True)
    for i in range(6):
        Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(root / f"images/{i} of 6.png")
    for name, text in (("train", train), ("database", database), ("test", test)):
        (root / f"{name}.txt").write_text(text)
    return root


TRAIN = "images/0 of 6.png 1 0 1\nimages/1 of 6.png 0 1 0\n"
DATABASE = "images/3 of 6.png 0 0 1\r\n\r\n./images/1 of 6.png  0 1 0\r\nimages/4 of 6.png 1 0 0"
TEST = "\ufeffimages/5 of 6.png\t0 1 1\n"


def test_lists_become_one_source_and_a_split(tmp_path: Path) -> None:
    source = open_images(dataset(tmp_path, TRAIN, DATABASE, TEST))
    assert isinstance(source, ListSource)
    assert source.names == [f"images/{i} of 6.png" for i in (0, 1, 3, 4, 5)]
    assert source.labels is not None and source.labels.dtype == np.uint8
    assert source.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert source.class_names == ["0", "1", "2"]
    assert {name: part.tolist() for name, part in source.lists.items()} == {
        "train": [0, 1],
        "database": [2, 1, 3],
        "test": [4],
    }
    assert [image.getpixel((0, 0))[0] for image in source.read([4, 2])] == [50, 30]
    split = list_split(source.lists, len(source), validation_share=0.5)
    assert split.query.tolist() == [4] and split.database.tolist() == [1, 2, 3] and split.train.tolist() == [0, 1]
    assert split.validation.size == 1 and split.fit.size == 1


def test_images_without_an_ending_are_listed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("0001", "a b", "two 1"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name, "PNG")
    for name, line in (
        ("train", "images/0001 1 0 1"),
        ("database", "images/a b\t0 0 1"),
        ("test", "images/0001 1 0 1"),
    ):
        (tmp_path / f"{name}.txt").write_text(f"{line}\n")
    source = ListSource(tmp_path)
    assert source.names == ["images/0001", "images/a b"] and source.labels is not None
    assert source.labels.tolist() == [[1, 0, 1], [0, 0, 1]] and len(source.read([0, 1])) == 2
    (tmp_path / "train.txt").write_text("film.mp4 1 0 1\n")
    with pytest.raises(DistilhashError, match="begin with the path of an image"):
        ListSource(tmp_path)


def test_one_hot_lines_become_classes(tmp_path: Path) -> None:
    source = ListSource(
        dataset(tmp_path, "images/0 of 6.png 0 0 1\n", "images/1 of 6.png 1 0 0\n", "images/2 of 6.png 0 1 0\n")
    )
    assert source.labels is not None and source.labels.dtype == np.int64 and source.labels.tolist() == [2, 0, 1]


def test_fingerprint_follows_labels(tmp_path: Path) -> None:
    before = ListSource(dataset(tmp_path, TRAIN, DATABASE, TEST)).fingerprint
    (tmp_path / "test.txt").write_text("images/5 of 6.png 1 1 1\n")
    assert ListSource(tmp_path).fingerprint != before


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ("images/0 of 6.png 1 0 1\nimages/1 of 6.png 0 1\n", r"2 instead of 3 in line 2 of .*train\.txt"),
        ("images/0 of 6.png 1 0 1 1\n", r"3 instead of 4 in line 1 of .*database\.txt"),
        ("images/0 of 6.png 1 0 1\n\nimages/1 of 6.png 0 2 0\n", r"'2' in line 3"),
        ("images/0 of 6.png 1 0 -1\n", r"'-1' in line 1"),
        ("images/0 of 6.png\n", r"must have labels after the path; got line 1"),
        ("0 1 0\n", r"must begin with the path of an image"),
        ("\n", r"a list file is empty"),
        ("images/0 of 6.png 1 0 1\nimages/0 of 6.png 1 0 1\n", r"names one image twice.*line 2"),
        ("images/1 of 6.png 1 1 1\n", r"different labels"),
        ("../0.png 1 0 1\n", r"must stay inside"),
        ("images/../../0.png 1 0 1\n", r"must stay inside"),
        ("..\\0.png 1 0 1\n", r"must stay inside"),
        ("/etc/0.png 1 0 1\n", r"must stay inside"),
        ("C:\\0.png 1 0 1\n", r"must stay inside"),
        (
            "images/7.png 1 0 1\nimages/8.png 1 0 1\nimages 1 0 1.png 0 0 1",
            r"3 of 7 missing under .*: images/7.png, images/8.png, images 1 0 1.png;",
        ),
    ],
)
def test_wrong_lists_are_refused_with_their_line(tmp_path: Path, train: str, sentence: str) -> None:
    with pytest.raises(DistilhashError, match=sentence):
        ListSource(dataset(tmp_path, train, DATABASE, TEST))


def test_missing_and_unreadable_list_files(tmp_path: Path) -> None:
    dataset(tmp_path, TRAIN, DATABASE, TEST)
    (tmp_path / "test.txt").write_bytes(b"images/\xff.png 1 0 1")
    with pytest.raises(DistilhashError, match="not UTF-8"):
        ListSource(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DistilhashError, match=r"no test\.txt"):
        open_images(tmp_path, labelled=True)
    assert len(open_images(tmp_path)) == 6, "without the third list it is a plain folder, where no labels are wanted"


def test_names_of_list_files_in_another_case(tmp_path: Path) -> None:
    dataset(tmp_path, TRAIN, DATABASE, TEST)
    (tmp_path / "train.txt").rename(tmp_path / "Train.txt")
    (tmp_path / "test.txt").rename(tmp_path / "TEST.TXT")
    assert len(ListSource(tmp_path)) == 5
    (tmp_path / "test.txt").write_text(TEST)
    with pytest.raises(DistilhashError, match=r"TEST\.TXT, .*test\.txt"):
        ListSource(tmp_path)


def test_one_column_is_no_labelling(tmp_path: Path) -> None:
    with pytest.raises(DistilhashError, match="two label columns"):
        ListSource(dataset(tmp_path, "images/0 of 6.png 1\n", "images/1 of 6.png 1\n", "images/2 of 6.png 1\n"))


def test_a_folder_in_the_place_of_an_image_is_missing(tmp_path: Path) -> None:
    dataset(tmp_path, "images/d.png 1 0 1\n", DATABASE, TEST)
    (tmp_path / "images/d.png").mkdir()
    with pytest.raises(DistilhashError, match=r"1 of 5 missing .*images/d\.png"):
        ListSource(tmp_path)
