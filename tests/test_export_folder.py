"""A directory is replaced whole or not at all."""

import os
import subprocess
import sys

import pytest

from distilhash.deploy.folder import written_whole


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    place = tmp_path / "out"
    for text in ("old", "new"):
        with written_whole(place) as folder:
            (folder / "file").write_text(text)
            assert place.exists() == (text == "new")
    assert (place / "file").read_text() == "new"
    with pytest.raises(ZeroDivisionError), written_whole(place) as folder:
        (folder / "file").write_text("half")
        raise ZeroDivisionError
    assert (place / "file").read_text() == "new"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):  # of a killed process, and of one that still writes
        (tmp_path / f".out.{process}.abc.tmp").mkdir()
    monkeypatch.setattr(sys, "platform", "elsewhere")  # no exchange: two renames
    with written_whole(place) as folder:
        (folder / "file").write_text("newest")
    assert (place / "file").read_text() == "newest"
    assert names_in(tmp_path) == [f".out.{os.getpid()}.abc.tmp", "out"]
