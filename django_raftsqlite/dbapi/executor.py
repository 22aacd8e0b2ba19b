"""Decides for each statement what is read here, what waits for a transaction, and what goes through the node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import apsw

from ..exceptions import (
    CommitOutcomeUnknown,
    Error,
    NotSupportedError,
    ProgrammingError,
    TransactionConflict,
)
from ..node.api import Node
from ..sqlite import pragmas
from ..sqlite.classify import Classified, Kind, classify
from ..sqlite.entry import Parameters, Result, Statement
from ..sqlite.errors import StatementError
from ..sqlite.text import DML, traits
from .errors import from_reader, from_statement, operational
from .freshness import LOCAL, Freshness, ensure
from .readers import Readers
from .reading import Answer, Reader, bind, moment, select
from .script_text import statements
from .transaction import Transaction
from .types import adapt_all


class Executor:
    """Runs the statements of one Connection, whose lock the caller holds.

    All state that changes what a statement means (state pragmas, open savepoints, the transaction) is kept here and
    not on a SQLite connection, because each statement may run on another one. ``local_functions`` (lower case) are
    registered on this Connection's readers alone.
    """

    def __init__(
        self,
        node: Node,
        readers: Readers,
        *,
        timeout: float,
        reads: Callable[[], Freshness] | None,
        transaction_mode: str | None,
        committed: Callable[[], None] | None = None,
    ) -> None:
        self.timeout = timeout
        self.transaction: Transaction | None = None
        self.isolation_level: str | None = None
        self.local_functions: frozenset[str] = frozenset()
        self.trace: Callable[[str], object] | None = None
        self.total_changes = 0
        self._node = node
        self._readers = readers
        self._reads = reads
        self._committed = committed or (lambda: None)
        self._transaction_mode = transaction_mode or ""
        self._pragmas: dict[str, int] = {}

    def finish(self, action: Callable[[], None]) -> None:
        """Run what may end the transaction, and forget the transaction if it did."""
        transaction = self._opened
        try:
            action()
        except BaseException as error:
            self._note_unknown(error)
            raise
        finally:
            if transaction.over:
                self.transaction = None
            if transaction.committed:
                self._committed()

    def _note_unknown(self, error: BaseException) -> None:
        # What is no error of the driver's own interrupted it: KeyboardInterrupt, a timeout's signal.
        if isinstance(error, CommitOutcomeUnknown) or not isinstance(error, Error):
            self._committed()

    def run(self, sql: str, parameters: Any) -> Answer:
        """Run one statement."""
        home = self._readers.home or self._readers.current()
        try:
            classified = classify(home.connection, sql, self.local_functions)
        except Exception as error:
            classified = self._classified_by_text(sql, error)
        if self.trace is not None:
            self.trace(sql)
        if self.transaction is None and classified.for_update:
            # A lock that ended with its own statement would be none; sqlite3 has no such statement to begin at.
            if self.isolation_level is None:
                return self._read_locked(sql, parameters, classified)
            self._begin(self.isolation_level or self._transaction_mode, sql)
        transaction = self.transaction
        if transaction is not None:
            if transaction.lost is not None and classified.kind is not Kind.ROLLBACK:
                transaction.check()
            if classified.kind is Kind.READ:
                return self._read_in(transaction, sql, parameters, classified)
        elif classified.kind is Kind.READ:
            self._freshen()
            if home.open or not self._readers.serves(home):
                home = self._readers.idle()
            return select(home, sql, parameters, self._readers)
        return _RUN[classified.kind](self, sql, parameters, classified)

    def run_many(self, sql: str, sets: Iterable[Any]) -> int:
        """Run a DML statement for each set of parameters; returns the sum of rowcounts."""
        if not isinstance(sql, str):
            raise TypeError(f"executemany() argument 1 must be str, not {type(sql).__name__}")
        if traits(sql).verb not in DML:
            raise ProgrammingError("executemany() can only execute DML statements.")
        total = 0
        for parameters in sets:
            answer = self.run(sql, parameters)
            total += max(answer.rowcount, 0)
        return total

    # ---- statements by kind

    def _read_in(self, transaction: Transaction, sql: str, parameters: Any, classified: Classified) -> Answer:
        if classified.for_update:
            transaction.write(self._pragmas, reason=sql, nowait=classified.nowait)
        if transaction.session is not None:
            if self._reads is not None:
                self._reads()  # scratch is as new as any level demands, but who asks is to know of the read
            return _answer(self._execute_in(transaction, sql, parameters, writes=False))
        reader = transaction.reader
        if reader is None:
            reader = self._open_snapshot(transaction)
        elif not self._readers.serves(reader):
            raise TransactionConflict(
                "this node's database was replaced by that of a sound member after this transaction began to read"
            )
        if reader.private:
            transaction.record_unrepeatable(sql)
            return select(reader, sql, parameters, self._readers)
        adapted = self._adapted(sql, parameters)
        read = transaction.record(sql, adapted)
        return select(reader, sql, adapted, self._readers, read)

    def _read_locked(self, sql: str, parameters: Any, classified: Classified) -> Answer:
        """A locking read in autocommit: it waits for the lock (or with NOWAIT does not), and gives it back."""
        self._begin("", sql)
        transaction = self._opened
        try:
            answer = self._read_in(transaction, sql, parameters, classified)
        except BaseException:
            self.finish(transaction.rollback)
            raise
        self.finish(transaction.commit)
        return answer

    def _write(self, sql: str, parameters: Any, classified: Classified) -> Answer:
        if self.transaction is None and self.isolation_level is not None and classified.dml:
            self._begin(self.isolation_level or self._transaction_mode, sql)
        transaction = self.transaction
        if transaction is None:
            return self._submit(sql, parameters, classified)
        transaction.write(self._pragmas, reason=sql)
        result = self._execute_in(transaction, sql, parameters, writes=True)
        return self._written(result, classified)

    def _submit(self, sql: str, parameters: Any, classified: Classified) -> Answer:
        statement = Statement(sql, bind(self._readers.current(), sql, parameters), *moment())
        solo = classified.solo or not self._pragmas.get("foreign_keys", 1)
        try:
            result = self._node.submit(statement, dict(self._pragmas), solo=solo, timeout=self.timeout)
        except StatementError as error:
            raise from_statement(error) from error
        except BaseException as error:
            self._note_unknown(error)
            raise
        finally:
            self._pragmas.pop("defer_foreign_keys", None)
        self._committed()
        return self._written(result, classified)

    def _written(self, result: Result, classified: Classified) -> Answer:
        answer = _answer(result)
        if classified.dml:
            answer.rowcount = result.rowcount
            self.total_changes += max(result.rowcount, 0)
        if classified.insert:
            answer.lastrowid = result.lastrowid
        return answer

    def _local(self, sql: str, parameters: Any, classified: Classified) -> Answer:
        transaction = self.transaction
        if transaction is not None and classified.private and classified.keyword not in {"ATTACH", "DETACH"}:
            if transaction.session is not None or transaction.in_savepoint:
                raise NotSupportedError(
                    "Temporary and attached tables exist on this connection only; they cannot be written in a"
                    " transaction that has written to the database, or within a savepoint."
                )
            reader = transaction.reader or self._open_snapshot(transaction)
        else:
            reader = self._readers.idle()
        if classified.private:
            reader.reusable = False
        if classified.pragma is not None and classified.pragma[1] is None and not classified.private:
            sql = f"PRAGMA {classified.pragma[0]}"
        answer = select(reader, sql, parameters, self._readers)
        if answer.stream is not None:
            answer.stream.drain()
        if classified.dml:
            answer.rowcount = reader.connection.changes()
        if classified.insert:
            answer.lastrowid = reader.connection.last_insert_rowid()
        return answer

    def _state_pragma(self, _sql: str, _parameters: Any, classified: Classified) -> Answer:
        assert classified.pragma is not None
        name, value = classified.pragma
        transaction = self.transaction
        deferring = name == "defer_foreign_keys" and transaction is not None
        if value is None:
            now = self._pragmas.get(name, pragmas.STATE[name])
            if deferring and transaction is not None:
                now = int(transaction.defer_foreign_keys)
            return Answer(((name, None),), [(now,)])
        on = pragmas.boolean(value) or 0
        if transaction is not None:
            if name == "foreign_keys":
                return Answer()  # a no-op within a transaction: https://sqlite.org/pragma.html#pragma_foreign_keys
            if transaction.session is not None:
                self._execute_in(transaction, f"PRAGMA {name} = {on}", None, writes=True, undone=False)
        if deferring and transaction is not None:
            transaction.defer_foreign_keys = bool(on)
            return Answer()
        # None of them changes what a read gives, so readers are not told.
        if on == pragmas.STATE[name]:
            self._pragmas.pop(name, None)
        else:
            self._pragmas[name] = on
        return Answer()

    def _begin_statement(self, sql: str, _parameters: Any, classified: Classified) -> Answer:
        if self.transaction is not None:
            raise operational("cannot start a transaction within a transaction")
        self._begin(classified.begin_mode or "", sql)
        return Answer()

    def _begin(self, mode: str, reason: str, *, implicit: bool = False) -> None:
        transaction = Transaction(self._node, self._readers, self.timeout, implicit=implicit)
        transaction.defer_foreign_keys = bool(self._pragmas.pop("defer_foreign_keys", 0))
        if mode.upper() in {"IMMEDIATE", "EXCLUSIVE"}:
            transaction.write(self._pragmas, reason=reason)
        self.transaction = transaction

    def _commit_statement(self, _sql: str, _parameters: Any, _classified: Classified) -> Answer:
        if self.transaction is None:
            raise operational("cannot commit - no transaction is active")
        self.finish(self.transaction.commit)
        return Answer()

    def _rollback_statement(self, _sql: str, _parameters: Any, _classified: Classified) -> Answer:
        if self.transaction is None:
            raise operational("cannot rollback - no transaction is active")
        self.finish(self.transaction.rollback)
        return Answer()

    def _savepoint(self, sql: str, _parameters: Any, classified: Classified) -> Answer:
        name = classified.savepoint or ""
        if classified.kind is Kind.SAVEPOINT:
            if self.transaction is None:
                self._begin("", sql, implicit=True)
            action = self._opened.savepoint
        elif self.transaction is None:
            raise operational(f"no such savepoint: {name}")
        else:
            action = self._opened.release if classified.kind is Kind.RELEASE else self._opened.rollback_to
        self.finish(lambda: action(name))
        return Answer()

    def _empty(self, _sql: str, _parameters: Any, _classified: Classified) -> Answer:
        return Answer()

    # ---- transactions

    @property
    def _opened(self) -> Transaction:
        assert self.transaction is not None
        return self.transaction

    def _execute_in(
        self, transaction: Transaction, sql: str, parameters: Any, *, writes: bool, undone: bool = True
    ) -> Result:
        adapted = self._adapted(sql, parameters)
        try:
            return transaction.execute(sql, adapted, writes=writes, undone=undone)
        except Exception as error:
            self._explain(error)
            raise
        finally:
            if transaction.over:
                self.transaction = None

    def _explain(self, error: Exception) -> None:
        """Raise NotSupportedError for what the session lacks because only this connection has it."""
        text = str(error)
        if self._readers.current().private and "no such table" in text:
            what = "temporary and attached tables exist"
        elif self.local_functions and ("no such function" in text or "no such collation" in text):
            what = "functions and collations that are not registered with OPTIONS['functions'] exist"
        else:
            return
        raise NotSupportedError(
            f"{text}; {what} on this connection only and cannot be used after the first write of a transaction"
        ) from error

    def _adapted(self, sql: str, parameters: Any) -> Parameters:
        if isinstance(parameters, dict) or (parameters is not None and hasattr(parameters, "keys")):
            try:
                bound: Parameters = bind(self._readers.current(), sql, parameters)
            except Exception as error:
                # The transaction may have made the table that the reader does not know; whoever runs it will say.
                if not isinstance(error.__cause__, apsw.SQLError):
                    raise
            else:
                return bound
        return adapt_all(parameters) or None

    def _freshen(self) -> None:
        if self._reads is not None and (freshness := self._reads()) is not LOCAL:
            ensure(freshness, self._node, self._readers, self.timeout)

    def _open_snapshot(self, transaction: Transaction) -> Reader:
        self._freshen()
        reader = self._readers.idle()
        transaction.open_snapshot(reader)
        return reader

    def _classified_by_text(self, sql: Any, error: Exception) -> Classified:
        """The class of a statement that this node's committed state cannot prepare.

        Within a transaction the session has the last word: its schema may be another one, and an error that was
        found in a snapshot would be an answer that is missing in the script.
        """
        if not isinstance(sql, str):
            raise TypeError(f"execute() argument 1 must be str, not {type(sql).__name__}") from error
        transaction = self.transaction
        if not isinstance(error, apsw.SQLError) or transaction is None:
            raised = from_reader(error)
            raise raised from (None if raised is error else error)
        if len(list(statements(sql))) > 1:
            raise ProgrammingError("You can only execute one statement at a time.")
        text = traits(sql)
        if text.verb in {"SELECT", "VALUES", "EXPLAIN"}:
            return Classified(Kind.READ, text.verb)
        return Classified(Kind.WRITE, text.verb, dml=text.dml, insert=text.insert)


def _answer(result: Result) -> Answer:
    return Answer(result.columns or (), result.rows)


_RUN: dict[Kind, Callable[[Executor, str, Any, Classified], Answer]] = {
    Kind.WRITE: Executor._write,
    Kind.BEGIN: Executor._begin_statement,
    Kind.COMMIT: Executor._commit_statement,
    Kind.ROLLBACK: Executor._rollback_statement,
    Kind.SAVEPOINT: Executor._savepoint,
    Kind.RELEASE: Executor._savepoint,
    Kind.ROLLBACK_TO: Executor._savepoint,
    Kind.STATE_PRAGMA: Executor._state_pragma,
    Kind.LOCAL: Executor._local,
    Kind.EMPTY: Executor._empty,
}
