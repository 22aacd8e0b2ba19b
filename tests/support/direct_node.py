"""A node without Raft: what is submitted is applied at once, in the caller's thread."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from django_raftsqlite.exceptions import LeaseTimeout, OperationalError, Unavailable
from django_raftsqlite.node.api import LeaseLost, Moved, NodeConfig
from django_raftsqlite.sqlite.entry import (
    Base,
    Entry,
    Item,
    ItemKind,
    Outcome,
    RequestId,
    Result,
    Statement,
    Status,
    Transaction,
    encode_entry,
    encode_transaction,
)
from django_raftsqlite.sqlite.errors import StatementError
from django_raftsqlite.sqlite.machine import StateMachine
from django_raftsqlite.sqlite.readers import ReaderPool
from django_raftsqlite.sqlite.scratch import Scratch

SQLITE_CONSTRAINT_FOREIGNKEY = 787


class DirectNode:
    """A state machine, a scratch, and a lock as the write lease: a :class:`~django_raftsqlite.node.api.Node`.

    For testing what stands above a node: every write is applied before the call returns, and everything that
    fails, fails the same way each time. ``submitted`` holds every transaction that was applied, ``barriers`` counts
    read barriers, ``limits`` and ``reached`` hold what reads demanded otherwise. ``fail_next`` (an exception) is
    raised by the next submit, begin, commit or read that demands something, in place of doing it.
    ``foreign(sql)`` commits as another node would: without the lease, which a holder then loses (or, with ``moved``,
    as an earlier transaction of the holder's node would).
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.submitted: list[Transaction] = []
        self.barriers = 0
        self.notes: Counter[str] = Counter()
        self.limits: list[float] = []
        self.reached: list[int] = []
        self.fail_next: Exception | None = None
        self._machine = StateMachine(config.name, config.registrars, mode=config.mode, durable=config.durable)
        self._scratch = Scratch(config.name, config.registrars, durable=config.durable)
        self.readers = ReaderPool(config.name, config.registrars)
        self._lease = threading.Lock()
        self._holder: DirectSession | None = None
        self._applying = threading.RLock()
        self._origin = os.urandom(16)
        self._sequence = 0
        self._apply(Item(ItemKind.OPEN_ORIGIN, self._origin), solo=False)

    def submit(self, statement: Statement, pragmas: Mapping[str, int], *, solo: bool, timeout: float) -> Result:
        self._fail()
        if not self._lease.acquire(timeout=timeout):
            raise LeaseTimeout("database is locked")
        try:
            return self.apply(Transaction(self._request(), 1, (statement,), pragmas=dict(pragmas), solo=solo))
        finally:
            self._lease.release()

    def begin(
        self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> DirectSession:
        self._fail()
        if not self._lease.acquire(blocking=not nowait, timeout=-1 if nowait else timeout):
            raise LeaseTimeout("database is locked")
        try:
            self._holder = DirectSession(self, self._scratch, dict(pragmas))
        except BaseException:
            self._lease.release()
            raise
        return self._holder

    def read_barrier(self, *, timeout: float) -> None:
        self._fail()
        self.barriers += 1

    def limit_staleness(self, limit: float, *, timeout: float) -> None:
        self._fail()
        self.limits.append(limit)

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        self._fail()
        self.reached.append(version)
        return lineage == self.base.lineage and version <= self.base.version

    def note(self, what: str) -> None:
        self.notes[what] += 1

    def status(self) -> dict[str, Any]:
        return {"node": self.config.address, "role": "leader", "applied_index": self._machine.applied_index}

    def close(self) -> None:
        self._scratch.close()
        self._machine.close()
        self.readers.close()

    # ---- for tests

    @property
    def base(self) -> Base:
        return self._machine.base

    @property
    def leased(self) -> bool:
        """Whether the write lease is held."""
        return self._lease.locked()

    def foreign(self, sql: str, parameters: Sequence[Any] = (), *, moved: bool = False) -> None:
        """Commit one statement from elsewhere; a session that is open has lost its place."""
        holder = self._holder
        if holder is not None:
            holder.take_away(Moved() if moved else LeaseLost("another transaction was committed first"))
        self.apply(Transaction(self._request(), 1, (Statement(sql, tuple(parameters) or None, 0, 0),)))

    # ---- for the session

    def apply(self, transaction: Transaction) -> Result:
        """Apply; raises as the node's API says."""
        self.submitted.append(transaction)
        solo = transaction.solo or not transaction.pragmas.get("foreign_keys", 1)
        outcome = self._apply(Item(ItemKind.TRANSACTION, encode_transaction(transaction)), solo=solo)[0][1]
        return result_of(outcome)

    def commit(self, base: Base, pragmas: Mapping[str, int], statements: Sequence[Statement]) -> None:
        self._fail()
        self.apply(Transaction(self._request(), 1, tuple(statements), base=base, pragmas=dict(pragmas)))

    def give_back(self) -> None:
        self._holder = None
        self._lease.release()

    def _apply(self, item: Item, *, solo: bool) -> list[tuple[RequestId, Outcome]]:
        with self._applying:
            entry = Entry(time.time_ns() // 1_000_000, (item,), solo)
            return self._machine.apply(self._machine.applied_index + 1, 1, encode_entry(entry))

    def _request(self) -> RequestId:
        self._sequence += 1
        return RequestId(self._origin, self._sequence)

    def _fail(self) -> None:
        error, self.fail_next = self.fail_next, None
        if error is not None:
            raise error


class DirectSession:
    """A :class:`~django_raftsqlite.node.api.WriteSession` on the node's scratch."""

    def __init__(self, node: DirectNode, scratch: Scratch, pragmas: dict[str, int]) -> None:
        self._node = node
        self._scratch = scratch
        self._pragmas = pragmas
        self._over = False
        self._lost: Exception | None = None
        self.base = scratch.begin(pragmas)

    def execute(self, statement: Statement) -> Result:
        self._check()
        return self._scratch.execute(statement)

    def repeat(self, statements: Sequence[Statement]) -> list[Result | StatementError]:
        results: list[Result | StatementError] = []
        for statement in statements:
            self._check()
            try:
                results.append(self._scratch.execute(statement))
            except StatementError as error:
                results.append(error)
        return results

    def resume(self) -> None:
        assert isinstance(self._lost, Moved)
        self._lost = None
        self.base = self._scratch.begin(self._pragmas)

    @property
    def in_transaction(self) -> bool:
        return not self._over and self._scratch.in_transaction

    def commit(self, statements: Sequence[Statement], *, timeout: float) -> None:
        self._check()
        if self._scratch.deferred_violations():
            raise StatementError(SQLITE_CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed")
        self._over = True
        self._scratch.rollback()
        try:
            self._node.commit(self.base, self._pragmas, statements)
        finally:
            self._node.give_back()

    def rollback(self) -> None:
        if not self._over:
            self._over = True
            self._scratch.rollback()
            self._node.give_back()

    def take_away(self, error: Exception) -> None:
        """Scratch is rolled back under it, as apply does; ``error`` is what it finds next."""
        self._lost = error
        self._scratch.rollback()

    def _check(self) -> None:
        if self._over:
            raise LeaseLost("the transaction is over")
        if self._lost is not None:
            if not isinstance(self._lost, Moved):
                self.rollback()
            raise self._lost


def result_of(outcome: Outcome) -> Result:
    """What a decided request gives its author."""
    if outcome.status is Status.DONE:
        return outcome.result or Result()
    if outcome.status is Status.ERROR:
        raise StatementError(outcome.code, outcome.message)
    if outcome.status is Status.CONFLICT:
        raise LeaseLost("another transaction was committed first")
    if outcome.status is Status.REPLAY_DIFFERS:
        raise OperationalError("replay differs")
    raise Unavailable("refused", "failed")
