"""SQL that differs from Django's SQLite backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from django.db.backends.sqlite3.operations import DatabaseOperations as SQLiteDatabaseOperations

from .dbapi.types import adapt
from .sqlite.classify import FOR_UPDATE, FOR_UPDATE_NOWAIT
from .sqlite.entry import SQLiteValue


class DatabaseOperations(SQLiteDatabaseOperations):
    """Operations where a replicated SQLite differs, or this SQLite from the standard library's."""

    def for_update_sql(
        self,
        nowait: bool = False,
        skip_locked: bool = False,  # noqa: ARG002 - refused by the compiler, as features.py says
        of: Sequence[Any] = (),  # noqa: ARG002
        no_key: bool = False,  # noqa: ARG002
    ) -> str:
        """A comment by which the driver knows that the SELECT takes the write lease; SQLite has no such clause."""
        return FOR_UPDATE_NOWAIT if nowait else FOR_UPDATE

    def _quote_params_for_last_executed_query(self, params: Sequence[Any]) -> tuple[str, ...]:
        # Django asks SQLite's QUOTE(), with DEBUG on after every statement: here that would be one more read of the
        # transaction, and fail once the transaction is lost, hiding why.
        return tuple(_quoted(adapt(param)) for param in params)

    def force_group_by(self) -> list[str]:
        # Only SQLite before 3.39 needs GROUP BY TRUE.
        return []


def _quoted(value: SQLiteValue) -> str:
    """The value as SQLite's QUOTE() would show it (https://www.sqlite.org/lang_corefunc.html#quote)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # SQLite has no NaN: it is NULL
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bytes):
        return f"X'{value.hex().upper()}'"
    if isinstance(value, float) and math.isinf(value):
        return "9.0e+999" if value > 0 else "-9.0e+999"
    return repr(value)
