"""Bringing an index up to date: after every change of a folder it holds what a fresh index would hold."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distilhash.config import ScanConfig
from distilhash.data.folders import FoundFile, walk
from distilhash.errors import DistilhashError
from distilhash.photos import update as photos
from distilhash.photos.catalogue import PhotoStore
from distilhash.retrieval import Index
from folders import PlainEncoder, holds, picture, updated


class Killed(BaseException):
    """Stands for the end of the process."""


def kill(*_: object) -> None:
    raise Killed


def rows(index: Path):
    """All that an index holds."""
    store = PhotoStore(index)
    ids, codes = store.codes()
    found = store.photos(), ids.tolist(), codes.tolist(), store.about(), store.roots()
    store.close()
    return found


@pytest.fixture
def folder(tmp_path):
    """Six pictures in two folders."""
    for number in range(6):
        picture(tmp_path / "photos" / ("ab"[number % 2]) / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def index(folder, tmp_path):
    """An index of them."""
    updated(tmp_path / "index", folder)
    return tmp_path / "index"


def counts(summary) -> dict[str, int]:
    return {name: value for name, value in dataclasses.asdict(summary).items() if isinstance(value, int) and value}


def later(path: Path) -> None:
    """Give a file another time of change, as an edit would."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def names(index: Path) -> list[str]:
    return sorted(Path(path).name for path in holds(index))


def test_a_new_index_holds_every_picture(folder, tmp_path):
    summary, read = updated(tmp_path / "index", folder)
    assert counts(summary) == {"added": 6}
    assert read == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
    assert list(holds(tmp_path / "index").values()) == [1, 2, 3, 4, 5, 6]


def test_nothing_is_opened_where_nothing_changed(folder, index, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(photos, "_content", opened.append)
    summary, read = updated(index, folder)
    assert (counts(summary), read, opened) == ({"unchanged": 6}, [], [])


def test_every_kind_of_change_in_one_run(folder, index):
    before = holds(index)
    picture(folder / "a" / "0.png", 100)
    later(folder / "a" / "0.png")  # changed
    later(folder / "a" / "2.png")  # touched
    (folder / "a" / "4.png").rename(folder / "b" / "moved.png")
    (folder / "b" / "1.png").unlink()
    picture(folder / "c" / "new.png", 101)
    summary, read = updated(index, folder)
    assert counts(summary) == {"added": 1, "changed": 1, "unchanged": 3, "renamed": 1}
    assert summary.missing == [str(folder / "b" / "1.png")]
    assert read == ["0.png", "new.png"]
    after = holds(index)
    assert {Path(path).name: number for path, number in after.items()} == {
        "0.png": 1, "2.png": 2, "moved.png": 3, "3.png": 5, "5.png": 6, "new.png": 7
    }  # fmt: skip
    assert after[str(folder / "a" / "0.png")] == before[str(folder / "a" / "0.png")]
    assert counts(updated(index, folder)[0]) == {"unchanged": 6}


def test_a_renamed_folder_is_not_encoded_again(folder, index):
    (folder / "a").rename(folder / "z")
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"renamed": 3, "unchanged": 3}, [])
    assert len(holds(index)) == 6


def test_copies_are_photos_of_their_own_and_claim_one_lost_name_each(folder, index):
    shutil.copy(folder / "a" / "0.png", folder / "b" / "copy.png")
    assert updated(index, folder)[1] == ["copy.png"]
    (folder / "a" / "0.png").rename(folder / "x.png")
    (folder / "b" / "copy.png").rename(folder / "y.png")
    shutil.copy(folder / "x.png", folder / "z.png")
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"renamed": 2, "added": 1, "unchanged": 5}, ["z.png"])
    assert len(holds(index)) == 8


def test_names_that_are_swapped_are_encoded_again(folder, index):
    (folder / "a" / "0.png").rename(folder / "t")
    (folder / "a" / "2.png").rename(folder / "a" / "0.png")
    (folder / "t").rename(folder / "a" / "2.png")
    for name in ("0.png", "2.png"):
        later(folder / "a" / name)
    assert counts(updated(index, folder)[0]) == {"changed": 2, "unchanged": 4}
    assert len(holds(index)) == 6


