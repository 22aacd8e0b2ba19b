"""PEP 249's Connection: decides for each statement what is read here and what is written through the node."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import apsw

from ..exceptions import NotSupportedError, OperationalError, ProgrammingError
from ..node.api import Node
from ..sqlite import forking
from ..sqlite.functions import FunctionRegistry
from . import copying
from .cursor import Cursor
from .executor import Executor
from .freshness import Freshness
from .readers import Readers

_Cursor = TypeVar("_Cursor", bound=Cursor)
_ISOLATION_LEVELS = ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE")

_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child: the parent's SQLite handles and its node are not to be touched, not even to close them."""
    for connection in list(_connections):
        connection._leave_to_parent()
    _connections.clear()


os.register_at_fork(after_in_child=_after_fork)


class Connection:
    """A connection to the database of one node.

    Threads may share it (``lock`` is held while a statement runs), but have one transaction between them.
    ``unusable`` is the error that every use raises once it is closed or was inherited by a fork. Invariants:
    a connection that is closed or collected gives its write lease back; in a forked child it touches nothing.

    ``timeout`` (seconds) bounds each wait for the group. ``reads`` is asked what is demanded of each autocommit read
    and of each transaction's snapshot; it is also called before a read in a transaction that has written, which sees
    the newest state anyway. ``transaction_mode`` is that of a transaction that is begun implicitly (see
    ``isolation_level``). ``committed`` is called whenever something was, or may have been, committed: by the thread
    that did it, under the lock; it must not raise.
    """

    def __init__(
        self,
        node: Node,
        *,
        timeout: float,
        reads: Callable[[], Freshness] | None = None,
        transaction_mode: str | None = None,
        isolation_level: str | None = None,
        committed: Callable[[], None] | None = None,
    ) -> None:
        self.row_factory: Callable[[Cursor, tuple[Any, ...]], Any] | None = None
        self._readers = Readers(node.readers)
        self._executor = Executor(
            node,
            self._readers,
            timeout=timeout,
            reads=reads,
            transaction_mode=transaction_mode,
            committed=committed,
        )
        self.lock = self._readers.lock
        self.unusable: Exception | None = None  # from here on; what was made in part closes nothing
        self.run = self._executor.run
        self.run_many = self._executor.run_many
        self.isolation_level = isolation_level
        _connections.add(self)

    # ---- PEP 249

    def cursor(self, factory: Callable[[Connection], _Cursor] | None = None) -> Any:
        """A new cursor: ``factory(connection)``, by default :class:`Cursor`."""
        self.check()
        return Cursor(self) if factory is None else factory(self)

    def commit(self) -> None:
        """Commit the open transaction, if there is one."""
        self.check()
        with self.lock:
            if self._executor.transaction is not None:
                self._executor.finish(self._executor.transaction.commit)

    def rollback(self) -> None:
        """Roll the open transaction back, if there is one. Never fails on a usable connection."""
        self.check()
        with self.lock:
            if self._executor.transaction is not None:
                self._executor.finish(self._executor.transaction.rollback)

    def close(self) -> None:
        """Roll back, give the reader and the write lease back. The connection cannot be used again."""
        if self.unusable is not None:
            return
        with self.lock:
            self.rollback()
            self.unusable = ProgrammingError("Cannot operate on a closed database.")
            self._readers.close()
        _connections.discard(self)

    def __del__(self) -> None:
        if getattr(self, "unusable", self) is None:
            if forking.inherited():
                self._leave_to_parent()
            else:
                self.close()

    def _leave_to_parent(self) -> None:
        """Close nothing, not even when this is collected, which would close the handles."""
        # Not an InterfaceError: Django's atomic() closes the connection after a DatabaseError at COMMIT only.
        self.unusable = OperationalError(
            "This connection was opened before the process forked; close it and open another one."
        )
        forking.keep_for_ever((self, self._readers.inherited()))

    def __enter__(self) -> Connection:
        self.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.rollback()
            return
        try:
            self.commit()
        except BaseException:
            self.rollback()
            raise

    # ---- sqlite3's additions

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        """Run one statement on a new cursor."""
        return Cursor(self).execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        """:meth:`Cursor.executemany` on a new cursor."""
        return Cursor(self).executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Cursor:
        """:meth:`Cursor.executescript` on a new cursor."""
        return Cursor(self).executescript(sql_script)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, also one that was lost and waits for its ROLLBACK."""
        return self._executor.transaction is not None

    @property
    def lost(self) -> bool:
        """Whether a transaction is open of which nothing is left: all but its ROLLBACK raises TransactionConflict."""
        transaction = self._executor.transaction
        return transaction is not None and transaction.lost is not None

    @property
    def timeout(self) -> float:
        """Seconds that each wait for the group may take."""
        return self._executor.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._executor.timeout = seconds

    @property
    def total_changes(self) -> int:
        """The sum of the rowcounts of this connection's writes, without what triggers and cascades changed."""
        return self._executor.total_changes

    @property
    def isolation_level(self) -> str | None:
        """None: autocommit. Else a transaction begins by itself before INSERT, UPDATE, DELETE and REPLACE.

        Setting None commits an open transaction, as on :mod:`sqlite3`.
        """
        return self._executor.isolation_level

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        self.check()
        if level is None:
            self.commit()
        elif level.upper() not in _ISOLATION_LEVELS:
            raise ValueError("isolation_level string must be '', 'DEFERRED', 'IMMEDIATE', or 'EXCLUSIVE'")
        self._executor.isolation_level = level

    @property
    def text_factory(self) -> type[str]:
        """Text comes as str; nothing else is supported."""
        return str

    @text_factory.setter
    def text_factory(self, factory: Any) -> None:
        if factory is not str:
            raise NotSupportedError("text_factory can only be str")

    def create_function(
        self, name: str, narg: int, func: Callable[..., Any] | None, /, *, deterministic: bool = False
    ) -> None:
        """A SQL function for the *reads* of this connection.

        A write that uses it raises NotSupportedError, since other nodes could not repeat it: register functions
        with ``OPTIONS["functions"]``, which is called on every connection of every node.
        """
        self._alter(
            name, lambda on: FunctionRegistry(on).create_function(name, narg, func, deterministic=deterministic)
        )

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Callable[[], Any] | None, /) -> None:
        """An aggregate for the *reads* of this connection; see :meth:`create_function`."""
        self._alter(name, lambda on: FunctionRegistry(on).create_aggregate(name, n_arg, aggregate_class))

    def create_window_function(self, name: str, num_params: int, aggregate_class: Any, /) -> None:
        """A window function for the *reads* of this connection; see :meth:`create_function`."""
        self._alter(name, lambda on: FunctionRegistry(on).create_window_function(name, num_params, aggregate_class))

    def create_collation(self, name: str, callback: Callable[[str, str], int] | None, /) -> None:
        """A collation for the *reads* of this connection; see :meth:`create_function`."""
        self._alter(name, lambda on: FunctionRegistry(on).create_collation(name, callback))

    def getlimit(self, category: int, /) -> int:
        """One of SQLite's limits (``SQLITE_LIMIT_*``) on this connection's readers."""
        self.check()
        with self.lock:
            return self._readers.current().connection.limit(category)

    def setlimit(self, category: int, limit: int, /) -> int:
        """Change a limit on this connection's readers; returns the old one. Other connections keep theirs."""
        self.check()
        with self.lock:
            before = self.getlimit(category)
            self._alter(None, lambda on: on.limit(category, limit))
            return before

    def set_trace_callback(self, callback: Callable[[str], object] | None, /) -> None:
        """Call ``callback(sql)`` before each statement of this connection; None ends it."""
        self.check()
        self._executor.trace = callback

    def interrupt(self) -> None:
        """Make a read that runs now, in another thread, fail. A write goes on: it may be committed already."""
        self.check()
        self._readers.interrupt()

    def iterdump(self) -> Iterator[str]:
        """The database as SQL statements, without the node's own tables."""
        self.check()
        with self.lock:
            return iter(list(copying.dump(self._readers.idle().connection)))

    def backup(
        self, target: Any, *, pages: int = -1, progress: Any = None, name: str = "main", sleep: float = 0.25
    ) -> None:
        """Copy the database, as it is at this moment on this node, into ``target``.

        ``target`` is an :class:`apsw.Connection` or a :class:`sqlite3.Connection`. Not one of ours: what is in a
        replicated database comes through its log.
        """
        self.check()
        if isinstance(target, Connection):
            raise NotSupportedError("a backup cannot be written into a replicated database; load it with `manage.py`")
        with self.lock:
            copying.backup(
                self._readers.idle().connection, target, pages=pages, progress=progress, name=name, sleep=sleep
            )

    # ---- for Cursor

    def check(self) -> None:
        """Raises ProgrammingError when closed, OperationalError in a process forked after it was opened."""
        if self.unusable is not None:
            raise type(self.unusable)(*self.unusable.args)

    def _alter(self, name: str | None, alteration: Callable[[apsw.Connection], object]) -> None:
        self.check()
        with self.lock:
            self._readers.alter(alteration)
            if name is not None:
                self._executor.local_functions |= {name.lower()}
