"""A pool of read-only connections: opening one with all functions costs as much as a get() of Django's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import apsw

from .connections import Connection, open_reader
from .functions import Registrar


class ReaderPool:
    """Read-only connections of one file, lent to one thread at a time.

    Thread-safe; a connection may be used by another thread than the one that opened it. At most
    ``maximum_idle`` wait unused, the most recently used first (its page cache is warm). Not for use after a fork:
    the child makes a pool of its own.
    """

    def __init__(self, path: Path, registrars: Iterable[Registrar], *, maximum_idle: int = 16) -> None:
        self._path = path
        self._registrars = tuple(registrars)
        self._maximum_idle = maximum_idle
        self._idle: deque[Connection] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def acquire(self) -> Connection:
        """A connection outside of any transaction. Raises apsw.CantOpenError when there is no file."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return open_reader(self._path, self._registrars)

    def release(self, connection: apsw.Connection, *, reuse: bool = True) -> None:
        """Give a connection back; it is closed when ``reuse`` is false or it has tables of its own."""
        if reuse and isinstance(connection, Connection) and not connection.private:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                # A cursor left half read keeps its snapshot, and so would the next borrower's statements.
                clean = connection.txn_state("main") == apsw.SQLITE_TXN_NONE
            except apsw.Error:
                clean = False
            if clean:
                with self._lock:
                    if not self._closed and len(self._idle) < self._maximum_idle:
                        self._idle.append(connection)
                        return
        connection.close(True)

    def close(self) -> None:
        """Close the idle ones now, and the lent ones when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.close()
