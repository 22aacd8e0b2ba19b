"""A transaction from BEGIN to COMMIT: a read snapshot that becomes a write session at its first write."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

import apsw

from ..exceptions import HostLost, LeaseTimeout, TransactionConflict
from ..node.api import LeaseLost, Moved, Node, WriteSession
from ..sqlite.entry import Base, Parameters, Result, Statement, result_digest
from ..sqlite.errors import StatementError
from ..sqlite.tables import read_base
from .errors import from_statement, operational
from .readers import Readers
from .reading import Reader, moment
from .script import Read, Script

_STEP = 0x1E3779B97F4A7C15  # odd, so that all 2**63 seeds come before one comes again
_LARGEST_SEED = 2**63 - 1


class NetWrite(NamedTuple):
    """A statement that COMMIT sends. ``undone`` is false for a state pragma, which ROLLBACK TO does not undo."""

    statement: Statement
    undone: bool


class Savepoint(NamedTuple):
    """An open savepoint: its name in lower case, and how many net writes there were when it was set."""

    name: str
    mark: int


class Transaction:
    """One transaction of one Connection, used under its lock.

    It goes from *nothing happened* to a read *snapshot* (``reader`` set, ``base`` its identity) to a *write
    session* (``session`` set; ``reader`` no longer in a transaction), and may skip the second. When the session loses
    its place (the state moved, the lease was recalled, the leader or the host is another one), the transaction is
    *rebased*: its script is run again on the newest state, and with the same answers it goes on. Invariants: the
    ``script`` holds all that the application saw, in order; ``net`` holds what COMMIT sends and never a
    write that was rolled back; after ``lost`` was set nothing but a rollback is accepted; after ``over`` became
    true the Connection is in autocommit again and the lease is free; ``committed`` says that it changed the database.

    A snapshot may be given up for its age: then the next read fails, while a write is rebased, and COMMIT ends it.

    ``implicit``: SAVEPOINT outside of a transaction began it, so the RELEASE of that savepoint commits it.
    """

    def __init__(self, node: Node, readers: Readers, timeout: float, *, implicit: bool = False) -> None:
        self._node = node
        self._timeout = timeout
        self._readers = readers
        self._implicit = implicit
        self._seed = secrets.randbits(63)
        self.reader: Reader | None = None
        self.base: Base | None = None
        self.session: WriteSession | None = None
        self.lost: BaseException | None = None
        self.over = False
        self.committed = False
        self.defer_foreign_keys = False
        self._given_up: str | None = None
        self._lineage: bytes | None = None
        self._script = Script()
        self._pragmas: dict[str, int] = {}
        self._reason = ""
        self._net: list[NetWrite] = []
        self._savepoints: list[Savepoint] = []

    def _moment(self) -> tuple[int, int]:
        """Clock and seed of the next statement; one draw of the system's randomness is enough for a transaction."""
        self._seed = (self._seed + _STEP) & _LARGEST_SEED
        return time.time_ns() // 1_000_000, self._seed

    def check(self) -> None:
        """Raises TransactionConflict when the transaction was lost earlier."""
        if self.lost is not None:
            why = str(self.lost) or type(self.lost).__name__
            raise TransactionConflict(
                f"this transaction was rolled back already ({why}); end it with ROLLBACK and retry it whole"
            ) from self.lost

    # ---- reads in the snapshot

    def open_snapshot(self, reader: Reader) -> None:
        """Begin reading at this node's newest state, on a reader without open statements.

        Raises TransactionConflict where the snapshot in which it read before was given up.
        """
        if self._given_up is not None:
            conflict = TransactionConflict(
                f"the transaction was rolled back: {self._given_up}; it can be retried as a whole"
            )
            self._lose(conflict)
            raise conflict
        reader.reads("a transaction that has not written")
        reader.connection.execute("BEGIN")
        # As a half-read SELECT does: what is no part of the transaction must run elsewhere.
        reader.open += 1
        self.reader = reader
        self._readers.holds(self)
        self.base = read_base(reader.connection)
        self._lineage = self.base.lineage

    def give_up(self, why: str) -> None:
        """See Holder."""
        self._given_up = why
        self._close_snapshot(undo=True)

    def record(self, sql: str, parameters: Parameters) -> Read:
        """The next read of the snapshot, as an item of the script."""
        return self._script.read(Statement(sql, parameters, *self._moment()))

    def record_unrepeatable(self, sql: str) -> None:
        """A read that no other connection can run: it used temporary or attached tables."""
        self._script.unrepeatable(sql, "used temporary or attached tables, and cannot be checked again")

    def _close_snapshot(self, *, undo: bool = False) -> None:
        reader, self.reader = self.reader, None
        if reader is None:
            return
        self._readers.holds(None)
        # SQLite may have ended it already. COMMIT, not ROLLBACK: SELECTs that are still being read go on.
        if reader.connection.in_transaction:
            reader.connection.execute("ROLLBACK" if undo else "COMMIT")
        reader.open -= 1
        reader.ended()
        self._readers.finished(reader)

    # ---- the write session

    def write(self, pragmas: Mapping[str, int], *, reason: str, nowait: bool = False) -> None:
        """Take the write lease and go on from what was read, if that is still what a read gives.

        Raises TransactionConflict (the transaction is lost), or LeaseTimeout and Unavailable (it goes on as it is).
        """
        if self.session is not None:
            return
        self._readers.drain()
        self._pragmas, self._reason = dict(pragmas), reason
        deadline = time.monotonic() + self._timeout
        session = self._begin(deadline, nowait=nowait)
        try:
            if self._lineage is None:
                self._lineage = session.base.lineage
            if self.base is not None and session.base != self.base:
                session = self._run_again(session, deadline)
            else:
                session = self._open_savepoints(session, deadline)
        except BaseException as error:
            session.rollback()
            if isinstance(error, TransactionConflict):
                self._lose(error)
            raise
        self.session = session
        for place, savepoint in enumerate(self._savepoints):
            self._savepoints[place] = savepoint._replace(mark=len(self._net))
        self._close_snapshot()
        if self.defer_foreign_keys:
            self.execute("PRAGMA defer_foreign_keys = 1", None, writes=True, undone=False)

    def _begin(self, deadline: float, *, nowait: bool = False) -> WriteSession:
        timeout = max(deadline - time.monotonic(), 0.0)
        while True:
            try:
                return self._node.begin(self._pragmas, reason=self._reason, timeout=timeout, nowait=nowait)
            except LeaseLost:
                if time.monotonic() >= deadline:
                    raise LeaseTimeout("database is locked: the write lease was lost again and again") from None

    def _open_savepoints(self, session: WriteSession, deadline: float) -> WriteSession:
        try:
            session.repeat([_savepoint(savepoint.name) for savepoint in self._savepoints])
        except (Moved, LeaseLost, HostLost) as error:
            return self._run_again(session, deadline, error)
        return session

    def _run_again(self, session: WriteSession, deadline: float, cause: Exception | None = None) -> WriteSession:
        """Run the script on the session, or, if that has lost its place (``cause``), on one that has one.

        Raises TransactionConflict: the answers are others now, or the lease is not to be had in time.
        """
        self._node.note("rebases")
        while True:
            try:
                if isinstance(cause, Moved):
                    session.resume()
                elif cause is not None:
                    session.rollback()
                    session = self._begin(deadline)
                self._check_lineage(session.base)
                self._script.check(session)
            except (Moved, LeaseLost, HostLost) as error:
                cause = error
                if time.monotonic() < deadline:
                    continue
                session.rollback()
                raise _not_in_time(error) from error
            except BaseException as error:
                session.rollback()
                if isinstance(error, LeaseTimeout):
                    raise _not_in_time(error) from error
                raise
            return session

    def _check_lineage(self, base: Base) -> None:
        """What was seen before a restore is not written onto what came with it, also where it looks the same."""
        if self._lineage not in (None, base.lineage):
            raise TransactionConflict(
                "the transaction was rolled back: the database was restored while it was open; nothing of it was "
                "committed and it can be retried as a whole"
            )

    def _rebase(self, cause: Exception) -> None:
        """The session lost its place. Raises what ends the transaction."""
        assert self.session is not None
        session, self.session = self.session, None
        try:
            self.session = self._run_again(session, time.monotonic() + self._timeout, cause)
        except BaseException as error:
            self._lose(error)
            raise

    def execute(self, sql: str, parameters: Parameters, *, writes: bool, undone: bool = True) -> Result:
        """Run a statement on the session. Raises PEP 249's exceptions; see ``over`` and ``lost`` afterwards."""
        statement = Statement(sql, parameters, *self._moment())
        result: Result | None = None
        error: StatementError | None = None
        try:
            result = self._run(statement)
        except StatementError as raised:
            error = raised
        expected = statement._replace(expect=result_digest(error.code if error else 0, result))
        if writes:
            self._script.step(expected)
            # OR FAIL and RAISE(FAIL) keep the rows before the one that failed. Whether there were any need not be
            # known: a statement that kept nothing fails on every node alike and changes nothing.
            if error is None or error.code & 0xFF == apsw.SQLITE_CONSTRAINT:
                self._net.append(NetWrite(expected, undone))
        else:
            self._script.read(statement).end(result, error)
        if result is None:
            assert error is not None
            assert self.session is not None
            if not self.session.in_transaction:
                self._end()
            raise from_statement(error) from error
        return result

    def _run(self, statement: Statement) -> Result:
        while True:
            assert self.session is not None
            try:
                return self.session.execute(statement)
            except StatementError:
                raise
            except (Moved, LeaseLost, HostLost) as error:
                self._rebase(error)
            except BaseException as error:
                # It may or may not have been executed (KeyboardInterrupt, a timeout's signal): what COMMIT would send
                # need not be what the application saw.
                self._lose(error)
                raise

    # ---- savepoints

    @property
    def in_savepoint(self) -> bool:
        """Whether a savepoint is open."""
        return bool(self._savepoints)

    def savepoint(self, name: str) -> None:
        """SAVEPOINT; virtual until there is a session."""
        self._control(f"SAVEPOINT {_quoted(name)}")
        self._savepoints.append(Savepoint(name.lower(), len(self._net)))

    def release(self, name: str) -> None:
        """RELEASE: its writes become the enclosing one's, or are committed."""
        place = self._place(name)
        if self._implicit and place == 0:
            self.commit()
            return
        self._control(f"RELEASE {_quoted(name)}")
        del self._savepoints[place:]

    def rollback_to(self, name: str) -> None:
        """ROLLBACK TO: its net writes are dropped, its reads stay in the script; it remains open."""
        place = self._place(name)
        self._control(f"ROLLBACK TO {_quoted(name)}")
        mark = self._savepoints[place].mark
        self._net[mark:] = [write for write in self._net[mark:] if not write.undone]
        del self._savepoints[place + 1 :]

    def _control(self, sql: str) -> None:
        if self.session is not None:
            self.execute(sql, None, writes=False)
        else:
            self._script.read(Statement(sql, None, *self._moment())).end(Result(), None)

    def _place(self, name: str) -> int:
        folded = name.lower()
        for place in range(len(self._savepoints) - 1, -1, -1):
            if self._savepoints[place].name == folded:
                return place
        raise operational(f"no such savepoint: {name}")

    # ---- the end

    def commit(self) -> None:
        """COMMIT. The transaction is over, except after the IntegrityError of an open deferred foreign key."""
        self.check()
        changed = any(write.undone for write in self._net)
        try:
            if changed or not self._saw_the_newest():
                self._commit([write.statement for write in self._net])
                self.committed = changed
        except StatementError as error:
            if self.session is None or not self.session.in_transaction:
                self._end()
            raise from_statement(error) from error
        except BaseException as error:
            self._note_conflict(error)
            self._end()
            raise
        self._end()

    def _saw_the_newest(self) -> bool:
        """Whether what it saw on scratch is committed, and still is all that is committed anywhere.

        What lay below it may be lost yet, and the lease of a node that was cut off may be another's by now: then it
        has shown what may never be, or what is true no longer.
        """
        if self.session is None:
            return True
        try:
            self._node.read_barrier(timeout=self._timeout)
        except HostLost:
            return False
        return self.session.base == read_base(self._readers.idle().connection)

    def _commit(self, statements: list[Statement]) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            assert self.session is not None
            try:
                self.session.commit(statements, timeout=self._timeout)
            except (Moved, LeaseLost, HostLost) as error:
                if time.monotonic() >= deadline:
                    raise _not_in_time(error) from error
                self._rebase(error)
            else:
                return

    def rollback(self) -> None:
        """ROLLBACK, which always works."""
        self._end(undo=True)

    def _lose(self, error: BaseException) -> None:
        self._note_conflict(error)
        self.lost = error
        self._leave(undo=True)

    def _note_conflict(self, error: BaseException) -> None:
        if isinstance(error, TransactionConflict) and self.lost is None:
            self._node.note("conflicts")

    def _end(self, *, undo: bool = False) -> None:
        self.over = True
        self._leave(undo=undo)

    def _leave(self, *, undo: bool) -> None:
        try:
            if self.session is not None:
                self.session.rollback()
        finally:
            self._close_snapshot(undo=undo)


def _savepoint(name: str) -> Statement:
    return Statement(f"SAVEPOINT {_quoted(name)}", None, *moment())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _not_in_time(error: Exception) -> TransactionConflict:
    return TransactionConflict(
        f"the transaction was rolled back: it lost its place ({error}) and did not get the write lease again in time;"
        " nothing of it was committed and it can be retried as a whole"
    )
