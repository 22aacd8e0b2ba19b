"""The read-only connections of one Connection: one for its next statement, and those of half-read SELECTs."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

import apsw

from ..sqlite.connections import Snapshot
from ..sqlite.readers import ReaderPool
from .reading import Reader, Stream


class Holder(Protocol):
    """A transaction that reads, by the snapshot of ``reader``."""

    @property
    def reader(self) -> Reader | None: ...

    def give_up(self, why: str) -> None:
        """Let go of the snapshot; what would be read in it from now on fails, and says why."""


class Readers:
    """Lends readers from the node's pool to one Connection, whose lock (``lock``) the caller holds.

    ``home`` is where the next statement runs. Invariant: an autocommit read never runs where a SELECT is half
    read (:meth:`idle`), because it would share that SELECT's old snapshot and miss what was written since.
    """

    def __init__(self, pool: ReaderPool) -> None:
        self.lock = threading.RLock()
        self.home: Reader | None = None
        self._pool = pool
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._holder: weakref.ref[Holder] | None = None
        self._alterations: list[Callable[[apsw.Connection], object]] = []
        pool.join(self)

    def current(self) -> Reader:
        """The reader for the next statement, busy or not."""
        if self.home is None:
            reader = Reader(self._pool.acquire())
            for alteration in self._alterations:
                alteration(reader.connection)
            reader.reusable = not self._alterations
            self.home = reader
        return self.home

    def serves(self, reader: Reader) -> bool:
        """Whether it is on the node's present file, which a resync replaces. Raises Unavailable while the node must
        not be read."""
        return reader.connection.generation == self._pool.permit()

    def idle(self) -> Reader:
        """A reader on which no SELECT is half read, so that it sees what was written last."""
        reader = self.current()
        if not self.serves(reader):
            outdated, reader = reader, self._another()
            if not outdated.open:
                self._release(outdated)
        if reader.open:
            if reader.private:
                self.drain()
            else:
                # The SELECTs that are half read keep it; the last of them gives it back.
                reader = self._another()
        return reader

    def _another(self) -> Reader:
        """A new home. Where none is to be had the old one stays: statements that read nothing, ROLLBACK TO one of
        them, must not fail."""
        old, self.home = self.home, None
        try:
            return self.current()
        except BaseException:
            self.home = old
            raise

    def began(self, stream: Stream) -> None:
        """A SELECT stays half read."""
        self._streams.add(stream)

    def finished(self, reader: Reader) -> None:
        """A half-read SELECT or a snapshot came to its end, or was closed."""
        if reader is not self.home and not reader.open:
            self._release(reader)

    def drain(self) -> None:
        """Read all half-read SELECTs to their end. Raises OperationalError where one has too many rows."""
        for stream in list(self._streams):
            stream.drain()

    def holds(self, transaction: Holder | None) -> None:
        """A transaction has opened a snapshot, or with None closed it."""
        self._holder = None if transaction is None else weakref.ref(transaction)

    def free_snapshots(self, *, drain_before: float, end_before: float, far_above: bool) -> list[Snapshot]:
        """See Borrower. Called by another thread, without the lock; where that is taken, a statement is at work."""
        if not self.lock.acquire(blocking=False):
            return []
        try:
            ended = self._end_selects(drain_before, end_before)
            return [*ended, *self._end_transaction(end_before)] if far_above else ended
        finally:
            self.lock.release()

    def _end_selects(self, drain_before: float, end_before: float) -> list[Snapshot]:
        # In a function of its own: its references end before the lock is given back, so that no stream that its
        # owner dropped meanwhile is collected, and closed, beside a statement of the owner's.
        ended = []
        for stream in list(self._streams):
            snapshot = stream.reader.connection.snapshot
            if snapshot is None or not stream.autocommit:
                continue
            if snapshot.since < end_before:
                stream.end(
                    f"the SELECT was ended because it was half read since {time.monotonic() - snapshot.since:.0f} s"
                    ' and kept the WAL from being reset, which is above its limit (OPTIONS["wal_limit"]); read it'
                    " faster, or read it in parts"
                )
                ended.append(snapshot)
            elif snapshot.since < drain_before:
                stream.hurry()
        return ended

    def _end_transaction(self, end_before: float) -> list[Snapshot]:
        transaction = None if self._holder is None else self._holder()
        if transaction is None or (reader := transaction.reader) is None or reader.private:
            return []  # what was written to tables of its own would be undone
        snapshot = reader.connection.snapshot
        if snapshot is None or snapshot.since >= end_before:
            return []
        why = (
            f"a transaction that had not written was open for {time.monotonic() - snapshot.since:.0f} s and kept the"
            ' WAL from being reset, which is far above its limit (OPTIONS["wal_limit"]); read less in one transaction'
        )
        for stream in list(self._streams):
            if stream.reader is reader:
                stream.end(why)
        transaction.give_up(why)
        return [snapshot]

    def alter(self, alteration: Callable[[apsw.Connection], object]) -> None:
        """Change all readers of this Connection from now on, and keep them out of the pool."""
        reader = self.current()
        alteration(reader.connection)
        reader.reusable = False
        self._alterations.append(alteration)

    def close(self) -> None:
        """Give all readers back."""
        for stream in list(self._streams):
            stream.close()
        home, self.home = self.home, None
        if home is not None:
            self._release(home)

    def interrupt(self) -> None:
        """Make what runs now fail, from another thread, without the lock."""
        for reader in {self.home, *(stream.reader for stream in list(self._streams))}:
            if reader is not None:
                reader.connection.interrupt()

    def inherited(self) -> list[object]:
        """Everything that must not be touched in a forked child."""
        return [self.home, *self._streams]

    def _release(self, reader: Reader) -> None:
        self._pool.release(reader.detach(), reuse=reader.reusable)
