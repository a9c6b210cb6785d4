"""The file of an index: one SQLite database in WAL mode. Everything else (arrays, IVF lists) is derived from it.

Table ``log`` holds the codes: a row adds or withdraws a block of ids, and the last entry of an id counts, so a million
codes are a few rows. ``photos`` says which file an id is, as it was when it was read, or why it has no code; ``roots``
the folders that were indexed; ``meta`` the number of bits and the hasher. Text is any that a file system may hand out,
also with bytes that are not UTF-8.

The file is untrusted: its schema must equal ours exactly (so no trigger or view runs), and every value is checked as
it is read. There is one writer at a time: it holds an OS lock on ``FILE.lock``, which a killed process releases; the
empty lock file alone means nothing. One file, so that there is one place where SQL is run and its errors are told.

Shapes: N codes, n of a block, K bits, P = ceil(K / 8) bytes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from distilhash.codes import Bytes
from distilhash.errors import DistilhashError, refused
from distilhash.retrieval.backends import Ids

REMEDIES = {  # by SQLite's primary code; any other means damage
    **dict.fromkeys(
        (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL),
        "close the other program that has it open; where none has, keep it on a local disk: this one has no locks",
    ),
    **dict.fromkeys(
        (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN),
        "give yourself the rights to write it and its folder, or choose another --index",
    ),
    sqlite3.SQLITE_FULL: "free some room on its disk",
    sqlite3.SQLITE_IOERR: "its disk, the connection to it or your quota there fails; see to that, then try again",
    sqlite3.SQLITE_NOMEM: "the memory does not suffice; close some programs",
    sqlite3.SQLITE_INTERRUPT: "try again",
}

APPLICATION_ID = 0x64686978  # "dhix"
VERSION = 1
BLOCK = 1 << 18  # codes
SMALL_BLOCKS = 1_000  # so many blocks of fewer than as many codes on average are compacted
PAGE_BYTES = 32_768  # large pages for large blocks
SETTINGS = """
    PRAGMA trusted_schema = OFF;
    PRAGMA cell_size_check = ON;
    PRAGMA synchronous = FULL;  -- a commit is on the disk
    PRAGMA wal_autocheckpoint = 1024;  -- pages, which is 32 MiB
