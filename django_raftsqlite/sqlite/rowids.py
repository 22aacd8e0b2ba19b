"""What happens when a table has used the largest rowid: two ways in which SQLite then leaves the common path.

With AUTOINCREMENT, the next insert fails with SQLITE_FULL, the code of a full disk. Without, SQLite picks a random
rowid from a generator that no entry can seed (https://sqlite.org/autoinc.html), so that every node would get another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apsw

from .entry import Parameters
from .text import tokens

_LARGEST = (1 << 63) - 1
LARGEST_BYTES = b"\x7f" + b"\xff" * 7
"""The largest integer as a changeset holds it."""


class Rowids:
    """What the apply connection knows of tables that are at their end. Same answers on every node."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._at_end: frozenset[str] | None = None

    def forget(self) -> None:
        """Look again: the schema changed, or a row may have got the largest rowid."""
        self._at_end = None

    def exhausted(self, sql: str) -> bool:
        """Whether a table with AUTOINCREMENT that ``sql`` may insert into has no rowid left."""
        try:
            rows: Any = self._connection.execute("SELECT name FROM sqlite_sequence WHERE seq = ?", (_LARGEST,))
            ended = {name.lower() for (name,) in rows}
        except apsw.SQLError:
            return False  # there is no such table before the first AUTOINCREMENT
        if not ended:
            return False
        if ended & _names(sql):
            return True
        triggers: Any = self._connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        return any(ended & _names(body) for (body,) in triggers)

    def unforeseeable(self, sql: str, parameters: Parameters, rowid: int) -> bool:
        """Whether the ``rowid`` that the INSERT ``sql`` has just given may have been picked at random.

        So it is where the table is at its end, and the rowid is neither in the text nor among the parameters.
        """
        if self._at_end is None:
            self._at_end = self._find()
        if not self._at_end or not self._at_end & _names(sql):
            return False
        values = parameters.values() if isinstance(parameters, Mapping) else parameters or ()
        return rowid not in values and str(rowid) not in sql

    def _find(self) -> frozenset[str]:
        rows: Any = self._connection.execute(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND NOT wr"
        ).fetchall()
        return frozenset(name.lower() for (name,) in rows if self._is_at_end(name))

    def _is_at_end(self, table: str) -> bool:
        quoted = table.replace('"', '""')
        rows = self._connection.execute(f'SELECT 1 FROM "{quoted}" WHERE _rowid_ = ?', (_LARGEST,)).fetchall()
        if not rows:
            return False
        rows = self._connection.execute(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ? AND sql LIKE '%AUTOINCREMENT%'", (table,)
        ).fetchall()
        return not rows


def _names(sql: str) -> set[str]:
    return {token.name.lower() for token in tokens(sql) if token.kind != "other"}
