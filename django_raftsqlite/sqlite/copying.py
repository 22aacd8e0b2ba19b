"""Consistent copies of the database file: how one is made while others write, and how one is read."""

from __future__ import annotations

import os
import shutil
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from . import forking
from .connections import open_reader
from .tables import load_state
from .wal import sync_folder

PAGES_AT_ONCE = 512
"""Copied between two looks at whether to go on; the interpreter is free meanwhile."""
SYNC_BYTES = 4 * 1024 * 1024
"""Written between two fsyncs, so that no other fsync of the disk waits for all of it at the end."""
LONGEST_PAUSE = 0.1
SPARE_BYTES = 32 * 1024 * 1024
"""Space on the disk that copies leave to others."""


class NoSpace(Exception):
    """The disk has not enough space for a copy. The text says how much is missing."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What two databases must have in common for one to take the other's pages."""

    page_size: int
    encoding: str


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds: the state after the log entry ``index`` of ``term``; ``size`` is in bytes."""

    index: int
    term: int
    size: int
    layout: Layout


def layout_of(connection: apsw.Connection) -> Layout:
    """The layout of a connection's database."""
    page_size: Any = connection.pragma("page_size")
    encoding: Any = connection.pragma("encoding")
    return Layout(page_size, encoding)


def need_space(folder: Path, size: int) -> None:
    """Raise NoSpace unless ``size`` bytes fit on the disk of ``folder``, and something is left."""
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise NoSpace(
            f"{(size + SPARE_BYTES) >> 20} MiB are needed on the disk of {folder}, {free >> 20} MiB are free"
        )


def copy_database(source: Path, target: Path, mode: int, go_on: Callable[[], object]) -> Copied:
    """Copy a database that is in use; whoever writes to it goes on. ``target`` must not exist.

    One read transaction is held meanwhile, else the copy would begin anew with every commit: so it is made as fast as
    the disk lets it, since the WAL can't begin anew under it. ``go_on`` is called again and again, and may raise to
    end it. Raises NoSpace, OSError, apsw.Error; then the target is gone.
    """
    reader = open_reader(source, ())
    try:
        reader.execute("BEGIN")
        pages: Any = reader.pragma("page_count")
        page_size = layout_of(reader).page_size
        need_space(target.parent, pages * page_size)
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            _copy(reader, target, descriptor, SYNC_BYTES // page_size, go_on)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    finally:
        reader.close(True)
    return inspect_copy(target)


def _copy(
    reader: apsw.Connection, target: Path, descriptor: int, sync_pages: int, go_on: Callable[[], object]
) -> None:
    with forking.opening:
        writer = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        # A copy that a crash leaves half made is thrown away.
        writer.pragma("journal_mode", "off")
        writer.pragma("synchronous", 0)
        synced = None
        with writer.backup("main", reader, "main") as backup:
            while not backup.done:
                go_on()
                backup.step(PAGES_AT_ONCE)
                synced = backup.remaining if synced is None else synced
                if synced - backup.remaining >= sync_pages:
                    synced = backup.remaining
                    pace(lambda: os.fdatasync(descriptor))
    finally:
        with forking.opening:
            writer.close(True)


def pace(sync: Callable[[], object]) -> None:
    """Sync, and leave the disk to others for as long as that took."""
    began = time.monotonic()
    sync()
    time.sleep(min(time.monotonic() - began, LONGEST_PAUSE))


def put_in_place(copy: Path, path: Path, mode: int, go_on: Callable[[], object]) -> Callable[[], None]:
    """Write a copy down beside ``path``, on the disk; what is returned puts that in the place of ``path`` and its
    WAL.

    That must be called when no connection of this process is on the file at ``path``. The copy itself stays: whoever
    closes a descriptor of it drops no lock of SQLite's on the new file. Raises NoSpace and OSError.
    """
    size = copy.stat().st_size
    need_space(path.parent, size)
    made = path.with_name(f"{path.name}-sound")
    made.unlink(missing_ok=True)
    source = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
        try:
            os.fchmod(target, mode)
            done = 0
            while done < size:
                go_on()
                written = os.sendfile(target, source, done, min(SYNC_BYTES, size - done))
                if not written:
                    raise OSError(f"{copy} became shorter")
                done += written
                pace(lambda: os.fdatasync(target))
            os.fsync(target)
        finally:
            os.close(target)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    finally:
        os.close(source)

    def put() -> None:
        # The WAL first: SQLite would play the old one into the new file.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        made.replace(path)
        sync_folder(path.parent)

    return put


def open_copy(path: Path) -> apsw.Connection:
    """A connection to a copy, which nobody writes to. Raises apsw.Error."""
    # Immutable: else SQLite would make a WAL beside it, since the copied header says so.
    with forking.opening:
        return apsw.Connection(
            f"file:{urllib.parse.quote(str(path))}?immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )


def inspect_copy(path: Path) -> Copied:
    """What a copy holds. Raises apsw.Error when it is none."""
    connection = open_copy(path)
    try:
        state = load_state(connection)
        return Copied(state.applied_index, state.applied_term, path.stat().st_size, layout_of(connection))
    finally:
        with forking.opening:
            connection.close(True)
