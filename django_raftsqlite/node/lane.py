"""Who may use SQLite's one writer: a transaction on scratch, or apply, which always comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import apsw

from ..sqlite.entry import Base, Outcome, RequestId, Result, Statement, Status, decode_transaction, result_digest
from ..sqlite.errors import NodeFault, StatementError
from ..sqlite.scratch import Scratch
from .api import LeaseLost, Moved
from .requests import Request
from .turns import Turn

INTERRUPT_EVERY = 0.01

MOST_BELOW = 24
"""COMMITs on their way on which a transaction may be based: all of them are run again whenever one is applied."""

MOST_WORK = 0.05  # seconds on scratch, and
MOST_BYTES = 64 * 1024  # encoded: beyond it, to run a transaction again would take longer than to wait for it

Ran = Result | StatementError


class Committing(NamedTuple):
    """A transaction whose COMMIT is on its way. ``alone``: nothing can be based on it before it is applied."""

    request: RequestId
    payload: bytes
    alone: bool


class ScratchLane:
    """Scratch and apply take turns; and on scratch, a transaction may lie on top of those that are being committed.

    A transaction's statements run in its own thread under the mutex, so that a long one does not hold the node's
    loop; apply interrupts it and rolls scratch back before it begins, since SQLite has one writer. The
    transaction whose turn it is is then ``moved``: it goes on at :meth:`enter`, where what is being committed
    is run again below it, and its author repeats what it did.

    Nothing that was done here is ever kept: apply runs each transaction from the log. Invariants: while ``_applying``
    is true scratch is in no transaction, and nobody holds the mutex for longer than a moment, since that may take
    minutes; ``_committing`` are the COMMITs of this node that were sent and
    not applied, in order, and scratch, when it is in a transaction, holds all of them.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._mutex = threading.Lock()
        self._settled = threading.Condition(self._mutex)
        self._turn: Turn | None = None
        self._applying = False
        self._committing: list[Committing] = []
        self._pragmas: Mapping[str, int] = {}

    @property
    def turn(self) -> Turn | None:
        """Whose transaction is on scratch, if there is one (a snapshot; any thread)."""
        return self._turn

    def enter(self, turn: Turn, pragmas: Mapping[str, int], left: Callable[[], float]) -> Base:
        """Begin, or begin again, on top of all that is committed or on its way; what this state is called.

        Raises LeaseLost, also when no seconds are ``left`` while it waits for a COMMIT on which nothing can be based,
        or for what is being applied; NodeFault.
        """
        with self._mutex:
            self._check_lease(turn)
            if self._turn is not None:
                if self._turn is not turn:
                    self._turn.lost = self._turn.lost or "another transaction of this node got the write lease"
                self._scratch_back()
            self._turn = turn
            with _Busy(turn):
                while True:
                    turn.moved = False
                    base = None if self._applying else self._stack_unless_interrupted(pragmas)
                    if base is not None:
                        return base
                    self._scratch.rollback()
                    if (seconds := left()) <= 0:
                        raise LeaseLost("the transaction before it is still being committed or applied")
                    self._settled.wait(seconds)
                    self._check_lease(turn)

    def execute(self, turn: Turn, statements: Sequence[Statement]) -> tuple[list[Ran], bool]:
        """Run statements; the results of all, or of those up to the one that ended the transaction, and whether it
        goes on.

        Raises Moved or LeaseLost; then nothing of the transaction is on scratch.
        """
        results: list[Ran] = []
        with self._mutex, _Working(self, turn):
            for statement in statements:
                try:
                    results.append(self._scratch.execute(statement))
                except StatementError as error:
                    if error.code & 0xFF == apsw.SQLITE_INTERRUPT:
                        self._scratch_back()
                    if turn.lost is not None or turn.moved:
                        self._check(turn)
                    results.append(error)
                    if not self._scratch.in_transaction:
                        break
            return results, self._scratch.in_transaction

    def open_foreign_keys(self, turn: Turn) -> bool:
        """Whether a deferred foreign key is open, so that COMMIT would fail. Raises Moved or LeaseLost."""
        with self._mutex, _Working(self, turn):
            return self._scratch.deferred_violations() != 0

    def leave(self, turn: Turn) -> None:
        """Roll back, if the transaction is still there. Never raises."""
        with self._mutex:
            if self._turn is turn:
                self._turn = None
                self._scratch.undo()

    def commits(self, turn: Turn, request: Request) -> None:
        """Its COMMIT is about to be sent: the next transaction lies on top of it. Raises Moved or LeaseLost."""
        with self._mutex, _Working(self, turn):
            alone = request.solo or self._scratch.changed_schema or turn.worked > MOST_WORK
            alone = alone or len(request.payload) > MOST_BYTES
            self._turn = None
            if alone:
                self._scratch.rollback()
            else:
                self._scratch.keep()
            self._committing.append(Committing(request.id, request.payload, alone))

    def commits_alone(self, turn: Turn, request: Request) -> None:
        """As :meth:`commits`, of a transaction that has left scratch before. Raises LeaseLost."""
        with self._mutex:
            self._check_lease(turn)
            self._committing.append(Committing(request.id, b"", alone=True))

    def forget(self, request: RequestId) -> None:
        """It was not committed, or its author has given up: nothing may be based on it any more."""
        if any(committing.request == request for committing in self._committing):
            with self._preempting():
                if any(committing.request == request for committing in self._committing):
                    self._committing = []
                self._settled.notify_all()  # also whoever was interrupted for nothing

    def interrupt(self, turn: Turn) -> None:
        """Its lease is gone (``lost`` says why): stop its running statement. Does not wait; any thread."""
        if self._turn is turn and turn.busy:
            self._scratch.interrupt()

    @contextmanager
    def apply(self) -> Iterator[Callable[[Iterable[tuple[RequestId, Outcome]]], None]]:
        """Have scratch out of the way for one entry. What is yielded is to be told the outcomes before it is back."""
        with self._preempting():
            self._applying = True
        try:
            yield self._applied
        finally:
            with self._mutex:
                self._applying = False
                self._settled.notify_all()

    def replaced(self) -> None:
        """The file holds another state now, whose outcomes nobody was told: nothing is based on what was here.

        Within :meth:`apply`.
        """
        with self._mutex:
            self._committing = []

    @contextmanager
    def without_scratch(self) -> Iterator[None]:
        """Close scratch while another file is put in the place of the present one. Within :meth:`apply`."""
        with self._mutex:
            self._committing = []
            self._scratch.close()
        try:
            yield
        finally:
            with self._mutex:
                self._scratch.open()

    def close(self) -> None:
        """Roll back and close scratch."""
        with self.apply():
            self._scratch.close()

    @contextmanager
    def _preempting(self) -> Iterator[None]:
        """Hold the mutex, with scratch rolled back; a statement that runs there is interrupted."""
        while not self._mutex.acquire(timeout=INTERRUPT_EVERY):
            turn = self._turn
            if turn is not None and turn.busy:
                turn.moved = True
                self._scratch.interrupt()
        try:
            self._scratch_back()
            yield
        finally:
            self._mutex.release()

    def _applied(self, outcomes: Iterable[tuple[RequestId, Outcome]]) -> None:
        with self._mutex:
            if not self._committing:
                return
            decided = dict(outcomes)
            kept = [committing for committing in self._committing if committing.request not in decided]
            if len(kept) == len(self._committing):
                return
            if any(decided[c.request].status is not Status.DONE for c in self._committing if c.request in decided):
                kept = []  # what lies on top of a transaction that failed will find its base gone
            self._committing = kept

    # Under the mutex --------------------------------------------------------------------------------------

    def _stack_unless_interrupted(self, pragmas: Mapping[str, int]) -> Base | None:
        # Who interrupts is waiting for the mutex, has it next, and tells when it is done.
        try:
            return self._stack(pragmas)
        except apsw.InterruptError:
            return None
        except NodeFault as fault:
            if isinstance(fault.__cause__, apsw.InterruptError):
                return None
            raise

    def _stack(self, pragmas: Mapping[str, int]) -> Base | None:
        """Begin at the newest state, with all that is being committed on top; None where that can't be done yet."""
        scratch, below = self._scratch, self._committing
        if len(below) >= MOST_BELOW or any(committing.alone for committing in below):
            return None
        if not scratch.in_transaction:
            base: Base = scratch.begin(pragmas)
            self._pragmas = dict(pragmas)
            for committing in below:
                if not self._again(committing):
                    return None
        else:
            assert scratch.base is not None
            base = scratch.base
        if below:
            if self._pragmas.get("foreign_keys", 1) != pragmas.get("foreign_keys", 1):
                return None  # SQLite ignores the pragma within a transaction
            scratch.put_on_top(pragmas)
            base = Base(base.lineage, base.version + len(below), below[-1].request.to_bytes())
        return base

    def _again(self, committing: Committing) -> bool:
        transaction = decode_transaction(committing.payload)
        if transaction.pragmas.get("foreign_keys", 1) != self._pragmas.get("foreign_keys", 1):
            return False
        self._scratch.put_on_top(transaction.pragmas)
        for statement in transaction.statements:
            try:
                digest = result_digest(0, self._scratch.execute(statement))
            except StatementError as error:
                digest = result_digest(error.code, None)
            if statement.expect is not None and digest != statement.expect:
                return False
        self._scratch.keep()
        return True

    def _scratch_back(self) -> None:
        if self._turn is not None:
            self._turn.moved = True
        self._scratch.rollback()

    def _check_lease(self, turn: Turn) -> None:
        if turn.lost is not None:
            raise LeaseLost(turn.lost)

    def _check(self, turn: Turn) -> None:
        self._check_lease(turn)
        if turn.moved and self._turn is turn:
            raise Moved

    def _check_place(self, turn: Turn) -> None:
        if self._turn is not turn:
            turn.lost = turn.lost or "its place was taken"
        self._check(turn)


class _Busy:
    """The time for which a turn works on scratch. A class, since one of them is made for every statement."""

    __slots__ = ("_began", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._turn.busy = True

    def __exit__(self, *_: object) -> None:
        turn = self._turn
        turn.busy = False
        turn.used = time.monotonic()
        turn.worked += turn.used - self._began


class _Working(_Busy):
    """As :class:`_Busy`, under the lane's mutex, where the turn's transaction is on scratch."""

    __slots__ = ("_lane",)

    def __init__(self, lane: ScratchLane, turn: Turn) -> None:
        super().__init__(turn)
        self._lane = lane

    def __enter__(self) -> None:
        self._lane._check_place(self._turn)
        super().__enter__()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        if isinstance(exc_info[1], apsw.InterruptError):
            # Also one that was meant for the statement before: the transaction is run again.
            self._lane._scratch_back()
            self._lane._check(self._turn)
