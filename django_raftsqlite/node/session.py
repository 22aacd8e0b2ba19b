"""An interactive transaction in the process that hosts the node."""

from __future__ import annotations

from collections.abc import Callable

from ..sqlite.entry import Base, Outcome, Result, Statement
from ..sqlite.errors import StatementError
from .lane import Occupant, ScratchLane
from .requests import Request

SQLITE_CONSTRAINT_FOREIGNKEY = 787


Commit = Callable[[Request, float], Outcome]
"""Replicates the net writes of the session, within so many seconds."""


class LocalSession:
    """A :class:`~django_raftsqlite.node.api.BackendSession` on this process's scratch.

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
        self._sealed = False
        self._over = False

    def execute(self, statement: Statement) -> Result:
        """See BackendSession."""
        return self._lane.execute(self._occupant, statement)

    @property
    def claim(self) -> bytes:
        """See BackendSession."""
        return self._occupant.claim

    @property
    def in_transaction(self) -> bool:
        """See BackendSession."""
        return not (self._over or self._sealed) and self._lane.look(self._occupant)[0]

    def total_changes(self) -> int:
        """See BackendSession."""
        return self._lane.look(self._occupant)[1]

    def seal(self) -> None:
        """See BackendSession."""
        if self._lane.look(self._occupant)[2]:
            raise StatementError(SQLITE_CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed")
        self._sealed = True
        self._lane.leave(self._occupant)

    def commit(self, request: Request, *, timeout: float) -> Outcome:
        """See BackendSession."""
        if not self._sealed:
            self.seal()
        self._over = True
        return self._commit(request, timeout)

    def rollback(self) -> None:
        """See BackendSession."""
        if not self._over:
            self._over = True
            self._lane.leave(self._occupant)
            self._release()
