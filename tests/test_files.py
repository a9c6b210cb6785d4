"""Files and directories are written whole or not at all, whenever the process is killed."""

import os
import signal
import subprocess
import sys

import pytest

from distilhash.errors import DistilhashError
from distilhash.files import read_json, restore_directory, write_directory_atomically

KILLED_AT_A_RENAME = """
import os, pathlib, signal, sys
from distilhash.files import write_directory_atomically
place, fatal = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rename, renames = pathlib.Path.rename, []
def counted(self, target):
    renames.append(target)
    if len(renames) == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.rename = counted
with write_directory_atomically(place) as folder:
    (folder / "file").write_text("new")
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def write(place, text):
    with write_directory_atomically(place) as folder:
        (folder / "file").write_text(text)


def test_a_directory_is_written_whole_or_not_at_all(tmp_path):
    place = tmp_path / "out"
    for text in ("old", "new"):
        with write_directory_atomically(place) as folder:
            (folder / "file").write_text(text)
            assert place.exists() == (text == "new")
    assert (place / "file").read_text() == "new"
    with pytest.raises(ZeroDivisionError), write_directory_atomically(place) as folder:
        (folder / "file").write_text("half")
        raise ZeroDivisionError
    assert (place / "file").read_text() == "new"
    assert names_in(tmp_path) == ["out"]


def test_what_killed_processes_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid(), "²"):
        (tmp_path / f".out [1].{process}.abc.tmp").mkdir()
    write(tmp_path / "out [1]", "new")
    assert names_in(tmp_path) == sorted([f".out [1].{os.getpid()}.abc.tmp", ".out [1].².abc.tmp", "out [1]"])


@pytest.mark.parametrize(("fatal", "found"), [(1, "old"), (2, "old"), (3, "new")])
@pytest.mark.parametrize("follow", ["restore", "write"])
def test_a_kill_at_any_rename_leaves_the_old_or_the_new_directory(tmp_path, fatal, found, follow):
    place = tmp_path / "out [1]"
    write(place, "old")
    done = subprocess.run([sys.executable, "-c", KILLED_AT_A_RENAME, str(place), str(fatal)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names_in(tmp_path)) == 2
    if follow == "restore":
        restore_directory(place)
        assert (place / "file").read_text() == found
    else:
        write(place, "newest")
        assert (place / "file").read_text() == "newest"
    assert names_in(tmp_path) == ["out [1]"]


def test_where_the_disk_refuses_the_last_rename_the_old_directory_stands(tmp_path, monkeypatch):
    place = tmp_path / "out"
    write(place, "old")
    rename = type(place).rename

    def refusing(self, target):
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(place), "rename", refusing)
    with pytest.raises(DistilhashError, match="No space left"):
        write(place, "new")
    assert (place / "file").read_text() == "old"
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("content", [b"no JSON", b"\xff", b"[" * 100_000], ids=["text", "bytes", "deep"])
def test_what_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DistilhashError, match=r"settings cannot be read; got .*file\.json"):
        read_json(tmp_path / "file.json", "settings")
