"""Whether something else than this node's apply connection has written to the file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .connections import Connection
from .errors import ForeignWrite
from .wal import begun_anew


class Watch:
    """What must not happen to the file, and is noticed before it is written to again.

    It remembers the file as its connection left it: :meth:`note` is to be called after anything that may have run a
    checkpoint, :meth:`reset` after another file was taken over. Belongs to the connection's thread.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self._path = path
        self._connection = connection
        self._wal = Path(connection.filename_wal)
        self._data_version = self._read_data_version()
        self._files = self._identify_files()

    def reset(self) -> None:
        """What is there now is right."""
        self.note()
        self._data_version = self._read_data_version()

    def note(self) -> None:
        """A checkpoint may have written to the file."""
        with suppress(OSError):  # the next check will tell
            self._files = self._identify_files()

    def looks_changed(self) -> bool:
        """Whether :meth:`check` may find something; cheap, and keeps nobody waiting. Raises ForeignWrite,
        apsw.Error.
        """
        self.check_files()
        return self._read_data_version() != self._data_version

    def check(self) -> None:
        """Look whether the file is still the one that this connection alone wrote to. Raises ForeignWrite and
        apsw.Error.

        Scratch must be rolled back.
        """
        self.check_files()
        self.check_before()

    def check_files(self) -> None:
        """Whether they are the same files, and nobody wrote to them beside SQLite. Raises ForeignWrite."""
        try:
            found = self._identify_files()
        except OSError as error:
            raise ForeignWrite(f"{error.filename} is gone") from error
        if found != self._files:
            same = [before[:3] == now[:3] for before, now in zip(self._files, found, strict=True)]
            if all(same):
                raise ForeignWrite(f"something else wrote to {self._path}")
            raise ForeignWrite(f"{self._path} or its -wal is another file than the one this node opened")

    def check_data_version(self) -> None:
        """Whether nobody committed through SQLite; within a transaction of this connection's, so that nothing can
        happen in between. Raises ForeignWrite.
        """
        # Own commits do not change it, nor do transactions of scratch, which are rolled back
        # (https://sqlite.org/pragma.html#pragma_data_version), but for a large one that was the first to write after
        # a complete checkpoint: it begins the WAL anew.
        found = self._read_data_version()
        if found != self._data_version:
            if not begun_anew(self._wal):
                raise ForeignWrite(f"something else wrote to {self._path}")
            self._data_version = found

    def check_before(self) -> None:
        """:meth:`check_data_version`, before what changes the WAL outside of our transactions."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self.check_data_version()
        finally:
            self._connection.execute("ROLLBACK")

    def _read_data_version(self) -> int:
        version: Any = self._connection.execute("PRAGMA data_version").fetchall()[0][0]
        return int(version)

    def _identify_files(self) -> tuple[tuple[int, ...], ...]:
        # By name, never opened: closing a descriptor would drop SQLite's locks in this process. Only checkpoints
        # write to the database itself, and they run on this connection; scratch may write to the WAL.
        names = self._connection.filename, self._connection.filename_wal
        database, wal = (os.stat(name) for name in names)  # noqa: PTH116
        return (
            (database.st_dev, database.st_ino, database.st_nlink, database.st_size, database.st_mtime_ns),
            (wal.st_dev, wal.st_ino, wal.st_nlink),
        )
