"""What SQLite and the node report, as PEP 249's exceptions, class by class as CPython's sqlite3 maps them."""

from __future__ import annotations

import apsw

from ..exceptions import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from ..sqlite.errors import StatementError, convert_error

_BY_PRIMARY_CODE: dict[int, type[Error]] = {
    apsw.SQLITE_INTERNAL: InternalError,
    apsw.SQLITE_NOTFOUND: InternalError,
    apsw.SQLITE_ERROR: OperationalError,
    apsw.SQLITE_PERM: OperationalError,
    apsw.SQLITE_ABORT: OperationalError,
    apsw.SQLITE_BUSY: OperationalError,
    apsw.SQLITE_LOCKED: OperationalError,
    apsw.SQLITE_READONLY: OperationalError,
    apsw.SQLITE_INTERRUPT: OperationalError,
    apsw.SQLITE_IOERR: OperationalError,
    apsw.SQLITE_FULL: OperationalError,
    apsw.SQLITE_CANTOPEN: OperationalError,
    apsw.SQLITE_PROTOCOL: OperationalError,
    apsw.SQLITE_EMPTY: OperationalError,
    apsw.SQLITE_SCHEMA: OperationalError,
    apsw.SQLITE_CORRUPT: DatabaseError,
    apsw.SQLITE_TOOBIG: DataError,
    apsw.SQLITE_CONSTRAINT: IntegrityError,
    apsw.SQLITE_MISMATCH: IntegrityError,
    apsw.SQLITE_MISUSE: InterfaceError,
    apsw.SQLITE_RANGE: InterfaceError,
}

_BY_KIND: dict[str, type[Error]] = {
    "binding": ProgrammingError,
    "unicode": OperationalError,
    "function": OperationalError,
    "unsupported": NotSupportedError,
}


def code_name(code: int) -> str:
    """SQLite's own name of a result code, extended or primary."""
    name = apsw.mapping_extended_result_codes.get(code) or apsw.mapping_result_codes.get(code)
    return name if isinstance(name, str) else "SQLITE_ERROR"


def coded(error: Error, code: int) -> Error:
    """The error with SQLite's code and name on it."""
    error.sqlite_errorcode = code
    error.sqlite_errorname = code_name(code)
    return error


def operational(message: str) -> Error:
    """An error that SQLite would have reported with SQLITE_ERROR."""
    return coded(OperationalError(message), apsw.SQLITE_ERROR)


def from_statement(error: StatementError) -> Exception:
    """The exception that a statement's own error is raised as."""
    if error.code:
        primary = error.code & 0xFF
        if primary == apsw.SQLITE_NOMEM:
            return MemoryError(error.message)
        return coded(_BY_PRIMARY_CODE.get(primary, DatabaseError)(error.message), error.code)
    if error.kind == "overflow":
        return OverflowError(error.message)
    return _BY_KIND.get(error.kind, DatabaseError)(error.message)


def from_reader(error: Exception) -> Exception:
    """The exception for what APSW raised while a statement was prepared, bound or stepped.

    An integer beyond 64 bits and a lone surrogate raise Python's own errors when they are bound, as on
    :mod:`sqlite3`; raised by a Python function in the SQL they are that function's failure.
    """
    if isinstance(error, Error | MemoryError | RecursionError):
        return error
    converted = convert_error(error)
    if converted.kind in {"overflow", "unicode"} and isinstance(error, OverflowError | UnicodeEncodeError):
        return error
    return from_statement(converted)