def test_a_failure_is_remembered_until_the_file_changes(folder, index):
    bad = folder / "a" / "bad.png"
    bad.write_bytes(b"no picture")
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"failed": 1, "unchanged": 6}, ["bad.png"])
    assert summary.failures == [(str(bad), "not an image of a known format")]
    again, read = updated(index, folder)
    assert (again.failures, read) == (summary.failures, [])
    later(bad)  # the same bytes: still no picture
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"failed": 1, "unchanged": 6}, [])
    picture(bad, 50)
    later(bad)
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"changed": 1, "unchanged": 6}, ["bad.png"])
    (folder / "a" / "0.png").write_bytes(b"broken now")
    for _ in range(2):  # told each time
        summary = updated(index, folder)[0]
        assert counts(summary) == {"failed": 1, "unchanged": 6}
        assert summary.failures == [(str(folder / "a" / "0.png"), "not an image of a known format")]
    assert "0.png" not in names(index) and "bad.png" in names(index)
    (folder / "a" / "0.png").unlink()  # it has no code that could be lost
    summary = updated(index, folder)[0]
    assert (counts(summary), summary.missing) == ({"deleted": 1, "unchanged": 6}, [])


def test_a_link_to_nowhere_and_a_file_that_vanishes(folder, index, monkeypatch):
    (folder / "a" / "nowhere.png").symlink_to(folder / "none.bin")
    summary, read = updated(index, folder)
    assert counts(summary) == {"failed": 1, "unchanged": 6} and read == []
    assert summary.failures[0][1] == "No such file or directory"
    picture(folder / "none.png", 9).rename(folder / "none.bin")  # where it leads to is there now
    assert counts(updated(index, folder)[0]) == {"changed": 1, "unchanged": 6}


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_time(folder, tmp_path):
    class Meddler(PlainEncoder):
        def codes(self, files):
            found = super().codes(files)
            picture(folder / "a" / "2.png", 77)
            later(folder / "a" / "2.png")
            return found

    index = tmp_path / "index"
    assert counts(updated(index, folder, encoder=Meddler())[0]) == {"added": 5, "unsettled": 1}
    assert len(holds(index)) == 5
    assert counts(updated(index, folder)[0]) == {"added": 1, "unchanged": 5}
    assert len(holds(index)) == 6


def test_what_programs_hide_is_passed_over(folder, index):
    for hidden in (".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN", ".thumbnails", "node_modules"):
        picture(folder / "a" / hidden / "x.png", 1)
    picture(folder / "._0.png", 1)
    assert counts(updated(index, folder)[0]) == {"unchanged": 6}
    (folder / "film.mp4").write_bytes(b"")
    assert updated(index, folder, scan=ScanConfig(exclude=["a"]))[0].other_files == {".mp4": 1}
    assert counts(updated(index, folder, scan=ScanConfig(hidden=True))[0]) == {"added": 7, "unchanged": 6}


def test_loops_of_links_end_and_each_file_comes_once(folder, index, tmp_path):
    (folder / "a" / "up").symlink_to(folder)
    (folder / "0 first").symlink_to(folder / "b")
    (tmp_path / "elsewhere").mkdir()
    picture(tmp_path / "elsewhere" / "far.png", 30)
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.png")
    assert counts(updated(index, folder)[0]) == {"added": 1, "unchanged": 6}
    assert str(folder / "far" / "far.png") in holds(index)
    assert counts(updated(index, folder, folder / "a")[0]) == {"unchanged": 7}


