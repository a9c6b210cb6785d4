"""Sources: arrays, parts of them, folders with every oddity a disk can hold, and what can be read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distilhash
from distilhash.config import ScanConfig
from distilhash.data import ArraySource, FolderSource, Subset, UnreadableImage, find_unreadable, open_images, readable
from distilhash.data.decode import EXTENSIONS
from distilhash.data.folders import told_others, walk
from distilhash.data.loading import open_readable, part_of, split_of
from distilhash.errors import DistilhashError

RNG = np.random.default_rng(0)


def picture(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def random_source() -> ArraySource:
    images = RNG.integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(10) % 3, class_names=["a", "b", "c"])


def test_array_source_reads_what_it_was_given() -> None:
    source = random_source()
    assert len(source) == 10 and len(set(source.names)) == 10
    assert np.array_equal(source.read([7, 0, 7]), source.images[[7, 0, 7]])
    source.read([0])[:] = 0
    assert source.read([0]).any(), "what is read is a copy"


def test_array_fingerprint_follows_pixels_labels_and_shape() -> None:
    source = random_source()
    prints = {source.fingerprint}
    changed = source.images.copy()
    changed[3, 2, 1, 0] ^= 1
    prints.add(ArraySource(changed, source.labels).fingerprint)
    prints.add(ArraySource(source.images).fingerprint)
    prints.add(ArraySource(source.images.reshape(10, 5, 4, 3), source.labels).fingerprint)
    assert len(prints) == 4
    assert ArraySource(source.images.copy(), source.labels).fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), None, None),
        (np.zeros((2, 3, 4, 4), np.uint8), None, None),
        (np.zeros((0, 4, 4, 3), np.uint8), None, None),
        (np.zeros((2, 4, 4, 3), np.uint8), [1], None),
        (np.zeros((2, 4, 4, 3), np.uint8), [1, -1], None),
        (np.zeros((2, 4, 4, 3), np.uint8), [[0, 2], [1, 0]], None),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1], None),
        (np.zeros((2, 4, 4, 3), np.uint8), None, ["one"]),
    ],
)
def test_array_source_refuses(images: np.ndarray, labels: object, names: object) -> None:
    with pytest.raises(DistilhashError):
        ArraySource(images, labels, names)


def test_subset_is_the_source_at_its_indices() -> None:
    source = random_source()
    subset = Subset(source, [8, 2, 5])
    assert subset.names == [source.names[i] for i in (8, 2, 5)]
    assert subset.labels is not None and subset.labels.tolist() == [2, 2, 2]
    assert np.array_equal(subset.read([2, 0]), source.images[[5, 8]])
    assert np.array_equal(Subset(subset, [1]).read([0]), source.images[[2]])
    assert len({source.fingerprint, subset.fingerprint, Subset(source, [8, 5, 2]).fingerprint}) == 3
    for wrong in ([], [10], [-1], [[1]]):
        with pytest.raises(DistilhashError):
            Subset(source, wrong)


def test_folder_order_and_labels(tmp_path: Path) -> None:
    for i, name in enumerate(["b/2.PNG", "b/1.jpg", "a/z/deep.webp", "a/é.tif", "B/x.jpeg", "a/10.gif", "a/9.bmp"]):
        picture(tmp_path / name, 20 * i)
    (tmp_path / "a/notes.txt").write_text("no image")
    picture(tmp_path / "a/.hidden.png")
    picture(tmp_path / ".trash/x.png")
    picture(tmp_path / "@eaDir/x.png")
    source = open_images(tmp_path, labelled=True)
    assert source.names == ["B/x.jpeg", "a/10.gif", "a/9.bmp", "a/z/deep.webp", "a/é.tif", "b/1.jpg", "b/2.PNG"]
    assert source.class_names == ["B", "a", "b"]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert source.labels.dtype == np.int64
    plain = open_images(str(tmp_path))
    assert plain.names == source.names and plain.labels is None and plain.class_names == []
    images = plain.read([1, 6])
    assert [image.size for image in images] == [(6, 4)] * 2
    assert images[0].getpixel((0, 0)) == (100,) * 3 and images[1].getpixel((0, 0)) == (0,) * 3


TREE = ("b/1.png", "a/2.jpg", "a/b/3.gif", "raw/4.png", "a/raw/5.png", "a/b.raw/6.png", "A/7.PNG")
KEPT = {
    (): TREE,
    ("raw",): ("b/1.png", "a/2.jpg", "a/b/3.gif", "a/b.raw/6.png", "A/7.PNG"),
    ("raw/",): ("b/1.png", "a/2.jpg", "a/b/3.gif", "a/b.raw/6.png", "A/7.PNG"),
    ("/raw",): ("b/1.png", "a/2.jpg", "a/b/3.gif", "a/raw/5.png", "a/b.raw/6.png", "A/7.PNG"),
    ("**/raw",): ("b/1.png", "a/2.jpg", "a/b/3.gif", "a/b.raw/6.png", "A/7.PNG"),
    ("a/raw",): ("b/1.png", "a/2.jpg", "a/b/3.gif", "raw/4.png", "a/b.raw/6.png", "A/7.PNG"),
    ("*.gif", "[12].*"): ("raw/4.png", "a/raw/5.png", "a/b.raw/6.png", "A/7.PNG"),
    ("a/*",): ("b/1.png", "raw/4.png", "A/7.PNG"),
    ("*raw*/?.png",): ("b/1.png", "a/2.jpg", "a/b/3.gif", "A/7.PNG"),
}


REFUSED = ("a/*",), ("*raw*/?.png",), ("*.gif", "[12].*")  # a class folder is left without images


@pytest.mark.parametrize("patterns", KEPT)
def test_what_is_excluded_is_the_same_for_all(tmp_path: Path, patterns: tuple[str, ...]) -> None:
    for number, name in enumerate(TREE):
        picture(tmp_path / name, number)
    picture(tmp_path / "@eaDir/1.png")
    picture(tmp_path / "a/#recycle/1.png")
    scan, kept = ScanConfig(exclude=patterns), sorted(KEPT[patterns])
    assert open_images(tmp_path, scan=scan).names == kept
    assert sorted(os.path.relpath(file.path, tmp_path) for file in walk([f"{tmp_path}/"], scan).files) == kept
    counted = [part["images"] for part in distilhash.check(tmp_path, scan=scan)["parts"]]
    assert counted == [len(kept)] or (not counted and patterns in REFUSED)
    everything = open_images(tmp_path, scan=ScanConfig(exclude=patterns, hidden=True)).names
    assert set(everything) >= set(kept) and len(everything) <= len(TREE) + 2
    assert len(walk([str(tmp_path / "@eaDir")], scan).files) == ("[12].*" not in patterns), "a folder that is named"


def test_a_class_that_is_excluded_is_no_empty_one(tmp_path: Path) -> None:
    for name in ("a/1", "b/1", "c/1"):
        picture(tmp_path / f"{name}.png")
    assert open_images(tmp_path, labelled=True, scan=ScanConfig(exclude=("b",))).class_names == ["a", "c"]


@pytest.mark.parametrize("patterns", ["raw", ("",), ("a", "/")])
def test_patterns_that_would_match_nothing_or_all(patterns: tuple[str, ...]) -> None:
    with pytest.raises(DistilhashError, match="exclude"):
        ScanConfig(exclude=patterns)


def test_files_are_images_by_ending_or_else_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (8, 8), "red")
    kinds = {
        "JPEG": "jpg jpeg jpe jfif", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif tiff",
        "PPM": "ppm pnm", "AVIF": "avif", "JPEG2000": "jp2 j2k jpx", "HEIF": "heic heif hif",
    }  # fmt: skip
    names = [f"x.{ending.upper()}" for endings in kinds.values() for ending in endings.split()]
    for kind, endings in kinds.items():
        for ending in endings.split():
            image.save(tmp_path / f"x.{ending.upper()}", kind)
        for name in (kind, f"at 10.15.33 {kind}", f"Dr. {kind}", f"{kind}.2019"):
            image.save(tmp_path / name, kind)
            names.append(name)
    image.convert("L").save(tmp_path / "grey", "PPM")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.pfm")
    others = {
        "a.mp4": b"", "b.mp4": b"", "c.MP4": b"", "a.txt": b"", "empty": b"", "README": b"BMW is no bitmap",
        "Makefile": b"P1 is no bitmap", "x.eps": b"%!PS-Adobe", "paper": b"%PDF-1.4",
        "page": b"%!PS-Adobe-3.0 EPSF-3.0\n", "photo.jpg.bak": (tmp_path / "x.JPG").read_bytes(),
    }  # fmt: skip
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    opened = []
    real = open
    monkeypatch.setattr(
        "builtins.open", lambda file, *rest, **more: opened.append(str(file)) or real(file, *rest, **more)
    )
    found = walk([str(tmp_path)])
    monkeypatch.undo()
    assert sorted(Path(file.path).name for file in found.files) == sorted([*names, "grey", "x.pfm"])
    assert found.others == {".mp4": 3, ".txt": 1, ".eps": 1, ".bak": 1, "": 6}
    assert not [path for path in opened if Path(path).suffix.lower() in EXTENSIONS], "known endings are not opened"
    assert "3 .mp4" in told_others(found.others) and "12" in told_others(found.others)
    source = open_images(tmp_path)
    assert readable(source)[1].unreadable == []
    checked = distilhash.check(tmp_path)
    assert checked["other_files"] == found.others and any("3 .mp4" in note for note in checked["notes"])


def test_folder_fingerprint_follows_names_content_and_labels_alone(tmp_path: Path) -> None:
    picture(tmp_path / "one/a/1.png", 1)
    second = picture(tmp_path / "one/b/2.png", 2)
    first = FolderSource(tmp_path / "one").fingerprint
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    os.utime(second, ns=(0, 0))
    assert FolderSource(tmp_path / "one").fingerprint == FolderSource(tmp_path / "copy").fingerprint == first
    prints = {first, FolderSource(tmp_path / "one", labelled=True).fingerprint}
    status = second.stat()
    second.write_bytes(second.read_bytes()[:-1] + b"x")  # an edit that keeps size and date
    os.utime(second, ns=(status.st_atime_ns, status.st_mtime_ns))
    prints.add(FolderSource(tmp_path / "one").fingerprint)
    second.rename(tmp_path / "one/b/3.png")
    prints.add(FolderSource(tmp_path / "one").fingerprint)
    assert len(prints) == 4


def test_digests_are_those_of_b2sum_and_follow_content_alone(tmp_path: Path) -> None:
    for name, value in (("a/1.png", 1), ("a/2.png", 2), ("b/again.png", 1)):
        picture(tmp_path / name, value)
    source = FolderSource(tmp_path)
    assert source.digests.shape == (3, 16) and source.digests.dtype == np.uint8
    for digest, path in zip(source.digests, source.paths, strict=True):
        assert digest.tobytes() == hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
    assert np.array_equal(source.digests[0], source.digests[2])
    subset = Subset(source, [2, 1])
    assert np.array_equal(subset.digests, source.digests[[2, 1]])
    array = ArraySource(RNG.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)[[0, 1, 0]])
    assert [len({d.tobytes() for d in array.digests[rows]}) for rows in ([0, 1], [0, 2])] == [2, 1]
    assert not np.array_equal(ArraySource(array.images.reshape(3, 5, 4, 3)).digests, array.digests)


def test_no_file_is_opened_again_for_the_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source, report = readable(FolderSource(tmp_path))
    monkeypatch.setattr("distilhash.data.sources.digest_file", pytest.fail)
    assert len(report.unreadable) == 1 and source.digests.shape == (1, 16) and len(source.fingerprint) == 16


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    picture(tmp_path / "root/real/1.png", 1)
    picture(tmp_path / "elsewhere/2.png", 2)
    (tmp_path / "root/again").symlink_to(tmp_path / "root/real")
    (tmp_path / "root/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/real/up").symlink_to(tmp_path / "root")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "root/out")
    (tmp_path / "root/self").symlink_to(tmp_path / "root/self")
    (tmp_path / "root/linked.png").symlink_to(tmp_path / "elsewhere/2.png")
    (tmp_path / "root/gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "root/pipe.png")
    source = FolderSource(tmp_path / "root")
    assert source.names == ["gone.png", "linked.png", "out/2.png", "real/1.png"]
    _, report = readable(source)
    assert [name for name, _ in report.unreadable] == ["gone.png"]


def test_of_many_links_to_one_folder_the_first_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "elsewhere/1.png")
    for name in ("m", "a", "z", "c"):
        (tmp_path / "root").mkdir(exist_ok=True)
        (tmp_path / f"root/{name}").symlink_to(tmp_path / "elsewhere")
    listed = os.scandir
    for backwards in (False, True):  # whatever order the disk has
        monkeypatch.setattr(
            "distilhash.data.folders.os.scandir",
            lambda path, reverse=backwards: contextlib.nullcontext(
                sorted(listed(path), key=lambda entry: entry.name, reverse=reverse)
            ),
        )
        assert FolderSource(tmp_path / "root").names == ["a/1.png"]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    picture(tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    source = FolderSource(tmp_path)
    assert source.names == ["\\xff.png"]
    assert source.names[0].encode() and len(source.read([0])) == 1


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / f"{i}.png", i, (300, 300))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "2.png").write_bytes(b"")
    source = open_images(tmp_path)
    with pytest.raises(UnreadableImage) as caught:
        source.read([0, 1])
    assert caught.value.name == "1.png"
    kept, report = readable(source)
    assert kept.names == ["0.png", "3.png"] and report.readable.tolist() == [0, 3]
    assert [name for name, _ in report.unreadable] == ["1.png", "2.png"]
    assert "2 of 4" in report.summary() and "1.png" in report.summary() and "..." in report.summary(shown=1)
    assert kept.read([1])[0].getpixel((0, 0))[0] == 3
    same, clean = readable(kept)
    assert same is kept and clean.unreadable == [] and clean.total == 2


def test_arrays_are_always_readable() -> None:
    report = find_unreadable(random_source())
    assert report.readable.tolist() == list(range(10)) and report.unreadable == []


def test_mistakes_about_folders(tmp_path: Path) -> None:
    with pytest.raises(DistilhashError, match="no such folder"):
        open_images(tmp_path / "absent")
    with pytest.raises(DistilhashError, match="this is a file"):
        open_images(picture(tmp_path / "one/x.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DistilhashError, match="holds no images"):
        open_images(tmp_path / "empty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.jpg").write_bytes(b"no")
    with pytest.raises(DistilhashError, match="none of the images"):
        readable(open_images(tmp_path / "bad"))


def test_mistakes_about_labelled_folders(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png")
    with pytest.raises(DistilhashError, match="two class folders"):
        open_images(tmp_path, labelled=True)
    (tmp_path / "b").mkdir()
    with pytest.raises(DistilhashError, match="a class folder holds no images; got b"):
        open_images(tmp_path, labelled=True)
    picture(tmp_path / "b/1.png")
    picture(tmp_path / "loose.png")
    with pytest.raises(DistilhashError, match=r"1 images .* loose\.png"):
        open_images(tmp_path, labelled=True)


def test_a_folder_that_cannot_be_listed_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/2.png")
    listed = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr("distilhash.data.folders.os.scandir", scandir)
    with caplog.at_level(logging.WARNING, "distilhash"):
        assert open_images(tmp_path).names == ["b/2.png"]
    assert str(tmp_path / "a") in caplog.text and "Permission denied" in caplog.text
    found = distilhash.check(tmp_path)
    assert found["unlistable"] == [{"folder": str(tmp_path / "a"), "reason": "Permission denied"}]
    with pytest.raises(DistilhashError, match="Permission denied"):
        FolderSource(tmp_path / "a")


def test_labels_where_there_can_be_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a/1.png")
    assert FolderSource(tmp_path, None).labels.tolist() == [0]
    with pytest.raises(DistilhashError, match="'a'"):
        FolderSource(tmp_path, None, certain=True)
    picture(tmp_path / "b/1.png")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, "."):
        source = FolderSource(root, None)
        assert source.names == ["a/1.png", "b/1.png"] and source.labels is not None
        assert source.labels.tolist() == [0, 1]


def test_a_class_of_which_nothing_can_be_read_does_not_prevent_a_split(tmp_path: Path) -> None:
    for value, name in enumerate(("a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "c/1")):
        picture(tmp_path / f"{name}.png", value)
    (tmp_path / "b/1.png").write_bytes(b"")
    source = open_readable(tmp_path, labelled=None)
    assert split_of(source, tmp_path, "", 0, None, needed=False) is None, "b and c have too few"
    with pytest.raises(DistilhashError, match="b, c"):
        split_of(source, tmp_path, "", 0, None, needed=True)
    (tmp_path / "c/1.png").write_bytes(b"")
    picture(tmp_path / "b/1.png", 99)
    split = split_of(open_readable(tmp_path, labelled=None), tmp_path, "", 0, None, needed=True)
    assert split is not None and split.num_images == 6


def opened(root: Path) -> FolderSource:
    """As distill opens it: without --unlabelled."""
    return FolderSource(root, None, certain=True)


def test_a_labelled_folder_is_never_taken_for_an_unlabelled_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        picture(tmp_path / f"flat/{number}.png")
        picture(tmp_path / f"set/a/{number}.png")
    assert opened(tmp_path / "flat").labels is None, "photos that lie in no folder have no labels"
    with pytest.raises(DistilhashError, match="only 'a'"):
        opened(tmp_path / "set")
    picture(tmp_path / "set/b/1.png")
    assert opened(tmp_path / "set").labels is not None
    for stray, what in (("loose.png", "1 images .* loose.png"), ("c/", "no images; got c")):
        place = tmp_path / "set" / stray
        picture(place) if stray.endswith(".png") else place.mkdir()
        with pytest.raises(DistilhashError, match=what):
            opened(tmp_path / "set")
        caplog.clear()
        assert FolderSource(tmp_path / "set", None).labels is None and stray.strip("/") in caplog.text
        assert FolderSource(tmp_path / "set").labels is None
        place.unlink() if place.is_file() else place.rmdir()


@pytest.mark.parametrize("present", [("train",), ("Train", "TEST"), ("test", "database")])
def test_some_list_files_of_three_are_no_unlabelled_folder(tmp_path: Path, present: tuple[str, ...]) -> None:
    picture(tmp_path / "1.png")
    for name in present:
        (tmp_path / f"{name}.txt").write_text("1.png 1 0\n")
    absent = {"train", "test", "database"}.difference(map(str.lower, present))
    for options in ({"labelled": True}, {"labelled": None, "certain": True}):
        with pytest.raises(DistilhashError) as caught:
            open_images(tmp_path, **options)
        assert all(f"{name}.txt" in caught.value.got for name in absent)
    assert open_images(tmp_path).names == ["1.png"]


def parts(root: Path, *folders: str) -> Path:
    for number, folder in enumerate(folders):
        for c, name in enumerate(("cat", "dog")):
            for copy in range(2):
                picture(root / folder / name / f"{number} {c} {copy}.png", 9 * number + 3 * c + copy)
    return root


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (
            ("train", "val", "test"),
            {"query": "test", "validation": "val", "train": "train val", "database": "train val"},
        ),
        (("Train", "VALID", "Test", "gallery"), {"query": "Test", "train": "Train VALID", "database": "gallery"}),
        (("query", "database"), {"query": "query", "train": "database", "database": "database"}),
        (("training", "validation", "query"), {"query": "query", "validation": "validation"}),
        (("training_set", "Val1", "test-images"), {"query": "test-images", "validation": "Val1"}),
    ],
)
def test_folders_that_are_the_parts_of_a_split(
    tmp_path: Path, folders: tuple[str, ...], wanted: dict[str, str]
) -> None:
    source = open_readable(parts(tmp_path, *folders), labelled=True)
    assert source.class_names == ["cat", "dog"]
    assert np.asarray(source.labels).tolist() == [int("/dog/" in name) for name in source.names]
    split = split_of(source, tmp_path, "", 0, None, needed=True)
    assert split is not None
    for part, named in wanted.items():
        found = {source.names[i] for i in getattr(split, part)}
        assert found == {name for name in source.names if name.split("/")[0] in named.split()}
    # Without classes below them they still say which images are queries.
    for path in sorted(tmp_path.rglob("*.png")):
        path.rename(path.parent.parent / path.name)
    flat = opened(tmp_path)
    assert flat.labels is None
    again = split_of(flat, tmp_path, "", 0, None, needed=True)
    assert again is not None and len(again.query) == len(split.query)


@pytest.mark.parametrize("folders", [("train", "test", "cat"), ("train", "horse"), ("val", "valid", "train", "test")])
def test_folders_that_are_neither_classes_nor_parts(tmp_path: Path, folders: tuple[str, ...]) -> None:
    parts(tmp_path, *folders)
    with pytest.raises(DistilhashError) as caught:
        FolderSource(tmp_path, labelled=True)
    assert sum(folder in caught.value.got for folder in folders) >= 2
    with pytest.raises(DistilhashError):
        opened(tmp_path)


def test_a_class_may_be_called_train_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/1", "bus/1", "car/1"):
        picture(tmp_path / f"{name}.png")
    assert FolderSource(tmp_path, labelled=True).class_names == ["bus", "car", "train"]
    assert "train" in caplog.text


def test_classes_may_be_numbered_tests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("test 1/1", "test 2/1", "test 3/1"):
        picture(tmp_path / f"{name}.png")
    assert FolderSource(tmp_path, labelled=True).class_names == ["test 1", "test 2", "test 3"]
    assert "test 1" in caplog.text


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    parts(tmp_path, "train", "test")
    for value in range(3):
        (tmp_path / f"train/cat/0 0 {value}.png").unlink(missing_ok=True)
        (tmp_path / f"train/dog/0 1 {value}.png").unlink(missing_ok=True)
    picture(tmp_path / "train/cat/one.png", 77)
    source = open_readable(tmp_path, labelled=True)
    with pytest.raises(DistilhashError, match="validation"):
        part_of(source, tmp_path, "validation", "", 0, None, beside=tmp_path)
