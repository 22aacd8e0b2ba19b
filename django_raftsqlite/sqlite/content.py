"""A hash over all that a database holds, which does not depend on how it lies in the file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgpack

from . import forking
from .connections import Connection, open_reader
from .entry import decode_outcome
from .functions import Registrar
from .tables import load_state

BYTES_AT_ONCE = 128 * 1024
LONGEST_PAUSE = 0.02
"""Seconds; else a pause is as long as the work before it: others have the processor half of the time at least."""
_STEPS = 100_000
"""Of SQLite's virtual machine, between two looks at whether to go on."""


class Content(NamedTuple):
    """What was found: the hash (32 bytes) of the content after the log entry ``at``, and how many bytes.

    ``problem`` is what SQLite's integrity check says, or why some of it could not be read.
    """

    at: int
    digest: bytes
    size: int
    problem: str | None


def pin(path: Path, registrars: Iterable[Registrar]) -> Connection:
    """A reader that sees the present state, whatever is committed later. Raises apsw.Error."""
    connection = open_reader(path, registrars)
    try:
        connection.execute("BEGIN")
        load_state(connection)  # from here on
    except BaseException:
        connection.close(True)
        raise
    return connection


def hash_content(connection: Connection, go_on: Callable[[], object]) -> Content:
    """Hash all rows of all tables, and the schema, as the connection's transaction sees them.

    As https://sqlite.org/dbhash.html, but with row ids, our own tables and SQLite's; without the shadow tables of
    virtual ones, which depend on when they were flushed, and without error texts. Indexes are compared with their
    tables by SQLite's integrity check, and whether they agree is part of the hash. ``go_on`` is called often, and
    may raise to end it. One row is in memory at a time, whatever its size.
    """
    hashing = _Hashing(connection, go_on)
    connection.set_progress_handler(hashing.look, _STEPS)
    try:
        return hashing.run()
    finally:
        connection.set_progress_handler(None)


def close(connection: Connection) -> None:
    """Close what :func:`pin` opened."""
    with forking.opening:
        connection.close(True)


class _Hashing:
    def __init__(self, connection: Connection, go_on: Callable[[], object]) -> None:
        self._connection = connection
        self._go_on = go_on
        self._digest = hashlib.blake2b(digest_size=32)
        self._size = 0
        self._problem: str | None = None
        self._ended: BaseException | None = None

    def look(self) -> bool:
        """SQLite's progress handler: whether to interrupt."""
        try:
            self._go_on()
        except BaseException as error:
            self._ended = error
        return self._ended is not None

    def run(self) -> Content:
        connection = self._connection
        index = 0
        try:
            index = load_state(connection).applied_index
            self._feed(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2"))
            for name in ("user_version", "application_id"):
                self._feed(connection.execute(f"PRAGMA {name}"))
            tables: Any = connection.execute(
                "SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name <> 'sqlite_schema'"
                " AND type IN ('table', 'virtual') ORDER BY name"
            ).fetchall()
            for name, kind, without_rowid in tables:
                self._note([name])
                self._table(name, virtual=kind == "virtual", without_rowid=bool(without_rowid))
            self._check()
        except apsw.Error as error:
            if self._ended is not None:
                raise self._ended from error
            self._unreadable(str(error))
        return Content(index, self._digest.digest(), self._size, self._problem)

    def _unreadable(self, problem: str) -> None:
        self._problem = self._problem or problem
        self._note(["unreadable"])

    def _check(self) -> None:
        found: Any = self._connection.execute("PRAGMA integrity_check(3)").fetchall()
        sound = found == [("ok",)]
        self._note([sound])
        if not sound:
            self._problem = "integrity check: " + "; ".join(text for (text,) in found)

    def _table(self, name: str, *, virtual: bool, without_rowid: bool) -> None:
        connection, quoted = self._connection, _quote(name)
        if name == "_raftsqlite_outcome":
            self._outcomes()
            return
        columns: Any = connection.execute(
            "SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 1 ORDER BY cid", (name,)
        ).fetchall()
        names = [column for (column,) in columns]
        taken = {column.lower() for column in names}
        rowid = next((alias for alias in ("rowid", "_rowid_", "oid") if alias not in taken), None)
        key = [] if without_rowid or rowid is None else [rowid]
        order = f" ORDER BY {rowid}" if key else ""  # a full scan is in the order of the key
        source = f"FROM {quoted}{'' if virtual else ' NOT INDEXED'}{order}"
        try:
            self._feed(connection.execute(f"SELECT {', '.join([*key, *map(_quote, names)])} {source}"))
        except UnicodeDecodeError:  # text that is none
            raw = [
                f"typeof({c}), CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END"
                for c in map(_quote, names)
            ]
            self._feed(connection.execute(f"SELECT {', '.join([*key, *raw])} {source}"))
        except apsw.Error as error:
            if self._ended is not None or not virtual:
                raise
            self._note([type(error).__name__])  # a module may not be readable as a whole

    def _outcomes(self) -> None:
        rows: Any = self._connection.execute(
            "SELECT origin, sequence, outcome FROM _raftsqlite_outcome ORDER BY origin, sequence"
        )
        for origin, sequence, kept in rows:
            outcome = decode_outcome(kept)
            result = outcome.result
            rows_of = None if result is None else [result.rows, result.rowcount, result.lastrowid]
            self._note([origin, sequence, int(outcome.status), outcome.code, rows_of])

    def _feed(self, rows: apsw.Cursor) -> None:
        packer = msgpack.Packer(use_bin_type=True, unicode_errors="surrogatepass", autoreset=False)
        pack, packed = packer.pack, packer.getbuffer
        began = time.monotonic()
        for row in rows:
            pack(row)
            if len(packed()) > BYTES_AT_ONCE:
                self._take(packer)
                self._go_on()
                time.sleep(min(time.monotonic() - began, LONGEST_PAUSE))
                began = time.monotonic()
        self._take(packer)

    def _take(self, packer: msgpack.Packer) -> None:
        data = packer.bytes()
        packer.reset()
        self._digest.update(data)
        self._size += len(data)

    def _note(self, values: Any) -> None:
        packed: bytes = msgpack.packb(values, use_bin_type=True, unicode_errors="surrogatepass")
        self._digest.update(packed)
        self._size += len(packed)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
