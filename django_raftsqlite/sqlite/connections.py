"""How every connection to the replicated file is opened."""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from . import forking, vfs
from .functions import FunctionRegistry, Registrar, StatementCounters, register

logger = logging.getLogger("django_raftsqlite.sqlite")

BUSY_TIMEOUT_MS = 5000
"""How long a statement waits for a lock of SQLite's. Nothing of ours holds one for long: this covers recovery."""

_STATEMENT_CACHE = 256
_CHECKPOINT_PAGES = 4000
"""16 MiB of WAL between checkpoints: every one fsyncs twice, and the same few pages are written by every entry."""


class Snapshot(NamedTuple):
    """A state of the database that somebody reads: since when (`time.monotonic()`), and the text of the statement."""

    since: float
    reader: str


class Connection(apsw.Connection):
    """An APSW connection with what this package knows about it.

    ``registry`` lists the functions registered on it; ``counters`` start its `total_changes()` anew. ``private``
    becomes true when the connection has temporary or attached tables, which no other connection sees. ``snapshot``
    is kept by the borrower of a reader; ``generation`` tells which of the files is meant that a resync put at one
    path.
    """

    registry: FunctionRegistry
    counters: StatementCounters
    private: bool = False
    snapshot: Snapshot | None = None
    generation: int = 0
    classified: dict[str, Any]

    def close(self, force: bool = False) -> None:
        """Close it. Raises apsw.Error only when it is still open then."""
        with forking.opening:
            try:
                super().close(force)
            except apsw.Error as error:
                # On a full disk, say: SQLite cannot write what it would have tidied up, and has closed the file.
                with suppress(apsw.ConnectionClosedError):
                    self.get_autocommit()
                    raise
                logger.warning("a database connection was closed with an error: %s", error)


# Classifications are shared by all connections with the same registrars: they depend on the text and on them.
_shared_classifications: dict[tuple[Registrar, ...], dict[str, Any]] = {}


def open_reader(path: Path, registrars: Iterable[Registrar]) -> Connection:
    """A connection that cannot write to the file, whatever it is told.

    Raises apsw.CantOpenError when there is no file yet.
    """
    connection = _open(path, apsw.SQLITE_OPEN_READONLY)
    # The last one to close a WAL database checkpoints it, which a read-only one cannot.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    return _set_up(connection, registrars)


def open_writer(
    path: Path, registrars: Iterable[Registrar], mode: int = 0o600, durable: bool = True, *, checkpoints: bool = False
) -> Connection:
    """A writable connection, in WAL; makes the file with exactly ``mode`` where it is missing.

    ``durable`` False: nothing is fsynced. ``checkpoints`` is for the apply connection alone: a checkpoint by
    another one changes `data_version` and would look like a foreign write.
    """
    _create_file(path, mode)
    connection = _open(path, apsw.SQLITE_OPEN_READWRITE)
    try:
        with forking.opening:
            found = connection.pragma("journal_mode", "wal")
        if found != "wal":
            raise apsw.CantOpenError(f"{path} cannot be used in WAL mode: its journal mode stays {found!r}")
        # The log is what is fsynced; NORMAL syncs the WAL at checkpoints only, so that pages are never mixed.
        connection.pragma("synchronous", 1 if durable else 0)
        # An unlinked -wal would marry readers to a dead file.
        persist = ctypes.c_int(1)
        connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(persist))
        connection.wal_autocheckpoint(_CHECKPOINT_PAGES if checkpoints else 0)
    except BaseException:
        connection.close()
        raise
    return _set_up(connection, registrars)


def _open(path: Path, flags: int) -> Connection:
    forking.check()
    forking.remember(path)
    with forking.opening:
        connection = Connection(str(path), flags=flags, vfs=vfs.NAME, statementcachesize=_STATEMENT_CACHE)
        try:
            connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            # The first look into a file maps its -shm, under the mutex under which files are opened and closed.
            connection.pragma("schema_version")
        except BaseException:
            connection.close()
            raise
        return connection


def _set_up(connection: Connection, registrars: Iterable[Registrar]) -> Connection:
    try:
        registrars = tuple(registrars)
        # Refuses what can damage the file by plain SQL: writable_schema, shadow tables, sqlite_dbpage.
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 1)
        connection.registry, connection.counters = register(connection, registrars)
        connection.classified = _shared_classifications.setdefault(registrars, {})
    except BaseException:
        connection.close()
        raise
    return connection


def _create_file(path: Path, mode: int) -> None:
    # SQLite gives -wal and -shm the mode of the file they belong to, so making this one right is enough. An existing
    # file is never opened here: closing any descriptor of it would drop SQLite's POSIX locks in this process.
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, stat.S_IMODE(mode))
        try:
            os.fchmod(descriptor, stat.S_IMODE(mode))
        finally:
            os.close(descriptor)
