"""Introspection that does not see this backend's own tables."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.introspection import TableInfo
from django.db.backends.sqlite3.introspection import DatabaseIntrospection as SQLiteDatabaseIntrospection

OWN_TABLES = "_raftsqlite_"
"""The prefix of the tables that hold the state machine's own state."""


class DatabaseIntrospection(SQLiteDatabaseIntrospection):
    """Hides our tables from ``inspectdb``, ``flush`` and everything else that lists tables."""

    def get_table_list(self, cursor: Any) -> list[TableInfo]:
        return [table for table in super().get_table_list(cursor) if not table.name.startswith(OWN_TABLES)]