"""
MAX_BITS = (1 << 16) - 1  # distances have 16 bits
SCHEMA = (  # in these very words, which the file keeps
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE log (seq INTEGER PRIMARY KEY, withdrawn INTEGER NOT NULL, ids BLOB NOT NULL, codes BLOB NOT NULL)",
    "CREATE TABLE roots (path BLOB PRIMARY KEY)",
    "CREATE TABLE photos (id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,"
    " changed_ns INTEGER NOT NULL, content BLOB, failure TEXT)",
)


class Store:
    """An index file, of which nothing is created before the first change.

    Every method that reads raises DistilhashError where the file is not an index, is damaged, or is of another version;
    every method that writes, where another process is writing or the disk refuses.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        # Not thread-local: any thread of the process that claimed the index may release it.
        # Not a soft lock either, which a killed process would leave behind.
        self._lock = filelock.FileLock(self.beside(".lock"), timeout=0, thread_local=False, fallback_to_soft=False)
        self._database: sqlite3.Connection | None = None
        self._mutex = threading.RLock()  # one query of the connection at a time
        self._seen, self._closed = 0, False
        self._connect()

    def beside(self, suffix: str) -> Path:
        """The file of this name and a suffix."""
        return self.path.with_name(self.path.name + suffix)

    def about(self) -> dict[str, str]:
        """The table ``meta``: "num_bits", "encoder" (the hasher's fingerprint), "encoder_path"."""
        found = dict(self.rows("SELECT key, value FROM meta"))
        if not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise self.damaged("meta holds something other than text")
        bits = found.get("num_bits", "1")
        if not (bits.isascii() and bits.isdigit() and 1 <= int(bits[:9]) <= MAX_BITS):
            raise self.damaged(f"its number of bits is {bits[:20]!r}")
        return found

    def codes(self) -> tuple[Ids, Bytes]:
        """All ids (N,), ascending, and their packed codes (N, P)."""
        bits = int(self.about().get("num_bits", "8"))
        width, spare = -(-bits // 8), 0xFF >> (bits % 8 or 8)
        ids, codes, withdrawn = [np.empty(0, np.int64)], [np.empty((0, width), np.uint8)], [np.empty(0, np.bool_)]
        self._seen = self.version()
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
        all_ids, all_codes, present = np.concatenate(ids), np.concatenate(codes), ~np.concatenate(withdrawn)
        if all_ids.size and all_ids.min() < 0:
            raise self.damaged("an id is negative")
        if not (all_ids[1:] > all_ids[:-1]).all():  # the last entry of each id, by id
            order = np.argsort(all_ids, kind="stable")
            order = order[np.append(all_ids[order][1:] != all_ids[order][:-1], True)]
            all_ids, all_codes, present = all_ids[order], all_codes[order], present[order]
        return (all_ids, all_codes) if present.all() else (all_ids[present], all_codes[present])

    def changed(self) -> bool:
        """Whether another process has written since codes() was last called."""
        self._check_open()
        self._connect()
        return self.version() != self._seen

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: everything written inside is kept, or on any error nothing.

        The first one takes the writer's lock, which is held until close().
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
        """Take the writer's lock, before there is anything to write; create the file where there is none."""
        self._check_open()
        if not self._lock.is_locked:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
            except filelock.Timeout:
                what, fix = "another process is writing to this index", "wait until it has ended, then try again"
                raise DistilhashError(what, self.path, fix) from None
            except OSError as error:
                raise refused(f"cannot lock the index by {self._lock.lock_file}", error) from error
        self._connect(create=True)

    def describe(self, **values: str) -> None:
        """Set entries of ``meta``. Call it inside writing(), like append, withdraw, clear and many."""
        rows = ((key, text_bytes(value)) for key, value in values.items())
        self.many("INSERT OR REPLACE INTO meta VALUES (?, CAST(? AS TEXT))", rows)

    def append(self, ids: Ids, packed: Bytes) -> None:
        """Add packed codes (n, P) under ids (n,), none of which may be there yet."""
        blocks = range(0, len(ids), BLOCK)
        rows = ((0, _bytes(ids[i : i + BLOCK], "<i8"), _bytes(packed[i : i + BLOCK], "u1")) for i in blocks)
        self.many("INSERT INTO log (withdrawn, ids, codes) VALUES (?, ?, ?)", rows)

    def withdraw(self, ids: Ids) -> None:
        """Remove the codes of these ids (n,)."""
        if len(ids):
            self.many("INSERT INTO log (withdrawn, ids, codes) VALUES (1, ?, X'')", [(_bytes(ids, "<i8"),)])

    def tidy(self, ids: Ids, packed: Bytes) -> bool:
        """Compact a log that is mostly history or small blocks to its current ids and codes; whether it was."""
        ((blocks, lines),) = self.rows("SELECT count(*), total(length(ids)) / 8 FROM log")
        if lines <= 2 * len(ids) + BLOCK and (blocks < SMALL_BLOCKS or lines / blocks > SMALL_BLOCKS):
            return False
        with self.writing():
            self.many("DELETE FROM log", [()])
            self.append(ids, packed)
        return True

    def take_over(self, other: str | Path) -> None:
        """Replace all that the file holds by what another index file holds, in one transaction."""
        self.claim()
        self.rows("ATTACH DATABASE CAST(? AS TEXT) AS other", (os.fsencode(other),))
        try:
            with self.writing():
                for table in ("meta", "log", "roots", "photos"):
                    self.many(f"DELETE FROM main.{table}", [()])
                    self.many(f"INSERT INTO main.{table} SELECT * FROM other.{table}", [()])
        finally:
            self.rows("DETACH DATABASE other")

    def close(self) -> None:
        """Checkpoint and close the file, and release the writer's lock; nothing can be read or written afterwards."""
        self._closed = True
        with self._mutex:
            if self._database is not None:
                self._database.close()
                self._database = None
        if self._lock.is_locked:
            # Before the release: whoever opened it meanwhile sees that it is unlinked, and opens a new one.
            with contextlib.suppress(OSError):  # Windows refuses to delete an open file
                Path(self._lock.lock_file).unlink()
            self._lock.release()

    def _connect(self, create: bool = False) -> None:
        """Open the file where that was not done; without ``create`` only if it is there and holds anything."""
        with self._mutex, self._explained():
            if self._database is not None or not (create or self.path.exists()):
                return
            # Where nothing can be written SQLite cannot create the shared memory of WAL; but there is no writer.
            alone = not create and not os.access(self.path.parent, os.W_OK) and not self.beside("-wal").exists()
            place = self.path.absolute().as_uri() + "?immutable=1" if alone else str(self.path)
            database = sqlite3.connect(place, uri=alone, isolation_level=None, check_same_thread=False, timeout=10)
            with contextlib.ExitStack() as stack:
                stack.callback(database.close)
                if self._is_index(database, create):
                    self._database = database
                    stack.pop_all()

    def _is_index(self, database: sqlite3.Connection, create: bool) -> bool:
        """Whether the file holds anything, which is checked to be an index, or made one."""
        database.executescript(SETTINGS)
        database.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        schema = _schema_of(database)
        if not schema:  # new, or its writer was killed before the first transaction
            return create and bool(_create(database))
        if database.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise DistilhashError("this file is not an index", self.path, "name one that distilhash index wrote")
        if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
            what, fix = "the index has another format", "use the version of distilhash that wrote it"
            raise DistilhashError(what, f"{self.path} (this version reads format {VERSION})", fix)
        if schema != _schema_of(_create(sqlite3.connect(":memory:", isolation_level=None))):
            raise self.damaged("its tables are not those of an index")
        return True

    def version(self) -> int:
        """A number that differs after another process has written."""
        ((version,),) = self.rows("PRAGMA data_version") or [(0,)]
        return int(version)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query; none where there is no file yet."""
        with self._mutex, self._explained():
            self._check_open()
            return [] if self._database is None else self._database.execute(query, values).fetchall()

    def many(self, statement: str, rows: Iterable[Any]) -> None:
        """Run a statement for each row of values."""
        assert self._database is not None, "outside writing()"
        self._database.executemany(statement, rows)

    def damaged(self, why: str) -> DistilhashError:
        """The error for an index file with wrong contents."""
        fix = "it is left as it is: name another file, or put back a copy of this one"
        return DistilhashError("the index is damaged", f"{self.path} ({why})", fix)

    def _check_open(self) -> None:
        if self._closed:
            raise DistilhashError("the index is closed", self.path, "open it again")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise refused(f"cannot use the index {self.path}", error) from error
        except sqlite3.ProgrammingError:
            self._check_open()  # closed by another thread meanwhile
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # without what extends it
            if code == sqlite3.SQLITE_CANTOPEN:  # SQLite keeps the reason to itself
                try:
                    self.path.open("rb").close()
                except OSError as reason:
                    raise refused(f"cannot open the index {self.path}", reason) from error
            if code not in REMEDIES:
                raise self.damaged(str(error)) from error
            raise DistilhashError("cannot use the index", f"{self.path} ({error})", REMEDIES[code]) from error


def text_bytes(text: str) -> bytes:
    """Any text, also a path with bytes that are not UTF-8, as it is bound in CAST(? AS TEXT)."""
    return text.encode("utf-8", "surrogateescape")


def _create(database: sqlite3.Connection) -> sqlite3.Connection:
    database.executescript(
        f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; {'; '.join(SCHEMA)};"
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT"
    )
    return database


def _schema_of(database: sqlite3.Connection) -> set[tuple[Any, ...]]:
    return set(database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall())


def _bytes(array: NDArray[Any], dtype: str) -> memoryview:
    return np.ascontiguousarray(array, dtype).data.cast("B") if array.size else memoryview(b"")