def unlistable(monkeypatch, folder: Path) -> None:
    """As root may list everything, the refusal is made up."""
    real = os.scandir

    def scandir(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_listed_is_reported_and_keeps_its_photos(folder, index, monkeypatch):
    (folder / "b" / "1.png").unlink()
    unlistable(monkeypatch, folder / "a")
    for prune in (False, True):
        summary, _ = updated(index, folder, prune=prune)
        assert counts(summary) == {"unchanged": 2} | ({"deleted": 1} if prune else {})
        assert summary.unreadable == [(str(folder / "a"), "Permission denied")]
        assert summary.missing == ([] if prune else [str(folder / "b" / "1.png")])
        assert summary.passed_over == []
        assert names(index) == ["0.png", "2.png", "3.png", "4.png", "5.png"]


def held(index: Path) -> int:
    """The number of codes, also of photos that are missing."""
    with Index.open(index) as opened:
        return len(opened)


@pytest.mark.parametrize("how", ["emptied", "gone"])
def test_a_folder_of_the_index_that_may_not_be_mounted_keeps_its_photos(how, folder, index, tmp_path):
    picture(tmp_path / "other" / "x.png", 60)
    updated(index, tmp_path / "other")
    moved = folder.rename(folder.with_name("moved"))
    if how == "emptied":
        folder.mkdir()
    else:
        with pytest.raises(DistilhashError, match=str(folder)):
            updated(index, folder)
    for prune in (False, True):
        summary, _ = updated(index, prune=prune)  # of all folders
        assert counts(summary) == {"unchanged": 1}
        assert len(summary.missing) == 6
        assert [path for path, _ in summary.unreadable] == [str(folder)]
        assert held(index) == 7
    if how == "emptied":
        folder.rmdir()
    moved.rename(folder)
    summary, read = updated(index)
    assert (counts(summary), summary.missing, read) == ({"unchanged": 7}, [], [])


@pytest.mark.parametrize("how", ["emptied", "gone"])
def test_a_folder_below_keeps_its_photos_until_prune(how, folder, index):
    aside = (folder / "a").rename(folder.with_name("aside"))
    if how == "emptied":
        (folder / "a").mkdir()
    for _ in range(2):
        summary, _ = updated(index, folder)
        assert counts(summary) == {"unchanged": 3}
        assert summary.missing == [str(folder / "a" / f"{number}.png") for number in (0, 2, 4)]
        assert held(index) == 6
    if how == "emptied":
        (folder / "a").rmdir()
    aside.rename(folder / "a")
    assert (counts(updated(index, folder)[0])) == {"unchanged": 6}
    shutil.rmtree(folder / "a")
    assert counts(updated(index, folder, prune=True)[0]) == {"unchanged": 3, "deleted": 3}
    assert held(index) == 3
    assert updated(index, folder)[0].missing == []


def test_links_to_a_disk_that_is_not_mounted_keep_their_photos(folder, tmp_path):
    disk, index = folder.rename(tmp_path / "disk"), tmp_path / "index"
    folder.mkdir()
    (folder / "all").symlink_to(disk / "a")
    for number in (1, 3, 5):
        (folder / f"{number}.png").symlink_to(disk / "b" / f"{number}.png")
    assert counts(updated(index, folder)[0]) == {"added": 6}
    disk.rename(tmp_path / "unmounted")
    for prune in (False, True):
        summary, _ = updated(index, folder, prune=prune)
        assert (counts(summary), len(summary.missing), held(index)) == ({}, 6, 6)
    (tmp_path / "unmounted").rename(disk)
    assert (counts(updated(index, folder)[0])) == {"unchanged": 6}


def test_a_file_that_cannot_be_read_just_now_keeps_its_code(folder, index, monkeypatch):
    later(folder / "a" / "0.png")
    with monkeypatch.context() as patch:
        patch.setattr(photos, "_content", lambda path: (None, "Input/output error"))
        summary, _ = updated(index, folder)
        assert summary.failures == [(str(folder / "a" / "0.png"), "Input/output error")]
    assert held(index) == 6
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"unchanged": 6}, [])


def test_a_moved_folder_of_the_index_keeps_ids_and_codes(folder, index, tmp_path):
    before = holds(index)
    (folder / "a" / "bad.png").write_bytes(b"no picture")
    updated(index, folder)
    new = folder.rename(tmp_path / "new")
    shutil.copy(new / "a" / "0.png", new / "copy.png")
    summary, read = updated(index, new)
    assert (counts(summary), read) == ({"added": 1, "renamed": 6, "failed": 1}, ["0.png"])
    assert (summary.missing, held(index)) == ([], 7)
    after = holds(index)
    assert after.pop(str(new / "a" / "0.png")) == 8
    assert after.pop(str(new / "copy.png")) == before.pop(str(folder / "a" / "0.png"))
    assert after == {path.replace(str(folder), str(new)): number for path, number in before.items()}
    store = PhotoStore(index)
    assert store.roots() == [str(new)]  # nothing refers to the old one
    store.close()


