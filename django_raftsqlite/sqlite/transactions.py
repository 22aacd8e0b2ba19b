"""One transaction of an entry, run in its savepoint on the apply connection; and the SQLite transaction around."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import apsw

from . import pragmas
from .changes import Recorder, feed_outcome, feed_schema
from .connections import Connection
from .entry import Outcome, RequestId, Result, Statement, Statements, Status, Transaction, result_digest
from .errors import Damaged, NodeFault, StatementError
from .execution import result_of, run
from .parts import StoredStatements
from .rowids import Rowids
from .text import CONTROL, DDL, tokens, traits

_RETRIED = (apsw.BusyError, apsw.LockedError, apsw.InterruptError, apsw.ProtocolError)
_DEFERRED_FAILED = StatementError(apsw.SQLITE_CONSTRAINT_FOREIGNKEY, "FOREIGN KEY constraint failed")
_NO_ROWID_LEFT = StatementError(apsw.SQLITE_FULL, "database or disk is full: the table's largest rowid is in use")


@dataclass(slots=True)
class Decision:
    """What became of a transaction. ``changed``: rows or schema may be different now, so it makes a new version.

    ``rowcounts`` are those of its statements; ``changes`` (bytes) stand for what it changed, in the digest.
    """

    outcome: Outcome
    rowcounts: list[int] = field(default_factory=list)
    changed: bool = False
    changes: bytes = b""

    def feed(self, digest: hashlib.blake2b, request: RequestId) -> None:
        feed_outcome(digest, request, self.outcome, self.rowcounts)
        digest.update(self.changes)


def verbs(statements: Statements) -> frozenset[str]:
    """What the statements do: INSERT, CREATE, VACUUM..."""
    if isinstance(statements, StoredStatements):
        return statements.verbs
    return frozenset(traits(statement.sql).verb for statement in statements)


class TransactionLost(Exception):
    """The item at ``position`` made SQLite roll back everything.

    ``decision`` is what became of it. None: that is to be found out by running it once more, as ``suspected``.
    """

    def __init__(self, position: int, decision: Decision | None) -> None:
        super().__init__(position)
        self.position = position
        self.decision = decision


def fault(error: Exception) -> NodeFault:
    """``error`` as a fault of this node."""
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return Damaged(f"SQLite finds the database file damaged: {error}")
    return NodeFault(f"{type(error).__name__}: {error}", retry=isinstance(error, _RETRIED))


class Runner:
    """Runs transactions on the apply connection. Between two of them, nothing that a statement can see is left over.

    `_current` mirrors the state pragmas as they are set now: to set one expires every prepared statement, so it is
    done only where the value changes. None: not known. ``statement`` is the text of the one that runs, or ran last.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._recorder = Recorder(connection)
        self._rowids = Rowids(connection)
        self._current: dict[str, int] | None = None
        self._changed_schema = False
        self.statement = ""

    def begin(self, state: Mapping[str, int]) -> None:
        """Begin the SQLite transaction of an entry; ``state`` are the pragmas of a solo one."""
        self._set("foreign_keys", state.get("foreign_keys", pragmas.STATE["foreign_keys"]))
        self._connection.execute("BEGIN IMMEDIATE")
        self._changed_schema = False

    def commit(self) -> None:
        self._connection.execute("COMMIT")
        self._forget_deferral()

    def abandon(self) -> None:
        """Roll back what there is, and all that memory holds of it."""
        self._recorder.stop()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._forget_deferral()
        if self._changed_schema:
            self._reload_schema()

    def forget_all(self) -> None:
        """The whole content of the file is another."""
        self._rowids.forget()
        self._reload_schema()

    def close(self) -> None:
        self._recorder.stop()

    def vacuum(self, transaction: Transaction) -> Decision:
        """Run a solo transaction that is a VACUUM, which has no SQLite transaction around it."""
        if len(transaction.statements) != 1:
            return _failed(StatementError(apsw.SQLITE_ERROR, "cannot VACUUM from within a transaction"))
        try:
            (statement,) = transaction.statements
            self.statement = statement.sql
            result = run(self._connection, statement)
        except Exception as error:
            known = result_of(error)
            if known is None:
                raise
            return _failed(known)
        finally:
            self._reload_schema()
        return Decision(Outcome(Status.DONE, result), [result.rowcount], changed=True)

    def run(self, position: int, transaction: Transaction, *, solo: bool, suspected: bool) -> Decision:
        """Run a transaction in a savepoint of its own, also when it is alone: virtual tables notice.

        ``suspected``: it failed with SQLITE_FULL a moment ago, which only an exhausted AUTOINCREMENT can excuse.
        Raises TransactionLost, NodeFault, or what SQLite raises where that is a fault of the node.
        """
        wanted = pragmas.STATE | dict(transaction.pragmas)
        if not solo and (transaction.solo or wanted["foreign_keys"] != pragmas.STATE["foreign_keys"]):
            return _failed(StatementError(apsw.SQLITE_ERROR, "this transaction must be alone in its log entry"))
        definitions = not DDL.isdisjoint(verbs(transaction.statements))
        connection = self._connection
        connection.execute("SAVEPOINT _raftsqlite")
        for name, value in wanted.items():
            if name != "foreign_keys":
                self._set(name, value)
        connection.counters.restart()
        if definitions:
            self._changed_schema = True
        else:
            self._recorder.start()
        try:
            decision = self._run_in_savepoint(position, transaction, suspected)
            if decision.changed:
                digest = hashlib.blake2b(digest_size=32)
                if definitions:
                    feed_schema(digest, connection)
                elif self._recorder.feed(digest):
                    self._rowids.forget()
                decision.changes = digest.digest()
        finally:
            self._recorder.stop()
        connection.execute("RELEASE _raftsqlite")
        if definitions:
            self._reload_schema()
        return decision

    def _run_in_savepoint(self, position: int, transaction: Transaction, suspected: bool) -> Decision:
        connection = self._connection
        answer: Result | None = None
        rowcounts: list[int] = []
        autocommit = transaction.base is None and len(transaction.statements) == 1
        for statement in transaction.statements:
            seen: Result | StatementError
            try:
                seen = self._run_statement(position, statement, suspected)
            except _Undone as undone:
                seen = undone.error
                if autocommit and undone.kept:
                    # Outside of a transaction, SQLite keeps what OR FAIL had done by then, unless a deferred foreign
                    # key is open. Everything else that fails has undone itself.
                    if self._open_foreign_keys():
                        self._undo()
                        return _failed(_DEFERRED_FAILED)
                    return _failed(seen, changed=connection.counters.total_changes() != 0)
            code, result = (seen.code, None) if isinstance(seen, StatementError) else (0, seen)
            if statement.expect is not None and transaction.base is not None:
                if result_digest(code, result) != statement.expect:
                    self._undo()
                    return Decision(
                        Outcome(Status.REPLAY_DIFFERS, message=f"another result on replay: {statement.sql[:200]}")
                    )
            elif isinstance(seen, StatementError):
                self._undo()
                return _failed(seen)
            if result is not None:
                rowcounts.append(result.rowcount)
                answer = result if autocommit else None
        # RELEASE of a savepoint within a transaction does not check what COMMIT would.
        if self._open_foreign_keys():
            self._undo()
            return _failed(_DEFERRED_FAILED)
        return Decision(Outcome(Status.DONE, answer), rowcounts, changed=True)

    def _run_statement(self, position: int, statement: Statement, suspected: bool) -> Result:
        """Raises _Undone for an error that is the statement's result."""
        connection = self._connection
        self.statement = statement.sql
        verb = traits(statement.sql).verb
        if (verb in CONTROL and not _is_rollback_to(statement.sql)) or verb == "VACUUM":
            raise _Undone(StatementError(apsw.SQLITE_ERROR, f"{verb} cannot be part of a replicated transaction"))
        if suspected and self._rowids.exhausted(statement.sql):
            raise _Undone(_NO_ROWID_LEFT)
        try:
            result = run(connection, statement)
        except apsw.FullError as error:
            if suspected:
                raise
            raise TransactionLost(position, None) from error
        except Exception as error:
            known = result_of(error)
            if known is None:
                raise
            if not connection.in_transaction:
                if not isinstance(error, apsw.ConstraintError):
                    raise NodeFault(f"SQLite gave the transaction up: {error}") from error
                raise TransactionLost(position, _failed(known)) from error
            raise _Undone(known, kept=isinstance(error, apsw.Error)) from error
        if result.lastrowid is not None and self._rowids.unforeseeable(*statement[:2], result.lastrowid):
            raise _Undone(_NO_ROWID_LEFT)
        if not connection.in_transaction:
            raise NodeFault(f"a statement ended the transaction: {statement.sql[:200]}")
        return result

    def _open_foreign_keys(self) -> bool:
        return self._connection.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0] != 0

    def _undo(self) -> None:
        self._connection.execute("ROLLBACK TO _raftsqlite")

    def _set(self, name: str, value: int) -> None:
        if self._current is None:
            self._current = {}
        if self._current.get(name) != value:
            self._connection.execute(f"PRAGMA {name} = {value:d}")
            self._current[name] = value

    def _forget_deferral(self) -> None:
        # "Automatically switched off at each COMMIT or ROLLBACK" (https://sqlite.org/pragma.html), but, unlike by the
        # pragma, without expiring the statements that were prepared while it was on. Those have no statement journal
        # for a foreign key that fails at once, and would keep the row. Not known: so the next transaction sets it.
        if self._current is not None and self._current.get("defer_foreign_keys") != 0:
            self._current.pop("defer_foreign_keys", None)

    def _reload_schema(self) -> None:
        """Read schema and statistics from the file, as a node that starts now would.

        ANALYZE stays in memory when it is rolled back, and in a batch nothing else would undo it. A definition may
        also have set pragmas.
        """
        self._connection.execute("PRAGMA writable_schema = RESET")
        self._recorder.schema_changed()
        self._rowids.forget()
        self._current = None


class _Undone(Exception):
    """A statement failed with its own error; ``kept``: what it had done by then may still be there."""

    def __init__(self, error: StatementError, *, kept: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.kept = kept


def _is_rollback_to(sql: str) -> bool:
    words = [token.text.upper() for token in tokens(sql)]
    return words[0] == "ROLLBACK" and "TO" in words


def _failed(error: StatementError, *, changed: bool = False) -> Decision:
    return Decision(Outcome(Status.ERROR, None, error.code, error.message), changed=changed)
