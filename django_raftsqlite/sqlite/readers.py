"""A pool of read-only connections: opening one with all functions costs as much as a get() of Django's."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import apsw

from .connections import Connection, Snapshot, open_reader
from .functions import Registrar


class Borrower(Protocol):
    """Who borrows readers, and leaves SELECTs half read on them."""

    def free_snapshots(self, *, drain_before: float, end_before: float, far_above: bool) -> list[Snapshot]:
        """See :meth:`ReaderPool.free_snapshots`."""


class ReaderPool:
    """Read-only connections of one file, lent to one thread at a time.

    Thread-safe; a connection may be used by another thread than the one that opened it. At most
    ``maximum_idle`` wait unused, the most recently used first (its page cache is warm). Not for use after a fork:
    the child makes a pool of its own.
    """

    def __init__(
        self,
        path: Path,
        registrars: Iterable[Registrar],
        *,
        maximum_idle: int = 16,
        permit: Callable[[], int] = lambda: 0,
    ) -> None:
        """``permit`` raises where the file must not be read at present; else it gives the file's generation."""
        self.permit = permit
        self._path = path
        self._registrars = tuple(registrars)
        self._maximum_idle = maximum_idle
        self._idle: deque[Connection] = deque()
        self._lock = threading.Lock()
        self._closed = False
        # With a lock of its own: collection, which may happen under it, gives readers back.
        self._registry = threading.RLock()
        self._opened: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._borrowers: weakref.WeakSet[Borrower] = weakref.WeakSet()

    def acquire(self) -> Connection:
        """A connection outside of any transaction. Raises apsw.CantOpenError when there is no file, and what
        ``permit`` raises."""
        generation = self.permit()
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if connection.generation == generation:
                return connection
            connection.close(True)
        connection = open_reader(self._path, self._registrars)
        connection.generation = generation
        with self._registry:
            self._opened.add(connection)
        return connection

    def join(self, borrower: Borrower) -> None:
        """Let the pool ask the borrower to free old snapshots, for as long as it exists."""
        with self._registry:
            self._borrowers.add(borrower)

    def oldest_snapshot(self) -> Snapshot | None:
        """What is read since longest by this process; any thread."""
        with self._registry:
            return min((snapshot for each in self._opened if (snapshot := each.snapshot) is not None), default=None)

    def free_snapshots(self, *, drain_before: float, end_before: float, far_above: bool = False) -> list[Snapshot]:
        """Free the snapshots of SELECTs that are half read in autocommit; any thread, and waits for no other.

        Those begun before ``drain_before`` (`time.monotonic()`) are read to their end at their next fetch; those
        begun before ``end_before`` are ended, and returned: their next fetch fails. ``far_above``: so are those of
        transactions that have not written, whose next read fails.
        """
        with self._registry:
            borrowers = list(self._borrowers)
        return [
            snapshot
            for borrower in borrowers
            for snapshot in borrower.free_snapshots(
                drain_before=drain_before, end_before=end_before, far_above=far_above
            )
        ]

    def release(self, connection: apsw.Connection, *, reuse: bool = True) -> None:
        """Give a connection back; it is closed when ``reuse`` is false or it has tables of its own."""
        if isinstance(connection, Connection):
            connection.snapshot = None
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