def test_photos_that_move_from_one_folder_to_another_and_copies_that_stay(folder, index, tmp_path):
    before, other = holds(index), tmp_path / "other"
    other.mkdir()
    (folder / "a" / "0.png").rename(other / "moved.png")
    shutil.copy(folder / "b" / "1.png", other / "copy.png")
    summary, read = updated(index, other)
    assert (counts(summary), read) == ({"added": 1, "renamed": 1}, ["copy.png"])
    after = holds(index)
    assert after[str(other / "moved.png")] == before[str(folder / "a" / "0.png")]
    assert len(after) == 7


def test_a_folder_under_another_name_by_a_link_is_the_same_photos(folder, index, tmp_path):
    new = folder.rename(tmp_path / "new")
    folder.symlink_to(new)
    summary, read = updated(index, new)
    assert (counts(summary), read, held(index)) == ({"renamed": 6}, [], 6)
    for _ in range(2):  # of both folders
        summary, read = updated(index)
        assert (read, held(index), summary.missing) == ([], 6, [])


def test_forgetting_a_folder(folder, index, tmp_path):
    picture(tmp_path / "photos 2" / "x.png", 60)
    updated(index, tmp_path / "photos 2")
    updated(index, folder / "a")
    with contextlib.closing(PhotoStore(index)) as store:
        with pytest.raises(DistilhashError, match="b") as caught:
            photos.forget(store, [folder / "b"])
        assert str(tmp_path / "photos 2") in str(caught.value)  # those that there are
        shutil.rmtree(tmp_path / "photos 2")  # it need not be there
        assert photos.forget(store, [tmp_path / "photos 2"]) == 1
        assert photos.forget(store, [f"{folder}/"]) == 3  # what lies below another one stays
        assert store.roots() == [str(folder / "a")]
    assert names(index) == ["0.png", "2.png", "4.png"]


@pytest.mark.parametrize("year", [1901, 1969, 2300, 2400])
def test_a_file_may_have_any_date(year, folder, index):
    seconds = (year - 1970) * 31_556_952
    os.utime(folder / "a" / "0.png", ns=(0, seconds * 10**9 + 123))
    if (folder / "a" / "0.png").stat().st_mtime_ns // 10**9 != seconds:
        seconds = None  # this file system knows no such date; it shows another one, which must serve, too
    picture(folder / "new.png", 70)
    os.utime(folder / "new.png", ns=(0, (year - 1970) * 31_556_952 * 10**9))
    assert counts(updated(index, folder)[0]) == {"added": 1, "unchanged": 6}
    for _ in range(2):
        summary, read = updated(index, folder)
        assert (counts(summary), read, len(holds(index))) == ({"unchanged": 7}, [], 7)


def test_a_date_beyond_int64(folder, index, monkeypatch):
    """As on file systems that know the year 9999."""
    real, ahead = FoundFile.of.__func__, 253_370_764_800 * 10**9

    class Far:
        def __init__(self, status):
            self.st_size, self.st_mtime_ns = status.st_size, status.st_mtime_ns + ahead

    monkeypatch.setattr(FoundFile, "of", classmethod(lambda cls, path, status: real(cls, path, Far(status))))
    assert counts(updated(index, folder)[0]) == {"unchanged": 6}
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"unchanged": 6}, [])


def test_names_of_every_kind(folder, index):
    names_of_bytes = (b"\xff\xfe", b"line\nbreak", b"\x1b[31m\x07\x7f\t", b"'\";--%s", b"x" * 251)
    strange = [os.fsdecode(name) for name in names_of_bytes]
    for number, name in enumerate(strange):
        picture(folder / f"{name}.png", 80 + number)
        picture(folder / name / "in.png", 90 + number)
        (folder / name / f"{name[:200]} bad.png").write_bytes(b"no picture")
    summary, _ = updated(index, folder)
    assert counts(summary) == {"added": 10, "failed": 5, "unchanged": 6}
    assert (counts(updated(index, folder)[0])) == {"failed": 5, "unchanged": 16}


