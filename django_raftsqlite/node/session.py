"""An interactive transaction in the process that hosts the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..sqlite.entry import Base, Result, Statement
from ..sqlite.errors import StatementError
from .lane import Occupant

if TYPE_CHECKING:
    from .host import HostedNode

SQLITE_CONSTRAINT_FOREIGNKEY = 787


class LocalSession:
    """A :class:`~django_raftsqlite.node.api.WriteSession` that works on this process's scratch.

    Runs in its caller's thread; the lane keeps it apart from apply.
    """

    def __init__(self, host: HostedNode, occupant: Occupant, base: Base, pragmas: Mapping[str, int]) -> None:
        self._host = host
        self._occupant = occupant
        self._pragmas = dict(pragmas)
        self._over = False
        self.base = base

    def execute(self, statement: Statement) -> Result:
        """See WriteSession."""
        return self._host.lane.execute(self._occupant, statement)

    @property
    def in_transaction(self) -> bool:
        """See WriteSession."""
        return not self._over and self._host.lane.look(self._occupant)[0]

    def total_changes(self) -> int:
        """See WriteSession."""
        return self._host.lane.look(self._occupant)[1]

    def commit(self, statements: Sequence[Statement], *, timeout: float) -> None:
        """See WriteSession."""
        if self._host.lane.look(self._occupant)[2]:
            raise StatementError(SQLITE_CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed")
        self._over = True
        self._host.lane.leave(self._occupant)
        self._host.commit(self._occupant.claim, self.base, self._pragmas, statements, timeout=timeout)

    def rollback(self) -> None:
        """See WriteSession."""
        if not self._over:
            self._over = True
            self._host.lane.leave(self._occupant)
            self._host.release(self._occupant.claim)
