"""Tables of paths and labels, and dataset objects: the same images, labels and codes as the folder they describe."""

import csv
import sys
import types

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import distilhash
from distilhash import cli
from distilhash.codes import CodeTable
from distilhash.data.loading import open_images, open_readable, split_of
from distilhash.data.sources import ArraySource
from distilhash.data.tables import DatasetSource, TableSource
from distilhash.errors import DistilhashError

CLASSES = ("bee", "cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    for i in range(90):
        file = root / "photos" / CLASSES[i % 3] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(file)
    return root


def table(file, rows, head=("path", "label"), delimiter=","):
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([head, *rows])
    return file


def rows_of(folder):
    return [[f"photos/{c}/{file.name}", c] for c in CLASSES for file in sorted((folder / "photos" / c).iterdir())]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")])
def test_a_table_is_the_folder_that_it_names(folder, name, delimiter):
    expected = open_images(folder / "photos", True)
    found = open_images(table(folder / name, rows_of(folder), delimiter=delimiter), True)
    assert np.array_equal(found.digests, expected.digests) and found.class_names == list(CLASSES)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.names == [f"photos/{name}" for name in expected.names]
    splits = [split_of(source, "", "", 0, None, needed=True) for source in (found, expected)]
    assert np.array_equal(splits[0].query, splits[1].query)


def test_columns_by_other_names_several_classes_and_parts(folder):
    rows = [[f"photos/bee/{i:02d}.png", labels, part, "x"] for i, labels, part in (
        (0, "sun|sea", "Train"), (3, "sea", "test"), (6, "sun", "gallery"), (9, "sea| sky", "train"))]  # fmt: skip
    found = TableSource(table(folder / "d.csv", rows, ("File", "Class", "Split", "note")))
    assert found.class_names == ["sea", "sky", "sun"]
    assert found.labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 1, 0]]
    lists = {part: where.tolist() for part, where in found.lists.items()}
    assert lists == {"train": [0, 3], "test": [1], "database": [2]}
    bare = open_images(table(folder / "e.csv", [[row[0]] for row in rows], ("path",)), None)
    assert bare.labels is None and len(bare) == 4


def test_a_table_in_one_flag(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = table(folder / "f.csv", rows_of(folder))
    quick = ["--epochs", "1", "--batch-size", "16", "--student-size", "32", "--student-stem", "tiny", "--quiet"]
    assert cli.main(["hash", str(file), "--output", "h", "--bits", "16", *quick]) == 0
    for images, output in ((file, "table"), (folder / "photos", "folder")):
        assert cli.main(["encode", "h", str(images), "--output", output, "--part", "query"]) == 0
    capsys.readouterr()
    one, other = CodeTable.load("table"), CodeTable.load("folder")
    assert np.array_equal(one.packed, other.packed) and one.labels.tolist() == other.labels.tolist()
    assert cli.main(["check", str(file)]) == 0


def test_parquet_is_read_by_pyarrow(folder, monkeypatch):
    """A stand-in for pyarrow, which need not be installed."""
    rows, parquet = rows_of(folder)[:4], types.ModuleType("pyarrow.parquet")

    class Read:
        def __init__(self, file):
            if file.read_bytes() != b"PAR1":
                raise ValueError("magic bytes")

        def to_pydict(self):
            return {"path": [row[0] for row in rows], "label": [["a", "b"], ["a"], ["b"], ["a"]]}

    parquet.read_table = Read
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    (folder / "t.parquet").write_bytes(b"PAR1")
    found = open_images(folder / "t.parquet", True)
    assert found.labels.tolist() == [[1, 1], [1, 0], [0, 1], [1, 0]] and found.names == [row[0] for row in rows]
    (folder / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(DistilhashError, match=r"bad\.parquet"):
        open_images(folder / "bad.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DistilhashError, match="pyarrow"):
        open_images(folder / "t.parquet")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,2\n", "a, b"),
        ("path,label\nphotos/bee/00.png,x\nphotos/bee/00.png,y\n", "photos/bee/00.png"),
        ("path,label\nphotos/none.png,x\n", "photos/none.png"),
        ("path,label\nphotos/bee/00.png\n", "photos/bee/00.png"),
        ("path,label\nphotos/bee/00.png,\n", "photos/bee/00.png"),
        ("path,label,split\nphotos/bee/00.png,x,later\n", "later"),
        ("path\nphotos/bee/00.png\n", "label"),
        ("path,label\n", "no image"),
        ("", "no column"),
        ("path\n\xff", "mistake.csv"),
    ],
)
def test_a_mistake_in_a_table_is_named(folder, text, told):
    (folder / "mistake.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DistilhashError, match=told):
        TableSource(folder / "mistake.csv", True)
    with pytest.raises(DistilhashError, match="absent"):
        open_images(folder / "absent.csv")


class Rows:
    """As a dataset of Hugging Face: rows are mappings, a column is read by its name."""

    def __init__(self, folder):
        self.folder = ImageFolder(folder)
        label = types.SimpleNamespace(names=self.folder.classes)
        self.features = {"image": object(), "label": label}
        self.decoded = 0

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, key):
        if key == "label":
            return self.folder.targets
        self.decoded += 1
        image, label = self.folder[key]
        return {"image": image, "label": label}


def test_dataset_objects_are_the_folder(folder):
    expected, rows = open_images(folder / "photos", True), Rows(folder / "photos")
    pixels = np.stack([np.asarray(image) for image in expected.read(range(90))])
    plain = [(image, label) for image, label in zip(pixels, expected.labels.tolist(), strict=True)]
    content = ArraySource(pixels).digests
    for dataset in (rows, ImageFolder(folder / "photos"), plain):
        found = open_images(dataset, True)
        assert found.labels.tolist() == expected.labels.tolist()
        assert np.array_equal(found.digests, content)
        assert [np.asarray(image).tolist() for image in found.read([5, 2])] == pixels[[5, 2]].tolist()
        assert found.class_names == ([] if dataset is plain else list(CLASSES))
        assert open_images(dataset, False).labels is None
    rows.decoded = 0
    assert open_images(rows, True).labels is not None and rows.decoded < 4  # no image for a label
    for wrong in (3, [], [(3, 4)], object()):
        with pytest.raises(DistilhashError):
            open_images(wrong)
    with pytest.raises(DistilhashError):
        DatasetSource([(pixels[0],)], True)


def test_a_dataset_object_is_hashed_and_encoded(folder, tmp_path):
    dataset = ImageFolder(folder / "photos")
    config = distilhash.HashConfig(epochs=1, batch_size=16, bits=16, precision="float32")
    student = distilhash.StudentConfig(size=32, stem="tiny")
    distilhash.hash(dataset, tmp_path / "h", config=config, student=student)
    distilhash.encode(tmp_path / "h", dataset, tmp_path / "codes")
    codes = CodeTable.load(tmp_path / "codes")
    hasher = distilhash.Hasher.from_pretrained(tmp_path / "h")
    assert np.array_equal(codes.packed, hasher.encode([path for path, _ in dataset.samples]))
    assert codes.labels.tolist() == dataset.targets and list(codes.class_names) == dataset.classes


def test_rows_that_cannot_be_read_are_left_out(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found = open_readable([(str(tmp_path / "bad.png"), 0), (str(folder / "photos/bee/00.png"), 1)], labelled=True)
    assert found.labels.tolist() == [1] and len(found) == 1
