"""Who may use SQLite's one writer: a session on scratch, or apply, which always comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..exceptions import TransactionConflict
from ..sqlite.entry import Base, Result, Statement
from ..sqlite.errors import StatementError
from ..sqlite.scratch import Scratch

INTERRUPT_EVERY = 0.01


class Occupant:
    """A session's place on scratch. ``lost`` says why it was taken away, ``used`` when it last worked
    (monotonic seconds), ``busy`` whether a statement is running now."""

    __slots__ = ("busy", "claim", "lost", "used")

    def __init__(self, claim: bytes) -> None:
        self.claim = claim
        self.lost: str | None = None
        self.used = time.monotonic()
        self.busy = False


class ScratchLane:
    """Scratch and apply take turns.

    A session's statements run in the session's own thread under the mutex, so that a long one does not hold the
    node's loop; apply interrupts it and rolls scratch back before it begins, since SQLite has one writer.
    Invariant: while apply holds the lane, scratch is in no transaction.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._mutex = threading.Lock()
        self._occupant: Occupant | None = None

    @property
    def occupant(self) -> Occupant | None:
        """The session on scratch, if there is one (a snapshot; any thread)."""
        return self._occupant

    def enter(self, occupant: Occupant, pragmas: Mapping[str, int]) -> Base:
        """Begin on scratch at the newest state; one that still lies there lost its lease and is removed."""
        with self._mutex:
            if self._occupant is not None:
                self._evict("another transaction of this node got the write lease")
            base = self._scratch.begin(pragmas)
            self._occupant = occupant
            return base

    def execute(self, occupant: Occupant, statement: Statement) -> Result:
        """Run a statement of the session. Raises TransactionConflict when it has lost its place."""
        with self._working(occupant):
            try:
                return self._scratch.execute(statement)
            except StatementError:
                if occupant.lost is not None:  # it was interrupted
                    raise self.conflict(occupant) from None
                raise

    def look(self, occupant: Occupant) -> tuple[bool, int, int]:
        """Whether scratch is in a transaction, its total changes, and its open deferred foreign keys."""
        with self._working(occupant):
            scratch = self._scratch
            return scratch.in_transaction, scratch.total_changes(), scratch.deferred_violations()

    def leave(self, occupant: Occupant) -> None:
        """Roll back, if the session is still there. Never raises."""
        with self._mutex:
            if self._occupant is occupant:
                self._evict(None)

    def lose(self, occupant: Occupant) -> None:
        """Its lease is gone (``lost`` says why): stop its running statement. Does not wait; loop thread."""
        if self._occupant is occupant and occupant.busy:
            self._scratch.interrupt()

    @contextmanager
    def apply(self) -> Iterator[None]:
        """Hold the lane for one entry; a session in the way has lost (its base is about to be gone)."""
        while not self._mutex.acquire(timeout=INTERRUPT_EVERY):
            occupant = self._occupant
            if occupant is not None and occupant.busy:
                occupant.lost = occupant.lost or "another transaction was committed first"
                self._scratch.interrupt()
        try:
            if self._occupant is not None:
                self._evict("another transaction was committed first")
            yield
        finally:
            self._mutex.release()

    def close(self) -> None:
        """Roll back and close scratch."""
        with self.apply():
            self._scratch.close()

    def conflict(self, occupant: Occupant) -> TransactionConflict:
        """What the session's application is told."""
        return TransactionConflict(
            f"the transaction was rolled back because it lost the write lease: {occupant.lost}; "
            "nothing of it was committed and it can be retried"
        )

    @contextmanager
    def _working(self, occupant: Occupant) -> Iterator[None]:
        with self._mutex:
            if occupant.lost is not None or self._occupant is not occupant:
                occupant.lost = occupant.lost or "its place was taken"
                raise self.conflict(occupant)
            occupant.busy = True
            try:
                yield
            finally:
                occupant.busy = False
                occupant.used = time.monotonic()

    def _evict(self, reason: str | None) -> None:
        occupant, self._occupant = self._occupant, None
        if occupant is not None and reason is not None:
            occupant.lost = occupant.lost or reason
        self._scratch.rollback()
