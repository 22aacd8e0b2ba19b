"""SQL that differs from Django's SQLite backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.backends.sqlite3.operations import DatabaseOperations as SQLiteDatabaseOperations

from .sqlite.classify import FOR_UPDATE, FOR_UPDATE_NOWAIT


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

    def force_group_by(self) -> list[str]:
        # Only SQLite before 3.39 needs GROUP BY TRUE.
        return []
