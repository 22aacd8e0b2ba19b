"""Schema changes are Django's own: DDL is replicated as it is written."""

from __future__ import annotations

from django.db.backends.sqlite3.schema import DatabaseSchemaEditor as SQLiteDatabaseSchemaEditor


class DatabaseSchemaEditor(SQLiteDatabaseSchemaEditor):
    """Django's SQLite schema editor.

    It remakes tables with ``PRAGMA foreign_keys = OFF``, which the driver sends along with the transaction, so that
    the replay does not fire the foreign keys' actions either.
    """
