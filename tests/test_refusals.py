"""What the operating system or SQLite refuses is told by its own reason, with a remedy for it, and loses nothing."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import filelock
import numpy as np
import pytest

from distilhash import cli
from distilhash.checkpoint import load_hasher
from distilhash.codes import CodeTable
from distilhash.data.splits import Split
from distilhash.errors import DistilhashError
from distilhash.errors import refused as refused_by_system
from distilhash.files import read_json, write_atomically, write_directory_atomically
from distilhash.models.backbone import read_state
from distilhash.models.teacher import _fetched
from distilhash.photos import update
from distilhash.retrieval import Index
from distilhash.retrieval import store as store_module
from distilhash.retrieval.store import Store
from mistakes import COMMANDS, refused

ERRNOS = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG", "EMFILE", "ELOOP", "ENOLCK", "EFBIG"]
REMEDY = {  # a word that only this remedy has
    "ENOSPC": "room", "EDQUOT": "quota", "EROFS": "reading only", "EACCES": "rights", "EPERM": "rights",
    "EIO": "connection", "ENAMETOOLONG": "shorter", "EMFILE": "ulimit -n", "ELOOP": "circle", "ENOLCK": "local disk",
    "EFBIG": "ulimit -f",
}  # fmt: skip


def failing(name: str):
    def fail(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    return fail


def told(error: DistilhashError, name: str) -> None:
    assert os.strerror(getattr(errno, name)) in error.got
    assert REMEDY[name] in error.fix
    own = {REMEDY[name], *(["room"] if name == "EDQUOT" else [])}
    assert not [word for word in set(REMEDY.values()) - own if word in error.fix]


@pytest.mark.parametrize("name", ERRNOS)
def test_every_reason_has_its_own_remedy(name, tmp_path, monkeypatch):
    told(refused_by_system("no", OSError(getattr(errno, name), os.strerror(getattr(errno, name)))), name)
    (tmp_path / "file").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr("distilhash.files.os.fsync", failing(name))
        with pytest.raises(DistilhashError) as caught:
            write_atomically(tmp_path / "file", "new")
        told(caught.value, name)
        with pytest.raises(DistilhashError) as caught, write_directory_atomically(tmp_path / "folder"):
            pass
        told(caught.value, name)
    assert (tmp_path / "file").read_text() == "old" and len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize("name", ["EACCES", "EIO", "EMFILE"])
@pytest.mark.parametrize(
    "read", [lambda path: read_json(path, "settings"), CodeTable.load, load_hasher, read_state, Split.load]
)
def test_a_file_that_cannot_be_opened_is_not_called_damaged(read, name, tmp_path, monkeypatch):
    path = tmp_path / "file.safetensors"
    path.write_text("sound")
    monkeypatch.setattr(Path, "open", failing(name))
    monkeypatch.setattr(Path, "read_bytes", failing(name))
    with pytest.raises(DistilhashError) as caught:
        read(path)
    assert os.strerror(getattr(errno, name)) in str(caught.value) and str(path) in str(caught.value)
    assert REMEDY[name] in caught.value.fix and "again with" not in caught.value.fix


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EACCES"])
def test_weights_that_the_disk_does_not_take_are_no_fault_of_the_network(name):
    with pytest.raises(DistilhashError) as caught:
        _fetched("torchvision/alexnet", failing(name))
    assert REMEDY[name] in caught.value.fix and "connect" not in caught.value.fix


def test_a_name_that_cannot_be_is_one_sentence_in_every_command(here, capsys):
    long, loop = "x" * 300, here / "loop"
    loop.symlink_to(loop)
    for bad, reason in ((long, "File name too long"), (str(loop), "symbolic links")):
        reads = (
            ("encode", bad, "photos"), ("profile", bad), ("evaluate", bad, bad), ("index", "photos", "--hasher", bad),
            ("index", "photos", "--hasher", "hasher", "--index", bad), ("code", "hasher", bad), ("check", bad),
            ("distill", "photos", "--split", bad, "--batch-size", "16"),
            ("distill", "photos", "--teacher-weights", bad, "--batch-size", "16"),
        )  # fmt: skip
        writes = (("encode", "hasher", "photos", "--output", long), ("hash", "photos", "--output", long))
        for words in (*reads, *(writes if bad == long else ())):
            said = refused(capsys, *words, "--quiet")
            assert bad in said and (reason in said or "no " in said or "unknown" in said), said


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_disk_without_locks_is_not_another_writer(name, tmp_path, monkeypatch):
    path, one = tmp_path / "index", np.ones((1, 8))
    monkeypatch.setattr("fcntl.flock", failing(name))
    with Index.open(path) as index, pytest.raises(DistilhashError) as caught:
        index.add([1], one)
    assert "local disk" in caught.value.fix and "another" not in caught.value.what
    assert os.strerror(getattr(errno, name)) in caught.value.got
    monkeypatch.undo()
    with Index.open(path) as first, Index.open(path) as second:
        first.add([1], one)
        with pytest.raises(DistilhashError, match="another process"):
            second.add([2], one)


SQLITE = {
    "full": ("PRAGMA max_page_count = 1", "room"),
    "read-only": ("PRAGMA query_only = 1", "rights"),
}


@pytest.mark.parametrize("how", SQLITE)
def test_what_sqlite_refuses_is_told_and_keeps_the_index(how, tmp_path):
    path, draw = tmp_path / "index", np.random.default_rng(0)
    statement, remedy = SQLITE[how]
    with Index.open(path) as index:
        index.add(np.arange(9), draw.choice([-1, 1], (9, 64)))
    index = Index.open(path)
    index._store._database.execute(statement)
    with pytest.raises(DistilhashError) as caught:
        index.add(np.arange(10, 50_000), draw.choice([-1, 1], (49_990, 64)))
    assert remedy in caught.value.fix and str(path) in caught.value.got
    assert len(index) == 9
    index.close()
    with Index.open(path) as index:
        assert index.ids.tolist() == list(range(9))
        index.add([77], np.ones((1, 64)))


def test_another_program_that_holds_the_file_is_told(tmp_path, monkeypatch):
    path = tmp_path / "index"
    with Index.open(path) as index:
        index.add([1], np.ones((1, 8)))
        index._store._database.execute("PRAGMA busy_timeout = 0")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DistilhashError) as caught:
            index.add([2], np.ones((1, 8)))
        assert "program" in caught.value.fix
        other.close()
        index.add([2], np.ones((1, 8)))


def test_an_index_file_that_cannot_be_opened_says_why(tmp_path):
    for path, reason in ((tmp_path, "directory"), (tmp_path / ("long" * 100), "too long")):
        with pytest.raises(DistilhashError, match=reason):
            Index.open(path)
    (tmp_path / "index").write_bytes(b"")
    with sqlite3.connect(tmp_path / "newer") as database:
        database.execute("CREATE TABLE t (x)")
        database.execute(f"PRAGMA application_id = {store_module.APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {store_module.VERSION + 1}")
    with pytest.raises(DistilhashError) as caught:
        Index.open(tmp_path / "newer")
    assert "version" in str(caught.value) and "again" not in caught.value.fix


def test_a_full_disk_in_the_midst_of_an_index_says_what_is_kept_and_goes_on(here, monkeypatch, capsys):
    monkeypatch.setattr(update, "FIRST_BATCH", 16)
    monkeypatch.setattr(update, "COMMIT_SECONDS", 1e-9)  # a second batch of one photo
    words, real, batches = ["index", "photos", "--hasher", "hasher", "--json", "--quiet"], Store.append, []

    def filling(self, *given):
        batches.append(given)
        if len(batches) == 4:
            self._database.execute("PRAGMA max_page_count = 1")
            self.many("INSERT INTO meta VALUES ('filler', ?)", [("x" * 10_000_000,)])
        real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", filling)
        assert cli.main(words) == 2
    said = capsys.readouterr().err
    with Index.open("photos.index") as index:
        kept = len(index)
    assert kept == 18 and f"{kept} of 72 photos are kept" in said and "room" in said and "nothing" not in said
    assert cli.main(words) == 0
    assert f'"added": {72 - kept}' in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_says_so(here, capsys, monkeypatch):
    monkeypatch.setattr(filelock.FileLock, "acquire", failing("EROFS"))
    said = refused(capsys, "index", "photos", "--hasher", "hasher")
    assert "Read-only file system" in said and "reading only" in said
    monkeypatch.undo()
    monkeypatch.setattr("distilhash.api.encode", failing("ESTALE"))  # whatever else the system refuses
    assert os.strerror(errno.ESTALE) in refused(capsys, *COMMANDS["encode"])


ONE = np.ones((1, 8))
CALLS = [
    lambda index: index.add([3], ONE), lambda index: index.remove([1]), lambda index: index.search(ONE), len,
    lambda index: index.radius(ONE, 1), lambda index: index.codes_of([1]), lambda index: index.ids, Index.__enter__,
]  # fmt: skip


@pytest.mark.parametrize("name", [":memory:", "index"])
def test_a_closed_index_is_refused_by_every_call(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = Index.open(name)
    with index:
        index.add([1, 2], np.ones((2, 8)))
    index.close()
    index.close()
    for call in CALLS:
        with pytest.raises(DistilhashError, match="closed"):
            call(index)
    assert [path.name for path in tmp_path.iterdir()] == ([] if name == ":memory:" else ["index"])


def test_a_closed_file_of_an_index_is_refused_too(tmp_path):
    with Index.open(tmp_path / "index") as index:
        index.add([1, 2], np.ones((2, 8)))
    store = Store(tmp_path / "index")
    store.close()
    store.close()
    for call in (store.about, store.codes, store.changed, store.claim, store.writing().__enter__):
        with pytest.raises(DistilhashError, match="closed"):
            call()
    with Index.open(tmp_path / "index") as index:
        assert index.ids.tolist() == [1, 2]
