"""The file of an index: one SQLite database in WAL mode, which alone is the truth; whatever is faster is made from it.

``log`` holds the codes: a row adds or withdraws a block of ids, and the last word about an id counts. So adding a
million codes writes a few large blocks instead of a million rows, and removing writes the ids alone. A log that is
mostly history, or mostly small blocks, is written anew. ``photos`` says which file an id is, in the state in which it
was read, or why it has no code; ``roots`` the folders that were indexed; ``meta`` the number of bits and the encoder.

The file may come from anywhere: its schema must be ours to the letter (so no trigger or view runs), and every value is
checked as it is read. Every change is a transaction. NumPy only: no torch is imported.

Shapes: N codes, n codes of a block, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import Bytes
from distilhash.errors import DistilhashError
from distilhash.retrieval.lock import WriterLock
from distilhash.retrieval.table import Ids

APPLICATION = 0x64686978  # "dhix", by which a file is known as ours
VERSION = 1
BLOCK = 1 << 18  # codes
SMALL_BLOCKS = 1_000  # so many blocks of less than as many codes on average are written anew as large ones
PAGE_BYTES, WAL_PAGES = 32_768, 1_024  # large pages for large blocks; the log is folded into the file every 32 MiB
MOST_BITS = 1 << 16
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE log (seq INTEGER PRIMARY KEY, withdrawn INTEGER NOT NULL, ids BLOB NOT NULL, codes BLOB NOT NULL)",
    "CREATE TABLE roots (path BLOB PRIMARY KEY)",
    "CREATE TABLE photos (id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,"
    " changed_ns INTEGER NOT NULL, content BLOB, failure TEXT)",
)


class Store:
    """An index file. Nothing is created before the first change. Errors: DistilhashError for a file that is not an index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: WriterLock | None = None
        self._database: sqlite3.Connection | None = None
        self._seen = 0
        if path.exists():
            with self._explained():
                self._connect()

    @property
    def exists(self) -> bool:
        """Whether there is anything in the file."""
        return self._database is not None

    def about(self) -> dict[str, str]:
        """What ``meta`` says: "num_bits", "encoder" (its fingerprint), "encoder_path"."""
        found = {}
        for key, value in self.rows("SELECT key, value FROM meta"):
            if not isinstance(key, str) or not isinstance(value, str):
                raise self.damaged("meta holds something other than text")
            found[key] = value
        bits = found.get("num_bits", "1")
        if not (bits.isascii() and bits.isdigit() and 1 <= int(bits[:9]) <= MOST_BITS):
            raise self.damaged(f"its number of bits is {bits[:20]!r}")
        return found

    def codes(self) -> tuple[Ids, Bytes]:
        """The ids (N,), ascending, and their packed codes (N, P)."""
        bits = int(self.about().get("num_bits", "8"))
        width, spare = -(-bits // 8), 0xFF >> (bits % 8 or 8)
        ids, codes, withdrawn = [np.empty(0, np.int64)], [np.empty((0, width), np.uint8)], [np.empty(0, np.bool_)]
        self._seen = self._version()
        for gone, id_bytes, code_bytes in self.rows("SELECT withdrawn, ids, codes FROM log ORDER BY seq"):
            if gone not in (0, 1) or not isinstance(id_bytes, bytes) or not isinstance(code_bytes, bytes):
                raise self.damaged("a block of codes has values of a wrong type")
            count, rest = divmod(len(id_bytes), 8)
            if rest or len(code_bytes) != (0 if gone else count * width):
                raise self.damaged("a block's ids and codes do not fit each other")
            ids.append(np.frombuffer(id_bytes, "<i8").astype(np.int64, copy=False))
            withdrawn.append(np.full(count, bool(gone)))
            found = np.frombuffer(code_bytes, np.uint8).reshape(-1, width)
            codes.append(np.zeros((count, width), np.uint8) if gone else found)
            if not gone and (found[:, -1] & spare).any():
                raise self.damaged("a code has bits set beyond its length")
        all_ids, all_codes = np.concatenate(ids), np.concatenate(codes)
        if all_ids.size and all_ids.min() < 0:
            raise self.damaged("an id is negative")
        return _last_word(all_ids, all_codes, np.concatenate(withdrawn))

    def changed(self) -> bool:
        """Whether somebody else has written since codes() was last called."""
        if self._database is None:
            return self.path.exists()
        return self._version() != self._seen

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: all that is written inside is kept, or on any error none of it.

        The first one takes the writer's lock, which is held until close(). Errors: DistilhashError where another process
        writes, or the disk refuses.
        """
        with self._explained():
            self.claim()
            assert self._database is not None, "claim() connects"
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def claim(self) -> None:
        """Become the writer, before there is anything to write; make the file where there is none."""
        if self._lock is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DistilhashError(
                    "cannot make the folder of the index", f"{self.path} ({error.strerror})"
                ) from error
            self._lock = WriterLock(self.path)
        if self._database is None:
            with self._explained():
                self._connect(create=True)

    def describe(self, **values: str) -> None:
        """Put entries of ``meta``. Inside writing(), as all that follow."""
        self.many("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def append(self, ids: Ids, packed: Bytes) -> None:
        """Add codes; the caller has made sure that no id is there yet."""
        blocks = range(0, len(ids), BLOCK)
        rows = ((0, _bytes(ids[i : i + BLOCK], "<i8"), _bytes(packed[i : i + BLOCK], "u1")) for i in blocks)
        self.many("INSERT INTO log (withdrawn, ids, codes) VALUES (?, ?, ?)", rows)

    def withdraw(self, ids: Ids) -> None:
        """Remove the codes of these ids."""
        if len(ids):
            self.many("INSERT INTO log (withdrawn, ids, codes) VALUES (1, ?, X'')", [(_bytes(ids, "<i8"),)])

    def tidy(self, ids: Ids, packed: Bytes) -> bool:
        """Write the log anew, as what is in it now, where it has become mostly history or mostly small blocks."""
        ((blocks, lines),) = self.rows("SELECT count(*), total(length(ids)) / 8 FROM log")
        if lines <= 2 * len(ids) + BLOCK and (blocks < SMALL_BLOCKS or lines / blocks > SMALL_BLOCKS):
            return False
        with self.writing():
            self.many("DELETE FROM log", [()])
            self.append(ids, packed)
        return True

    def clear(self) -> None:
        """Forget every code and every file."""
        for table in ("log", "photos", "meta"):
            self.many(f"DELETE FROM {table}", [()])

    def close(self) -> None:
        """Fold the log into the file and let the next writer in."""
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _connect(self, create: bool = False) -> None:
        place, log = str(self.path), self.path.with_name(self.path.name + "-wal")
        # Where nothing can be written SQLite cannot share its log with a writer; but there is no writer, either.
        alone = not create and not os.access(self.path.parent, os.W_OK) and not log.exists()
        if alone:
            place = self.path.absolute().as_uri() + "?immutable=1"
        database = sqlite3.connect(place, uri=alone, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA cell_size_check = ON")
            database.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
            database.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
            schema = _schema_of(database)
            if not schema and create:
                _create(database)
            elif not schema:  # killed before its first transaction: nothing is in it yet
                database.close()
                return
            elif database.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
                raise DistilhashError("this file is not an index", self.path, "name one that distilhash index wrote")
            elif database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                raise DistilhashError("this index was written by another version", self.path, "make it again")
            elif schema != _schema_of(_create(sqlite3.connect(":memory:", isolation_level=None))):
                raise self.damaged("its tables are not those of an index")
        except BaseException:
            database.close()
            raise
        self._database = database

    def _version(self) -> int:
        ((version,),) = self.rows("PRAGMA data_version") or [(0,)]
        return int(version)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a query finds; nothing where there is no file yet."""
        if self._database is None:
            return []
        with self._explained():
            return self._database.execute(query, values).fetchall()

    def many(self, statement: str, rows: Iterable[Any]) -> None:
        """Run a statement for each row of values. Inside writing()."""
        assert self._database is not None, "outside writing()"
        self._database.executemany(statement, rows)

    def damaged(self, why: str) -> DistilhashError:
        """The error for a file that says it is an index, and is not a sound one."""
        return DistilhashError("the index is damaged", f"{self.path} ({why})", "make it again with: distilhash index")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise DistilhashError(
                "the index cannot be used", f"{self.path} ({error})", "nothing was changed"
            ) from error
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
            raise DistilhashError(
                "this file is not a sound index", f"{self.path} ({error})", "make it again"
            ) from error


def _create(database: sqlite3.Connection) -> sqlite3.Connection:
    database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA:
        database.execute(statement)
    database.execute(f"PRAGMA application_id = {APPLICATION}")
    database.execute(f"PRAGMA user_version = {VERSION}")
    database.execute("COMMIT")
    return database


def _schema_of(database: sqlite3.Connection) -> set[tuple[Any, ...]]:
    return set(database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall())


def _last_word(ids: Ids, codes: Bytes, withdrawn: NDArray[np.bool_]) -> tuple[Ids, Bytes]:
    """The codes of the ids that were not withdrawn since they were last added, by id."""
    if not (ids[1:] > ids[:-1]).all():
        order = np.argsort(ids, kind="stable")
        last = np.append(ids[order][1:] != ids[order][:-1], True)
        order = order[last]
        ids, codes, withdrawn = ids[order], codes[order], withdrawn[order]
    if withdrawn.any():
        ids, codes = ids[~withdrawn], codes[~withdrawn]
    return ids, codes


def _bytes(array: NDArray[Any], dtype: str) -> memoryview:
    return np.ascontiguousarray(array, dtype).data.cast("B") if array.size else memoryview(b"")
