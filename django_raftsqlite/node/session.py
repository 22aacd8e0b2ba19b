"""An interactive transaction in the process that hosts the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..exceptions import OperationalError
from ..sqlite.entry import Base, Outcome, Result, Statement
from ..sqlite.errors import NodeFault, StatementError
from .api import LeaseLost
from .lane import ScratchLane
from .requests import Request
from .turns import Turn, Turns

SQLITE_CONSTRAINT_FOREIGNKEY = 787


class Execute(Protocol):
    """Has a request applied; ``sent`` is called once it is on its way."""

    def __call__(self, request: Request, *, timeout: float, sent: Callable[[], None]) -> Outcome: ...


class LocalSession:
    """A :class:`~django_raftsqlite.node.api.BackendSession` on this process's scratch.

    Runs in its caller's thread; the lane keeps it apart from apply. It has the turn from the beginning until COMMIT
    is sent or it is rolled back: while its COMMIT is being replicated, the next transaction of the node works on top.
    ``left`` begins to count the time that may pass until there is room for it on scratch.
    """

    def __init__(
        self,
        lane: ScratchLane,
        turns: Turns,
        turn: Turn,
        pragmas: Mapping[str, int],
        *,
        execute: Execute,
        left: Callable[[], Callable[[], float]],
    ) -> None:
        self._lane = lane
        self._turns = turns
        self._turn = turn
        self._pragmas = pragmas
        self._execute = execute
        self._left = left
        self._sealed = False
        self._over = False
        self._in_transaction = True
        self.base = self._enter()

    @property
    def claim(self) -> bytes:
        """See BackendSession."""
        return self._turn.claim

    def execute(self, statement: Statement) -> Result:
        """See BackendSession."""
        (result,) = self.repeat([statement])
        if isinstance(result, StatementError):
            raise result
        return result

    def repeat(self, statements: Sequence[Statement]) -> list[Result | StatementError]:
        """See BackendSession."""
        if self._over:
            raise LeaseLost("the transaction is over")
        results, self._in_transaction = self._lane.execute(self._turn, statements)
        return results

    def resume(self) -> None:
        """See BackendSession."""
        self.base = self._enter()
        self._in_transaction = True

    @property
    def in_transaction(self) -> bool:
        """See BackendSession."""
        return self._in_transaction and not (self._over or self._sealed)

    def seal(self) -> None:
        """See BackendSession."""
        self._check_foreign_keys()
        self._lane.leave(self._turn)
        self._sealed = True

    def commit(self, request: Request, *, timeout: float) -> Outcome:
        """See BackendSession."""
        if self._sealed:
            self._lane.commits_alone(self._turn, request)
        else:
            self._check_foreign_keys()
            self._lane.commits(self._turn, request)
        self._over = True
        try:
            return self._execute(request, timeout=timeout, sent=self._finish)
        except LeaseLost:
            self._turns.stolen(self._turn)
            raise
        finally:
            self._lane.forget(request.id)  # where it was applied, that is known already
            self._finish()

    def rollback(self) -> None:
        """See BackendSession."""
        if not self._over:
            self._over = True
            self._lane.leave(self._turn)
            self._finish()

    def _check_foreign_keys(self) -> None:
        if self._over:
            raise LeaseLost("the transaction is over")
        if self._lane.open_foreign_keys(self._turn):
            raise StatementError(SQLITE_CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed")

    def _finish(self) -> None:
        self._turns.finish(self._turn)

    def _enter(self) -> Base:
        try:
            return self._lane.enter(self._turn, self._pragmas, self._left())
        except NodeFault as fault:
            raise OperationalError(f"scratch cannot begin a transaction: {fault}") from fault
