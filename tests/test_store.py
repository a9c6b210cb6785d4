"""The index file: transactions, one writer, and files that somebody else has changed."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from distilhash.errors import DistilhashError
from distilhash.photos.catalogue import Photo, PhotoStore
from distilhash.retrieval import Index
from distilhash.retrieval.store import Store

CODES = np.random.default_rng(0).integers(0, 256, (40, 2), dtype=np.uint8) & np.array([255, 240], np.uint8)  # 12 bits
PHOTO = Photo(1, "/a/b\udcff.jpg", 10, 20, b"content", None)


@pytest.fixture
def path(tmp_path):
    """A sound index of 40 codes and one photo."""
    path = tmp_path / "index"
    store = PhotoStore(path)
    with store.writing():
        store.describe(num_bits="12")
        store.append(np.arange(30), CODES[:30])
        store.append(np.arange(30, 40), CODES[30:])
        store.withdraw(np.array([3, 39]))
        store.put_photos([PHOTO])
        store.put_roots(["/a", "/a/\udcff"])
    store.close()
    return path


def change(path, *statements):
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def read(path):
    store = PhotoStore(path)
    try:
        ids, codes = store.codes()
        return ids.tolist(), codes.tolist(), store.photos(), store.roots(), store.about()
    finally:
        store.close()


def test_what_was_written_is_read(path):
    ids, codes, photos, roots, about = read(path)
    assert ids == [i for i in range(40) if i not in (3, 39)]
    assert codes == CODES[ids].tolist()
    assert (photos, roots, about) == ([PHOTO], ["/a", "/a/\udcff"], {"num_bits": "12"})


def test_the_last_word_about_an_id_counts(path):
    store = Store(path)
    with store.writing():
        store.append(np.array([39, 3]), CODES[:2])
        store.withdraw(np.array([3]))
    assert store.codes()[0].tolist() == [i for i in range(40) if i != 3]
    assert store.codes()[1][-1].tolist() == CODES[0].tolist()
    before = [array.tolist() for array in store.codes()]
    with store.writing():
        store.many("INSERT INTO log (withdrawn, ids, codes) VALUES (?, X'', X'')", [(1,)] * 2000)
    assert store.tidy(*store.codes())
    assert [array.tolist() for array in store.codes()] == before
    assert store.rows("SELECT count(*) FROM log") == [(1,)]
    assert not store.tidy(*store.codes())
    store.close()


def test_one_index_takes_over_another_at_once(path, tmp_path):
    other = PhotoStore(tmp_path / "ot'her \udcff")
    with other.writing():
        other.describe(num_bits="16", encoder_path="/caf\udce9/hasher")
        other.append(np.arange(5), CODES[:5])
        other.put_photos([PHOTO._replace(id=4, failure="a name \udcfe in a reason")])
        other.put_roots(["/b\udcff"])
    other.close()
    reader, writer = PhotoStore(path), PhotoStore(path)
    before = reader.codes()[0].tolist()
    with pytest.raises(DistilhashError):
        writer.take_over(tmp_path)  # no index
    assert not reader.changed() and reader.codes()[0].tolist() == before
    writer.take_over(other.path)
    assert writer.next_id() == 5
    writer.close()
    assert reader.changed()
    reader.close()
    assert read(path) == read(other.path)
    assert read(path)[4]["encoder_path"] == "/caf\udce9/hasher"


def test_an_error_inside_keeps_nothing(path):
    before = read(path)
    store = PhotoStore(path)
    with pytest.raises(RuntimeError), store.writing():
        store.append(np.array([100]), CODES[:1])
        store.drop_photos([PHOTO])
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), store.writing():
        store.many("DELETE FROM log", [()])
        raise KeyboardInterrupt
    store.close()
    assert read(path) == before
    assert [found.name for found in path.parent.iterdir()] == ["index"]


def test_a_second_writer_is_refused_and_readers_are_not(path):
    first, second = Store(path), Store(path)
    with first.writing():
        first.append(np.array([100]), CODES[:1])
        with pytest.raises(DistilhashError, match="index"), second.writing():
            raise AssertionError
        assert 100 not in second.codes()[0]
    assert second.changed()
    assert 100 in second.codes()[0]
    assert not second.changed()
    with pytest.raises(DistilhashError, match="index"):
        second.claim()
    first.close()
    with second.writing():
        second.withdraw(np.array([100]))
    second.close()


def test_a_file_before_its_first_transaction_is_an_empty_index(tmp_path):
    for content in (b"", None):
        path = tmp_path / str(content)
        if content is None:
            change(path, "PRAGMA journal_mode = WAL")
        else:
            path.write_bytes(content)
        with Index.open(path) as index:
            assert len(index) == 0
            index.add([1], np.ones((1, 8)))
        with Index.open(path) as index:
            assert index.ids.tolist() == [1]


TAMPERED = {
    "not SQLite": lambda path: path.write_bytes(b"text " * 1000),
    "another application": lambda path: change(path, "PRAGMA application_id = 5"),
    "another version": lambda path: change(path, "PRAGMA user_version = 9"),
    "a trigger": lambda path: change(path, "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM log; END"),
    "a view": lambda path: change(path, "ALTER TABLE log RENAME TO other", "CREATE VIEW log AS SELECT * FROM other"),
    "ids of text": lambda path: change(path, "UPDATE log SET ids = 'text'"),
    "withdrawn 7 times": lambda path: change(path, "UPDATE log SET withdrawn = 7"),
    "fewer codes than ids": lambda path: change(path, "UPDATE log SET codes = X'00' WHERE seq = 1"),
    "a part of an id": lambda path: change(path, "UPDATE log SET ids = X'00', codes = X'' WHERE seq = 1"),
    "bits beyond 12": lambda path: change(path, "UPDATE log SET ids = zeroblob(8), codes = X'FFFF' WHERE seq = 1"),
    "a negative id": lambda path: change(path, "UPDATE log SET ids = X'FFFFFFFFFFFFFFFF' WHERE withdrawn"),
    "-3 bits": lambda path: change(path, "UPDATE meta SET value = '-3'"),
    "too many bits": lambda path: change(path, f"UPDATE meta SET value = '{'9' * 4000}'"),
    "meta of bytes": lambda path: change(path, "UPDATE meta SET value = X'00'"),
    "a size of text": lambda path: change(path, "UPDATE photos SET size = 'big'"),
    "a path with a zero": lambda path: change(path, "UPDATE photos SET path = X'2F6100'"),
    "a root of text": lambda path: change(path, "UPDATE roots SET path = 'text' WHERE path = X'2F61'"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_file_that_was_tampered_with_is_refused(how, path):
    TAMPERED[how](path)
    with pytest.raises(DistilhashError) as caught:
        read(path)
    assert str(path) in caught.value.got
    assert len(str(caught.value)) < 300 + len(str(path))  # whatever the file holds
    assert not any(word in caught.value.fix for word in ("again", "delete", "rebuild"))


def test_damaged_bytes_end_in_an_index_or_in_one_sentence(path, tmp_path):
    sound, before = path.read_bytes(), read(path)
    draw = np.random.default_rng(0)
    refused = 0
    for number in range(150):
        data = np.frombuffer(sound, np.uint8).copy()
        used = np.flatnonzero(data)
        where = draw.choice(used, draw.integers(1, 8))
        data[where] = draw.integers(0, 256, len(where))
        data = data[: draw.integers(1, len(data))] if number % 5 == 0 else data
        broken = tmp_path / "broken"
        broken.write_bytes(data.tobytes())
        try:
            found = read(broken)
            assert all(type(one) is type(other) for one, other in zip(found, before, strict=True))
        except DistilhashError:
            refused += 1
    assert 20 < refused < 150


def test_an_index_where_nothing_can_be_written_is_read(path, monkeypatch):
    before = read(path)
    place = path.rename(path.with_name("a?b%20 \udcff"))
    with monkeypatch.context() as patch:
        patch.setattr("distilhash.retrieval.store.os.access", lambda *_: False)
        real = sqlite3.connect
        opened: list[str] = []
        patch.setattr(sqlite3, "connect", lambda name, **settings: opened.append(name) or real(name, **settings))
        assert read(place) == before
    assert opened[0].endswith("?immutable=1")


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        Index.open(tmp_path / "file" / "index") as index,
        pytest.raises(DistilhashError, match="index"),
    ):
        index.add([1], np.ones((1, 8)))
    for place in (tmp_path, tmp_path / ("long" * 100)):
        with pytest.raises(DistilhashError, match=tmp_path.name):
            Index.open(place)
