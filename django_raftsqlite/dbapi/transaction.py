"""A transaction from BEGIN to COMMIT: a read snapshot that becomes a write session at its first write."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import NamedTuple

import apsw

from ..exceptions import Error, HostLost, OperationalError, TransactionConflict, Unavailable
from ..node.api import Node, WriteSession
from ..sqlite.entry import Base, Parameters, Result, Statement, result_digest
from ..sqlite.errors import StatementError
from ..sqlite.tables import read_base
from .errors import from_statement, operational
from .readers import Readers
from .reading import Reader, moment
from .script import Read

SCRIPT_LIMIT = 10_000
"""Reads of one transaction that are remembered; beyond it, a write after a concurrent commit is a conflict."""

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
    session* (``session`` set; ``reader`` no longer in a transaction), and may skip the second. Invariants: the
    ``script`` holds every read of the snapshot, in order; ``net`` holds what COMMIT sends and never a
    write that was rolled back; after ``lost`` was set nothing but a rollback is accepted; after ``over`` became
    true the Connection is in autocommit again and the lease is free; ``committed`` says that it changed the database.

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
        self.lost: Error | None = None
        self.over = False
        self.committed = False
        self.defer_foreign_keys = False
        self._script: list[Read] = []
        self._forgotten = 0
        self._unrepeatable: str | None = None
        self._net: list[NetWrite] = []
        self._savepoints: list[Savepoint] = []

    def _moment(self) -> tuple[int, int]:
        """Clock and seed of the next statement; one draw of the system's randomness is enough for a transaction."""
        self._seed = (self._seed + _STEP) & _LARGEST_SEED
        return time.time_ns() // 1_000_000, self._seed

    def check(self) -> None:
        """Raises TransactionConflict when the transaction was lost earlier."""
        if self.lost is not None:
            raise TransactionConflict(
                f"this transaction was rolled back already ({self.lost}); end it with ROLLBACK and retry it whole"
            ) from self.lost

    # ---- reads in the snapshot

    def open_snapshot(self, reader: Reader) -> None:
        """Begin reading at this node's newest state, on a reader without open statements."""
        reader.connection.execute("BEGIN")
        # As a half-read SELECT does: what is no part of the transaction must run elsewhere.
        reader.open += 1
        self.reader = reader
        self.base = read_base(reader.connection)

    def record(self, sql: str, parameters: Parameters) -> Read:
        """The next read of the snapshot, as an item of the script."""
        read = Read(sql, parameters, *self._moment())
        if len(self._script) < SCRIPT_LIMIT:
            self._script.append(read)
        else:
            self._forgotten += 1
        return read

    def record_unrepeatable(self, sql: str) -> None:
        """A read that no other connection can run: it used temporary or attached tables."""
        self._unrepeatable = self._unrepeatable or sql

    def _close_snapshot(self, *, undo: bool = False) -> None:
        reader, self.reader = self.reader, None
        if reader is None:
            return
        # SQLite may have ended it already. COMMIT, not ROLLBACK: SELECTs that are still being read go on.
        if reader.connection.in_transaction:
            reader.connection.execute("ROLLBACK" if undo else "COMMIT")
        reader.open -= 1
        self._readers.finished(reader)

    # ---- the write session

    def write(self, pragmas: Mapping[str, int], *, reason: str, nowait: bool = False) -> None:
        """Take the write lease and go on from what was read, if that is still what a read gives.

        Raises TransactionConflict (the transaction is lost), or LeaseTimeout and Unavailable (it goes on as it is).
        """
        if self.session is not None:
            return
        self._readers.drain()
        session = self._node.begin(dict(pragmas), reason=reason, timeout=self._timeout, nowait=nowait)
        try:
            if self.base is not None and session.base != self.base:
                self._read_again(session)
            if self.defer_foreign_keys:
                self._net.append(NetWrite(_run(session, "PRAGMA defer_foreign_keys = 1"), undone=False))
            for place, savepoint in enumerate(self._savepoints):
                _run(session, f"SAVEPOINT {_quoted(savepoint.name)}")
                self._savepoints[place] = savepoint._replace(mark=len(self._net))
        except BaseException as error:
            session.rollback()
            if isinstance(error, TransactionConflict):
                self._lose(error)
            raise
        self.session = session
        self._close_snapshot()

    def _read_again(self, session: WriteSession) -> None:
        """Run the script on the session and compare. Raises TransactionConflict naming what changed."""
        if self._unrepeatable is not None:
            raise _conflict(self._unrepeatable, "used temporary or attached tables, and cannot be checked again")
        if self._forgotten:
            raise _conflict(
                self._script[-1].sql, f"is read {SCRIPT_LIMIT} of this transaction, and no more can be checked again"
            )
        for read in self._script:
            try:
                result = session.execute(Statement(read.sql, read.parameters, read.clock, read.seed))
            except StatementError as error:
                same = read.same_failure(error)
            else:
                same = read.same_rows(result.rows)
            if not same:
                raise _conflict(read.sql, "would be answered differently now")

    def execute(self, sql: str, parameters: Parameters, *, writes: bool, undone: bool = True) -> Result:
        """Run a statement on the session. Raises PEP 249's exceptions; see ``over`` and ``lost`` afterwards."""
        assert self.session is not None
        statement = Statement(sql, parameters, *self._moment())
        try:
            result = self.session.execute(statement)
        except StatementError as error:
            if not self.session.in_transaction:
                self._end()
            elif writes and error.code & 0xFF == apsw.SQLITE_CONSTRAINT:
                # OR FAIL and RAISE(FAIL) keep the rows before the one that failed. Whether there were any need not
                # be known: a statement that kept nothing fails on every node alike and changes nothing.
                expect = result_digest(error.code, None)
                self._net.append(NetWrite(statement._replace(expect=expect), undone))
            raise from_statement(error) from error
        except (TransactionConflict, HostLost, Unavailable) as error:
            self._lose(error)
            raise
        if writes:
            self._net.append(NetWrite(statement._replace(expect=result_digest(0, result)), undone))
        return result

    # ---- savepoints

    @property
    def in_savepoint(self) -> bool:
        """Whether a savepoint is open."""
        return bool(self._savepoints)

    def savepoint(self, name: str) -> None:
        """SAVEPOINT; virtual until there is a session."""
        if self.session is not None:
            self.execute(f"SAVEPOINT {_quoted(name)}", None, writes=False)
        self._savepoints.append(Savepoint(name.lower(), len(self._net)))

    def release(self, name: str) -> None:
        """RELEASE: its writes become the enclosing one's, or are committed."""
        place = self._place(name)
        if self._implicit and place == 0:
            self.commit()
            return
        if self.session is not None:
            self.execute(f"RELEASE {_quoted(name)}", None, writes=False)
        del self._savepoints[place:]

    def rollback_to(self, name: str) -> None:
        """ROLLBACK TO: its net writes are dropped, its reads stay in the script; it remains open."""
        place = self._place(name)
        if self.session is not None:
            self.execute(f"ROLLBACK TO {_quoted(name)}", None, writes=False)
        mark = self._savepoints[place].mark
        self._net[mark:] = [write for write in self._net[mark:] if not write.undone]
        del self._savepoints[place + 1 :]

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
        session = self.session
        if session is not None and any(write.undone for write in self._net):
            try:
                session.commit([write.statement for write in self._net], timeout=self._timeout)
                self.committed = True
            except StatementError as error:
                if not session.in_transaction:
                    self._end()
                raise from_statement(error) from error
            except BaseException:
                self._end()
                raise
        self._end()

    def rollback(self) -> None:
        """ROLLBACK, which always works."""
        self._end(undo=True)

    def _lose(self, error: OperationalError) -> None:
        self.lost = error
        if self.session is not None:
            self.session.rollback()
        self._close_snapshot(undo=True)

    def _end(self, *, undo: bool = False) -> None:
        self.over = True
        if self.session is not None:
            self.session.rollback()
        self._close_snapshot(undo=undo)


def _run(session: WriteSession, sql: str) -> Statement:
    statement = Statement(sql, None, *moment())
    result = session.execute(statement)
    return statement._replace(expect=result_digest(0, result))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _conflict(sql: str, why: str) -> TransactionConflict:
    shown = sql if len(sql) <= 200 else sql[:197] + "..."
    return TransactionConflict(
        f"another transaction was committed since this one began, and a statement of it {why}: {shown!r};"
        " the transaction was rolled back and can be retried as a whole"
    )
