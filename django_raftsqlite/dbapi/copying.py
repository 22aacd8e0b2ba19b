"""Copies of the database: as SQL text, and into another connection."""

from __future__ import annotations

import contextlib
import io
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import apsw.shell

from ..exceptions import NotSupportedError
from ..sqlite.tables import PREFIX
from .script_text import statements


def dump(source: apsw.Connection) -> Iterator[str]:
    """The statements of `.dump` for all tables but the node's own, taken at once, so that they are one state."""
    written = io.StringIO()
    shell = apsw.shell.Shell(stdout=written, stderr=io.StringIO(), db=source)
    shell.command_dump([])  # type: ignore[no-untyped-call]
    for statement in statements(written.getvalue()):
        text = _LEADING_COMMENTS.sub("", statement)
        if not _LEFT_OUT.match(text):
            yield text


_LEADING_COMMENTS = re.compile(r"\A(?:--[^\n]*\n\s*)+")
# Our own tables, and what the shell writes so that its output can be loaded over what is there.
_LEFT_OUT = re.compile(rf"PRAGMA page_size|DROP TABLE IF EXISTS|(?:CREATE TABLE|INSERT INTO) [\"\[`]?{PREFIX}")


def backup(source: apsw.Connection, target: object, *, pages: int, progress: Any, name: str, sleep: float) -> None:
    """Copy ``source``, in one state, with SQLite's backup API; parameters as of sqlite3's ``backup``."""
    if isinstance(target, apsw.Connection):
        _copy(source, name, target)
        return
    if not isinstance(target, sqlite3.Connection):
        raise NotSupportedError(f"backup() cannot write to {type(target).__name__}")
    # The two SQLite libraries of this process must never have one file open together, so: a file in between.
    with tempfile.TemporaryDirectory(prefix="raftsqlite-backup-") as folder:
        between = str(Path(folder) / "copy.db")
        with contextlib.closing(apsw.Connection(between)) as copy:
            _copy(source, name, copy)
            copy.pragma("journal_mode", "delete")
        with contextlib.closing(sqlite3.connect(between)) as reopened:
            reopened.backup(target, pages=pages, progress=progress, sleep=sleep)


def _copy(source: apsw.Connection, name: str, target: apsw.Connection) -> None:
    # Under a read transaction: a commit in between would make SQLite begin again.
    own = not source.in_transaction
    if own:
        source.execute("BEGIN")
    try:
        source.execute("SELECT 1 FROM sqlite_schema").fetchall()
        with target.backup("main", source, name) as copy:
            while not copy.done:
                copy.step(-1)
    finally:
        if own:
            source.execute("ROLLBACK")
