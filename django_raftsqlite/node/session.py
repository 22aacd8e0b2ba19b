"""An interactive transaction in the process that hosts the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..sqlite.entry import Base, Result, Statement
from ..sqlite.errors import StatementError
from .lane import Occupant, ScratchLane

SQLITE_CONSTRAINT_FOREIGNKEY = 787


class Commit(Protocol):
    """Replicates the net writes of the session."""

    def __call__(self, base: Base, statements: Sequence[Statement], *, timeout: float) -> None: ...


class LocalSession:
    """A :class:`~django_raftsqlite.node.api.WriteSession` that works on this process's scratch.

    Runs in its caller's thread; the lane keeps it apart from apply. Either ``commit`` or ``release`` is called in the
    end, once, and frees the lease.
    """

    def __init__(
        self, lane: ScratchLane, occupant: Occupant, base: Base, *, commit: Commit, release: Callable[[], None]
    ) -> None:
        self.base = base
        self._lane = lane
        self._occupant = occupant
        self._commit = commit
        self._release = release
        self._over = False

    def execute(self, statement: Statement) -> Result:
        """See WriteSession."""
        return self._lane.execute(self._occupant, statement)

    @property
    def in_transaction(self) -> bool:
        """See WriteSession."""
        return not self._over and self._lane.look(self._occupant)[0]

    def total_changes(self) -> int:
        """See WriteSession."""
        return self._lane.look(self._occupant)[1]

    def commit(self, statements: Sequence[Statement], *, timeout: float) -> None:
        """See WriteSession."""
        if self._lane.look(self._occupant)[2]:
            raise StatementError(SQLITE_CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed")
        self._over = True
        self._lane.leave(self._occupant)
        self._commit(self.base, statements, timeout=timeout)

    def rollback(self) -> None:
        """See WriteSession."""
        if not self._over:
            self._over = True
            self._lane.leave(self._occupant)
            self._release()
