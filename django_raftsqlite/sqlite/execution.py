"""How a statement is run: the same way on scratch and on the apply connection, so that results can be compared."""

from __future__ import annotations

import apsw

from . import clock
from .connections import Connection
from .entry import Column, Result, Statement
from .errors import MISSING, StatementError, convert_error
from .tables import forget_own_statistics
from .text import traits

# https://sqlite.org/rescode.html. Errors that follow from the statement and the data alone, on every machine.
_RESULTS = frozenset(
    {apsw.SQLITE_ERROR, apsw.SQLITE_CONSTRAINT, apsw.SQLITE_MISMATCH, apsw.SQLITE_RANGE, apsw.SQLITE_TOOBIG}
)
# A virtual table's refusals of a statement: FTS5's 'integrity-check' and 'delete', R-Tree's change while it is read.
_EXTENDED_RESULTS = frozenset({apsw.SQLITE_CORRUPT_VTAB, apsw.SQLITE_LOCKED_VTAB})
# What a user function raises because of the machine or the depth of its caller's stack, not of its arguments.
_MACHINE = (MemoryError, RecursionError, OSError, ImportError, SystemError)


def run(connection: Connection, statement: Statement) -> Result:
    """Run one statement to its end under its own clock and seed, and keep all its rows.

    Raises what APSW, or a user function, raises.
    """
    sql, parameters, moment, seed = statement[:4]
    kind = traits(sql)
    columns: tuple[Column, ...] | None = None

    def describe(cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
        # The only moment at which SQLite tells the columns of a result without rows.
        nonlocal columns
        columns = tuple(Column(*column) for column in cursor.get_description()) or None
        return True

    clock.enter(moment, seed)
    try:
        cursor = connection.cursor()
        if kind.may_return:
            cursor.exec_trace = describe
        # To the end: SQLite runs a statement only as far as its rows are asked for.
        rows = cursor.execute(sql, parameters).fetchall()
    finally:
        clock.leave()
    if kind.verb == "ANALYZE":
        with connection.counters.uncounted():
            forget_own_statistics(connection)
    if not kind.dml:
        return Result(columns, rows)
    changes = connection.changes()
    return Result(columns, rows, changes, connection.last_insert_rowid() if kind.insert and changes else None)


def result_of(exc: BaseException) -> StatementError | None:
    """The error as a result that every node gets alike; None where it is this machine's own trouble.

    An allow-list: what is not known to follow from the log is a fault of the node. A parameter that does not
    bind follows from it (the author was to refuse it), and so does what a registered function raises.
    """
    if isinstance(exc, _MACHINE) or not isinstance(exc, Exception):
        return None
    error = convert_error(exc)
    if error.kind == "function":
        return error
    if error.kind != "sqlite":
        return StatementError(apsw.SQLITE_RANGE, error.message, error.kind)
    primary = error.code & 0xFF
    missing = primary == apsw.SQLITE_ERROR and any(start in error.message for start in MISSING)
    known = error.code in _EXTENDED_RESULTS or (primary in _RESULTS and not missing)
    return error if known else None
