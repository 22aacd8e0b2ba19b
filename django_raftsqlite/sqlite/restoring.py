"""The content of a file in the place of the database's: sent in parts through the log, taken over by one entry.

The parts are kept like those of a large transaction, so that the file is on the disks of a majority before the item
that names them all is sent. Whoever applies that item puts the file together, gives it the state that the entry
leaves behind, and takes all of it over in one SQLite transaction: a restore is applied once and whole or not at all,
wherever a node dies. It begins a new lineage, so that no transaction that was based on a former state applies to it.
Who may send requests, and what became of those that were sent, stays known: a write that is asked for again is not
executed again on the restored content.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgpack

from . import forking
from .connections import BUSY_TIMEOUT_MS, Connection
from .copying import Layout, layout_of
from .entry import ItemKind, RequestId
from .errors import MalformedEntry
from .functions import Registrar, register
from .parts import PART_BYTES, Parted
from .tables import PREFIX, create, forget_own_statistics

_KEPT = ("_raftsqlite_origin", "_raftsqlite_outcome", "_raftsqlite_meta", "_raftsqlite_protocol")
"""Those of our tables that stay what they were before the restore."""


class UnfitFile(Exception):
    """A file cannot take the place of the database. The text says why."""


class Restore(NamedTuple):
    """The item that names all parts of a file, as :class:`~.parts.Parted` does, and the ``lineage`` (16 bytes) that
    begins with it."""

    parted: Parted
    lineage: bytes

    @property
    def request(self) -> RequestId:
        """The request's id."""
        return self.parted.request

    @property
    def low_water(self) -> int:
        """See :class:`~.entry.Transaction`."""
        return self.parted.low_water


def encode_restore(restore: Restore) -> bytes:
    """Encode for the log."""
    request, *rest = restore.parted
    packed: bytes = msgpack.packb((*request, *rest, restore.lineage), use_bin_type=True)
    return packed


def decode_restore(data: bytes) -> Restore:
    """The inverse of :func:`encode_restore`; raises MalformedEntry."""
    try:
        origin, sequence, low_water, size, pieces, sha256, lineage = msgpack.unpackb(data)
        if [type(each) for each in (origin, sha256, lineage)] != [bytes] * 3 or (len(origin), len(lineage)) != (
            16,
            16,
        ):
            raise ValueError("an origin and a lineage have 16 bytes")
        if any(type(each) is not int or not 0 <= each < 2**63 for each in (sequence, low_water, size, pieces)):
            raise ValueError("a number is out of range")
        return Restore(Parted(RequestId(origin, sequence), low_water, size, pieces, sha256), lineage)
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise MalformedEntry(f"a restore cannot be decoded: {error}") from error


