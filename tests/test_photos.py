"""Bringing an index up to date: after every change of a folder it holds what a fresh index would hold."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from distilhash.data.folders import walk
from distilhash.errors import DistilhashError
from distilhash.photos import update as photos
from distilhash.photos.catalogue import PhotoStore
from distilhash.retrieval import Index
from folders import PlainEncoder, holds, picture, updated


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
    assert counts(summary) == {"added": 1, "changed": 1, "unchanged": 3, "renamed": 1, "deleted": 1}
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
    assert updated(index, folder)[1] == []
    later(bad)  # the same bytes: still no picture
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"failed": 1, "unchanged": 6}, [])
    picture(bad, 50)
    later(bad)
    summary, read = updated(index, folder)
    assert (counts(summary), read) == ({"changed": 1, "unchanged": 6}, ["bad.png"])
    (folder / "a" / "0.png").write_bytes(b"broken now")
    assert counts(updated(index, folder)[0]) == {"failed": 1, "unchanged": 6}
    assert "0.png" not in names(index) and "bad.png" in names(index)
    (folder / "a" / "0.png").unlink()
    assert counts(updated(index, folder)[0]) == {"deleted": 1, "unchanged": 6}


def test_a_link_to_nowhere_and_a_file_that_vanishes(folder, index, monkeypatch):
    (folder / "a" / "nowhere.png").symlink_to(folder / "none.bin")
    summary, read = updated(index, folder)
    assert counts(summary) == {"failed": 1, "unchanged": 6} and read == []
    assert summary.failures[0][1] == "No such file or directory"
    picture(folder / "none.png", 9).rename(folder / "none.bin")  # where it leads to is there now
    assert counts(updated(index, folder)[0]) == {"changed": 1, "unchanged": 6}


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_time(folder, tmp_path):
    class Meddler(PlainEncoder):
        def encode(self, paths):
            found = super().encode(paths)
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
    assert counts(updated(index, folder, hidden=True)[0]) == {"added": 7, "unchanged": 6}


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
    summary, _ = updated(index, folder)
    assert counts(summary) == {"unchanged": 2, "deleted": 1}
    assert summary.unreadable == [(str(folder / "a"), "Permission denied")]
    assert names(index) == ["0.png", "2.png", "3.png", "4.png", "5.png"]


def test_a_root_whose_photos_are_all_gone_keeps_them(folder, index):
    folder.rename(folder.with_name("moved"))
    folder.mkdir()  # as the place of a disk that is not mounted
    summary, _ = updated(index, folder)
    assert counts(summary) == {} and summary.unreadable[0][0] == str(folder)
    folder.rmdir()
    with pytest.raises(DistilhashError, match=str(folder)):
        updated(index, folder)
    folder.with_name("moved").rename(folder)
    assert counts(updated(index, folder)[0]) == {"unchanged": 6}


def test_folders_are_added_to_the_same_index(folder, index, tmp_path):
    picture(tmp_path / "photos 2" / "x.png", 60)  # whose name begins as the other's
    assert counts(updated(index, tmp_path / "photos 2")[0]) == {"added": 1}
    assert len(holds(index)) == 7
    (folder / "a" / "0.png").unlink()
    assert counts(updated(index, tmp_path / "photos 2")[0]) == {"unchanged": 1}
    assert counts(updated(index, folder)[0]) == {"unchanged": 5, "deleted": 1}
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
    assert f"distilhash index {folder} --hasher /plain/hasher --index {index} --rebuild" in str(caught.value)
    assert index.read_bytes() == before
    assert counts(updated(index, folder, encoder=other, rebuild=True)[0]) == {"added": 6}
    assert len(holds(index, other)) == 6
    assert counts(updated(index, folder, encoder=other, rebuild=True)[0]) == {"unchanged": 6}


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


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", range(5))
def test_a_run_that_was_stopped_goes_on_to_the_same_rows(after, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "FIRST_BATCH", 2)
    monkeypatch.setattr(photos, "LARGEST_BATCH", 2)

    class Mortal(PlainEncoder):
        batches = 0

        def encode(self, paths):
            self.batches += 1
            if self.batches > after:
                raise Killed
            return super().encode(paths)

    def rows(index: Path):
        store = PhotoStore(index)
        ids, codes = store.codes()
        found = store.photos(), ids.tolist(), codes.tolist()
        store.close()
        return found

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