def test_verify_reads_what_size_and_date_hide(folder, index):
    path = folder / "a" / "0.bmp"
    Image.new("RGB", (6, 6), "red").save(path)
    before = path.stat()
    updated(index, folder)
    Image.new("RGB", (6, 6), "blue").save(path)
    os.utime(path, ns=(0, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert counts(updated(index, folder)[0]) == {"unchanged": 7}
    summary, read = updated(index, folder, verify=True)
    assert (counts(summary), read) == ({"changed": 1, "unchanged": 6}, ["0.bmp"])
    assert len(holds(index)) == 7


def test_verify_tries_again_what_failed(folder, index):
    (folder / "bad.png").write_bytes(b"no picture")
    assert updated(index, folder)[1] == ["bad.png"]
    summary, read = updated(index, folder, verify=True)  # another version may know the format
    assert (counts(summary), read) == ({"failed": 1, "unchanged": 6}, ["bad.png"])


def test_what_the_scan_leaves_out_now_is_kept_and_told(folder, index):
    picture(folder / ".hidden" / "x.png", 1)
    updated(index, folder, scan=ScanConfig(hidden=True))
    summary, _ = updated(index, folder)
    assert (counts(summary), summary.missing) == ({"unchanged": 6}, [])
    assert summary.passed_over == [str(folder / ".hidden" / "x.png")]
    assert counts(updated(index, folder, prune=True)[0]) == {"deleted": 1, "unchanged": 6}


def test_folders_are_added_to_the_same_index(folder, index, tmp_path):
    picture(tmp_path / "photos 2" / "x.png", 60)  # whose name begins as the other's
    assert counts(updated(index, tmp_path / "photos 2")[0]) == {"added": 1}
    assert len(holds(index)) == 7
    (folder / "a" / "0.png").unlink()
    assert counts(updated(index, tmp_path / "photos 2")[0]) == {"unchanged": 1}
    assert counts(updated(index, prune=True)[0]) == {"unchanged": 6, "deleted": 1}  # all folders
    store = PhotoStore(index)
    assert store.roots() == [str(tmp_path / "photos"), str(tmp_path / "photos 2")]
    store.close()


def test_names_that_are_not_utf8(folder, index):
    name = os.fsdecode(b"caf\xe9.png")
    picture(folder / name, 61)
    assert counts(updated(index, folder)[0]) == {"added": 1, "unchanged": 6}
    assert str(folder / name) in holds(index)
    assert updated(index, folder)[1] == []


def test_another_encoder_is_refused_with_the_command_that_rebuilds(folder, index):
    other = PlainEncoder("another")
    before = index.read_bytes()
    with pytest.raises(DistilhashError) as caught:
        updated(index, folder, encoder=other)
    assert f"distilhash index --hasher /plain/hasher --index {index} --rebuild" in str(caught.value)
    assert index.read_bytes() == before
    assert counts(updated(index, folder, encoder=other, rebuild=True)[0]) == {"added": 6}
    assert len(holds(index, other)) == 6
    assert counts(updated(index, folder, encoder=other, rebuild=True)[0]) == {"unchanged": 6}


def test_a_rebuild_keeps_all_folders_and_ids_and_what_is_missing_comes_back(folder, index, tmp_path):
    picture(tmp_path / "other" / "x.png", 60)
    updated(index, tmp_path / "other")
    before = holds(index)
    (folder / "a" / "0.png").rename(tmp_path / "away.png")
    aside = (folder / "b").rename(tmp_path / "unmounted")
    other = PlainEncoder("another")
    summary, _ = updated(index, tmp_path / "other", encoder=other, rebuild=True)
    assert counts(summary) == {"added": 3}
    assert summary.missing == [str(folder / "a" / "0.png"), *(str(folder / "b" / f"{n}.png") for n in (1, 3, 5))]
    assert held(index) == 3
    assert updated(index, encoder=other)[0].missing == summary.missing
    aside.rename(folder / "b")
    (tmp_path / "away.png").rename(folder / "back.png")
    assert counts(updated(index, encoder=other)[0]) == {"added": 4, "unchanged": 3}
    before[str(folder / "back.png")] = before.pop(str(folder / "a" / "0.png"))
    assert holds(index, other) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index"]


@pytest.mark.parametrize("after", range(4))
def test_a_rebuild_that_was_killed_leaves_the_index_and_goes_on(after, folder, index, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "FIRST_BATCH", 2)
    monkeypatch.setattr(photos, "LARGEST_BATCH", 2)
    whole = tmp_path / "whole"
    shutil.copy(index, whole)
    updated(whole, folder, encoder=PlainEncoder("another"), rebuild=True)

    class Mortal(PlainEncoder):
        def codes(self, files):
            if len(self.read) >= 2 * after:
                raise Killed
            return super().codes(files)

    before = rows(index)
    reader = Index.open(index)
    if after == 3:  # between the last commit and what deletes the file of the rebuild
        monkeypatch.setattr(photos, "_delete_rebuild", kill)
        before = rows(whole)
    with pytest.raises(Killed):
        updated(index, folder, encoder=Mortal("another"), rebuild=True)
    monkeypatch.undo()
    assert rows(index) == before
    assert len(reader) == 6
    reader.close()
    _, read = updated(index, folder, encoder=PlainEncoder("another"), rebuild=True)
    assert len(read) == 6 - 2 * after
    assert rows(index) == rows(whole)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"index", "whole"}


def test_a_rebuild_begins_again_where_the_index_has_changed_since(folder, index):
    class Mortal(PlainEncoder):
        def codes(self, files):
            raise Killed

    with pytest.raises(Killed):
        updated(index, folder, encoder=Mortal("another"), rebuild=True)
    picture(folder / "a" / "new.png", 300)
    updated(index, folder)
    before = holds(index)
    assert counts(updated(index, encoder=PlainEncoder("another"), rebuild=True)[0]) == {"added": 7}
    assert holds(index, PlainEncoder("another")) == before


def test_an_index_of_no_folder_is_not_brought_up_to_date(tmp_path):
    with pytest.raises(DistilhashError, match="index"):
        updated(tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_codes_and_photos_do_not_mix(folder, index, tmp_path):
    with Index.open(index) as opened:
        assert len(opened) == 6
        for change in (lambda: opened.add([9], np.ones((1, 20))), lambda: opened.remove([1])):
            with pytest.raises(DistilhashError, match="distilhash index"):
                change()
    with Index.open(tmp_path / "plain") as plain:
        plain.add([1], np.ones((1, 20)))
    with pytest.raises(DistilhashError, match="plain"):
        updated(tmp_path / "plain", folder)


@pytest.mark.parametrize("after", range(5))
def test_a_run_that_was_stopped_goes_on_to_the_same_rows(after, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "FIRST_BATCH", 2)
    monkeypatch.setattr(photos, "LARGEST_BATCH", 2)

    class Mortal(PlainEncoder):
        batches = 0

        def codes(self, files):
            self.batches += 1
            if self.batches > after:
                raise Killed
            return super().codes(files)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for index in (whole, stopped):
        shutil.rmtree(folder)
        for number in range(6):
            path = picture(folder / f"{number}.png", number)
            os.utime(path, ns=(0, number))
        updated(index, folder)
        for number in range(4):
            (folder / f"{number}.png").rename(folder / f"{number} moved.png")
        for number in range(6, 12):
            os.utime(picture(folder / f"{number}.png", number), ns=(0, number))
        if index == stopped:
            with pytest.raises(Killed):
                updated(index, folder, encoder=Mortal())
        summary, _ = updated(index, folder)
    assert summary.deleted == 0
    assert rows(whole) == rows(stopped)


def test_the_walk_is_in_order_and_takes_known_endings(folder):
    for name in ("B.JPG", "notes.txt", "c.heic", "a.webp"):
        (folder / name).write_bytes(b"x")
    found = [Path(file.path).name for file in walk([str(folder)]).files]
    assert found == ["B.JPG", "a.webp", "c.heic", "0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