class FilePieces:
    """A file in parts, as their author sends them: read when they are asked for. ``told`` hears how many bytes were.

    Raises OSError; ValueError where the file is not the one that was hashed.
    """

    def __init__(self, path: Path, size: int, told: Callable[[int], object]) -> None:
        self._path = path
        self._size = size
        self._told = told

    def __len__(self) -> int:
        return max(-(-self._size // PART_BYTES), 1)

    def __getitem__(self, number: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(number * PART_BYTES)
            data = file.read(PART_BYTES)
        self._told(min(number * PART_BYTES, self._size))
        if len(data) != min(self._size - number * PART_BYTES, PART_BYTES):
            raise ValueError(f"{self._path} became shorter while it was read")
        return data

    def __setitem__(self, number: int, data: bytes) -> None:
        """A part that was sent need not be forgotten: it is not in memory."""


@dataclass(slots=True)
class SentFile:
    """A file as its author sends it; what :class:`~.parts.Encoded` is to a transaction."""

    pieces: FilePieces
    size: int
    sha256: bytes
    lineage: bytes

    def named(self, request: RequestId, low_water: int) -> tuple[ItemKind, bytes]:
        """The item that names all parts."""
        parted = Parted(request, low_water, self.size, len(self.pieces), self.sha256)
        return ItemKind.RESTORE, encode_restore(Restore(parted, self.lineage))


def send_file(path: Path, lineage: bytes, told: Callable[[int], object] = lambda _: None) -> SentFile:
    """Make a file, which must not change meanwhile, ready to be sent. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        size = file.tell()
    return SentFile(FilePieces(path, size, told), size, digest.digest(), lineage)


# The author's side --------------------------------------------------------------------------------------------


def prepare(source: Path, target: Path, layout: Layout, registrars: Iterable[Registrar], mode: int = 0o600) -> None:
    """Make ``target``, a file that can take the place of a database with ``layout``, from any SQLite database.

    Its content is checked (PRAGMA integrity_check); what the package knew about itself there is left out. Who has
    ``source`` open, and its -wal, do not matter. ``target`` must not exist. Raises UnfitFile, OSError, apsw.Error.
    """
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
    os.close(descriptor)
    try:
        with _opened(source, apsw.SQLITE_OPEN_READONLY) as reader, _opened(target) as writer:
            try:
                with writer.backup("main", reader, "main") as backup:
                    backup.step(-1)
            except (apsw.NotADBError, apsw.CorruptError) as error:
                raise UnfitFile(f"{source} is not a sound SQLite database: {error}") from error
        with _opened(target) as writer:
            register(writer, tuple(registrars))
            writer.pragma("journal_mode", "delete")
            writer.pragma("synchronous", 0)
            try:
                _check_content(writer, source)
                _strip(writer)
                found = layout_of(writer)
                if found.encoding != layout.encoding:
                    raise UnfitFile(
                        f"{source} is in {found.encoding} and the database in {layout.encoding}, which SQLite cannot "
                        "convert: write it anew from a dump (sqlite3 OLD .dump | sqlite3 NEW)"
                    )
                if found.page_size != layout.page_size:
                    writer.pragma("page_size", layout.page_size)
                    writer.execute("VACUUM")
            except (apsw.NotADBError, apsw.CorruptError) as error:
                raise UnfitFile(f"{source} is not a sound SQLite database: {error}") from error
        sync_file(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Have a file on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_content(connection: Connection, source: Path) -> None:
    rows: Any = connection.execute("PRAGMA integrity_check(10)").fetchall()
    if rows != [("ok",)]:
        raise UnfitFile(f"{source} is damaged: {'; '.join(str(row[0]) for row in rows)}")


def _strip(connection: apsw.Connection) -> None:
    names: Any = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, ?) = ?", (len(PREFIX), PREFIX)
    ).fetchall()
    for (name,) in names:
        connection.execute(f'DROP TABLE "{name}"')


# The side of apply --------------------------------------------------------------------------------------------


def put_together(pieces: Iterator[bytes], target: Path, mode: int) -> None:
    """Write a file from its parts; whoever reads it need not find it after a crash. Raises OSError, what the parts
    raise; then the target is gone."""
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def unfit(path: Path, layout: Layout) -> str | None:
    """Why a file whose bytes are those that its author sent cannot be taken over: the same on all nodes."""
    try:
        with _opened(path, apsw.SQLITE_OPEN_READONLY) as connection:
            found = layout_of(connection)
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    except (apsw.NotADBError, apsw.CorruptError) as error:
        return f"what was sent is no SQLite database: {error}"
    return None if found == layout else f"what was sent has {found}, and the database {layout}"


def give_state(path: Path, former: apsw.Connection, save: Callable[[apsw.Connection], object]) -> None:
    """Give a file what the package is to know about itself there: what stays of ``former``, and what ``save`` writes.

    Raises apsw.Error.
    """
    with _opened(path) as connection:
        connection.pragma("journal_mode", "off")
        connection.pragma("synchronous", 0)
        _strip(connection)
        forget_own_statistics(connection)
        create(connection)
        with connection:
            for table in _KEPT:
                rows: Any = former.execute(f"SELECT * FROM {table}")
                marks = ", ".join("?" * len(connection.execute(f"PRAGMA table_info({table})").fetchall()))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            save(connection)


class _opened:
    """A connection to a file that no node uses, closed at the end."""

    def __init__(self, path: Path, flags: int = apsw.SQLITE_OPEN_READWRITE) -> None:
        with forking.opening:
            self._connection = Connection(str(path), flags=flags)
            self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)

    def __enter__(self) -> Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
