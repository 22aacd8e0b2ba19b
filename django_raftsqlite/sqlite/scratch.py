"""Scratch: where an interactive transaction runs before it is replicated. It can never commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import apsw

from . import pragmas
from .connections import Connection, open_writer
from .entry import Base, Result, Statement
from .errors import NodeFault, StatementError, convert_error
from .execution import run
from .functions import Registrar
from .tables import read_base
from .text import DDL, traits

_REFUSED_ON_SCRATCH = frozenset({"BEGIN", "COMMIT", "END", "VACUUM", "ATTACH", "DETACH"})
_ON_TOP = "_raftsqlite_on_top"
_BEGIN_TIMEOUT_MS = 2000  # apply ends its own transaction first; this covers another process's last moments


class Scratch:
    """The second writable connection of a node.

    Its commit hook refuses, so nothing done here can reach the file or the apply connection's plans, cursors or
    counters. Whoever uses it rolls it back before the apply connection begins: it holds SQLite's write lock.

    Within one SQLite transaction several of ours may lie on top of each other: :meth:`put_on_top` begins the next
    one, :meth:`keep` lets it stay, :meth:`undo` takes it away.

    One thread at a time, any thread in turn; :meth:`interrupt` from any thread at any time.
    """

    def __init__(self, path: Path, registrars: Iterable[Registrar], durable: bool = True) -> None:
        self._path = path
        self._registrars = tuple(registrars)
        self._durable = durable
        self.open()

    def open(self) -> None:
        """Open the file that is there now; after :meth:`close`. Raises apsw.Error."""
        self._connection: Connection = open_writer(self._path, self._registrars, durable=self._durable)
        self._connection.set_busy_timeout(_BEGIN_TIMEOUT_MS)
        self._connection.set_commit_hook(lambda: True)
        self._changed_schema = False
        # The state pragmas as they are now: to set one expires every prepared statement. Missing: not known.
        self._current: dict[str, int] = {}
        self._on_top = False
        self.base: Base | None = None

    @property
    def changed_schema(self) -> bool:
        """Whether the schema was changed since :meth:`begin`."""
        return self._changed_schema

    @property
    def in_transaction(self) -> bool:
        """False before :meth:`begin`, after :meth:`rollback`, and when SQLite itself ended the transaction."""
        return self._connection.in_transaction

    def begin(self, state: Mapping[str, int]) -> Base:
        """Open a transaction on the newest state and return that state's identity.

        ``state`` are the state pragmas that differ from their defaults. Raises NodeFault: with ``retry`` when
        the write lock was not to be had.
        """
        connection = self._connection
        wanted = pragmas.STATE | dict(state)
        try:
            # foreign_keys is ignored inside a transaction, defer_foreign_keys is forgotten outside.
            for name, value in wanted.items():
                if name != "defer_foreign_keys":
                    self._set(name, value)
            connection.execute("BEGIN IMMEDIATE")
            self._set("defer_foreign_keys", wanted["defer_foreign_keys"])
            connection.counters.restart()
            self.base = read_base(connection)
            return self.base
        except apsw.Error as error:
            self.rollback()
            busy = isinstance(error, (apsw.BusyError, apsw.LockedError, apsw.InterruptError))
            raise NodeFault(f"no transaction on scratch: {error}", retry=busy) from error

    def put_on_top(self, state: Mapping[str, int]) -> None:
        """Begin the next transaction on top of what is here, with its state pragmas but for ``foreign_keys``."""
        connection = self._connection
        for name, value in (pragmas.STATE | dict(state)).items():
            if name != "foreign_keys":
                self._set(name, value)
        connection.counters.restart()
        connection.execute(f"SAVEPOINT {_ON_TOP}")
        self._on_top = True

    def keep(self) -> None:
        """The transaction is complete, and stays below those that follow."""
        if self._on_top:
            self._connection.execute(f"RELEASE {_ON_TOP}")
            self._on_top = False

    def undo(self) -> None:
        """Take the last transaction away, and nothing below it where that can be done. Never raises."""
        if self._on_top and self._connection.in_transaction and not self._changed_schema:
            with suppress(apsw.Error):
                self._connection.execute(f"ROLLBACK TO {_ON_TOP}")
                self.keep()
                return
        self.rollback()

    def execute(self, statement: Statement) -> Result:
        """Run a statement to its end. Raises StatementError; look at :attr:`in_transaction` afterwards."""
        verb = traits(statement.sql).verb
        if verb in _REFUSED_ON_SCRATCH:
            raise StatementError(apsw.SQLITE_ERROR, f"{verb} cannot be run within a transaction")
        if not self._connection.in_transaction:
            # By itself, a statement would be a transaction of its own, and its commit refused.
            raise StatementError(apsw.SQLITE_ERROR, "there is no transaction on scratch")
        if verb in DDL:
            self._changed_schema = True
        try:
            return run(self._connection, statement)
        except Exception as error:
            raise convert_error(error) from error

    def deferred_violations(self) -> int:
        """0 exactly when no foreign key is left open (SQLITE_DBSTATUS_DEFERRED_FKS)."""
        return self._connection.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0]

    def rollback(self) -> None:
        """End the transaction, if there is one, and forget what it taught the planner. Never raises."""
        connection = self._connection
        self._on_top = False
        with suppress(apsw.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if self._current.get("defer_foreign_keys") != 0:
            # Switched off by the end of the transaction, but not for the statements prepared while it was on.
            self._current.pop("defer_foreign_keys", None)
        if self._changed_schema:
            # ROLLBACK undoes ANALYZE in the file, not in this connection's memory.
            with suppress(apsw.Error):
                connection.execute("PRAGMA writable_schema = RESET")
            self._current.clear()  # it may have been a state pragma
            self._changed_schema = False

    def _set(self, name: str, value: int) -> None:
        if self._current.get(name) != value:
            self._connection.execute(f"PRAGMA {name} = {value:d}")
            self._current[name] = value

    def interrupt(self) -> None:
        """Make the statement that is running fail, from any thread."""
        with suppress(apsw.ConnectionClosedError):
            self._connection.interrupt()

    def close(self) -> None:
        """Roll back and close. Idempotent."""
        with suppress(apsw.ConnectionClosedError):
            self.rollback()
            self._connection.close(True)
