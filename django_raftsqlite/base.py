"""The database wrapper: Django's SQLite backend on our driver."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import chain
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import FORMAT_QMARK_REGEX
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteDatabaseWrapper
from django.db.utils import DatabaseError
from django.utils.asyncio import async_unsafe
from django.utils.dateparse import parse_date, parse_datetime, parse_time
from django.utils.functional import cached_property

from . import dbapi
from .client import DatabaseClient
from .configuration import Configuration, configure
from .consistency import AliasUsage
from .creation import DatabaseCreation
from .dbapi.types import text_converter
from .environment import merge_environment
from .errors import ErrorWrapper
from .features import DatabaseFeatures
from .introspection import DatabaseIntrospection
from .operations import DatabaseOperations
from .schema import DatabaseSchemaEditor
from .validation import DatabaseValidation

Database = dbapi

# Django's parsers, which take a little more than ISO 8601; the tables are the driver's own.
for _declared, _parse in (
    ("date", parse_date),
    ("time", parse_time),
    ("datetime", parse_datetime),
    ("timestamp", parse_datetime),
):
    dbapi.register_converter(_declared, text_converter(_parse))


class DatabaseWrapper(SQLiteDatabaseWrapper):
    """One thread's connection to the node that this machine runs for the alias.

    The vendor stays ``"sqlite"``: expressions, lookups and third-party packages dispatch on it.
    """

    display_name = "SQLite (Raft)"

    Database = dbapi
    SchemaEditorClass = DatabaseSchemaEditor
    client_class = DatabaseClient  # type: ignore[assignment]  # the stubs want a subclass of sqlite3's
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures
    introspection_class = DatabaseIntrospection
    ops_class = DatabaseOperations
    validation_class = DatabaseValidation

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        # A fault is raised when the alias is used or checked: a command that does neither should run.
        with contextlib.suppress(ImproperlyConfigured):
            merge_environment(alias, settings_dict)
        super().__init__(settings_dict, alias)

    @cached_property
    def wrap_database_errors(self) -> ErrorWrapper:
        return ErrorWrapper(self)

    def get_connection_params(self) -> dict[str, Any]:
        return {"configuration": configure(self.alias, self.settings_dict)}

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> dbapi.Connection:
        configuration: Configuration = conn_params["configuration"]
        self.transaction_mode = configuration.transaction_mode
        usage = AliasUsage(self.alias, configuration.reads, configuration.node)
        connection = dbapi.connect(
            configuration.node,
            timeout=configuration.node.timeout,
            reads=usage.freshness,
            committed=usage.committed,
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            for command in configuration.init_commands:
                connection.execute(command)
        except BaseException:
            connection.close()
            raise
        _connected.add(self)
        return connection

    def create_cursor(self, name: str | None = None) -> CursorWrapper:  # noqa: ARG002 - Django's signature
        cursor: CursorWrapper = self.connection.cursor(factory=CursorWrapper)
        return cursor

    def _commit(self) -> None:
        try:
            super()._commit()  # type: ignore[misc]  # the stubs lack it
        except DatabaseError:
            raise
        except BaseException:
            # Interrupted. atomic() rolls back after a DatabaseError only, and the next commit would run these hooks.
            self.run_on_commit = []
            raise

    @async_unsafe
    def close(self) -> None:
        self.validate_thread_sharing()
        # Not the parent's: its close() keeps databases in memory open, and there are none here.
        BaseDatabaseWrapper.close(self)

    # atomic() hides errors of ROLLBACK TO and of the RELEASE after it, and then ends the outer block by a rollback as
    # quietly as by a COMMIT. Of a transaction that is lost the next statement tells instead, or COMMIT.

    def _savepoint_rollback(self, sid: str) -> None:
        with self._told_later():
            super()._savepoint_rollback(sid)  # type: ignore[misc]

    def _savepoint_commit(self, sid: str) -> None:
        with self._told_later():
            super()._savepoint_commit(sid)  # type: ignore[misc]

    @contextlib.contextmanager
    def _told_later(self) -> Iterator[None]:
        try:
            yield
        except Error:
            if not self.connection.lost:
                raise

    def is_usable(self) -> bool:
        """A connection outlives every error of the group; only a closed one, or a forked parent's, is of no use."""
        return self.connection.unusable is None

    def is_in_memory_db(self) -> bool:
        return False


_connected: weakref.WeakSet[DatabaseWrapper] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked child connects anew: its parent's connections belong to threads and sockets that it does not have.

    One inside a block is left to fail, since the block's transaction is the parent's.
    """
    for wrapper in list(_connected):
        if not wrapper.in_atomic_block:
            wrapper.connection = None
    _connected.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@lru_cache(maxsize=2048)
def _qmark(query: str) -> str:
    """The "format" style as the "qmark" style; cached, since the ORM makes the same texts again and again."""
    return FORMAT_QMARK_REGEX.sub("?", query).replace("%%", "%")


def _named(query: str, names: Iterable[str]) -> str:
    """The "pyformat" style as the "named" style."""
    return query % {name: f":{name}" for name in names}


class CursorWrapper(dbapi.Cursor):
    """Django speaks the "format" and "pyformat" styles, the driver "qmark" and "named".

    A literal ``%s`` in a query with parameters is written ``%%s``.
    """

    def execute(self, query: str, params: Any = None) -> CursorWrapper:
        if params is None:
            super().execute(query)
        elif isinstance(params, Mapping):
            super().execute(_named(query, params), params)
        else:
            super().execute(_qmark(query), params)
        return self

    def executemany(self, query: str, param_list: Iterable[Any]) -> CursorWrapper:
        # A generator may be given: the first parameters are looked at and put back.
        remaining = iter(param_list)
        first = next(remaining, None)
        if first is None:
            super().executemany(_qmark(query), ())
            return self
        convert: Callable[[str], str] = partial(_named, names=list(first)) if isinstance(first, Mapping) else _qmark
        super().executemany(convert(query), chain((first,), remaining))
        return self
