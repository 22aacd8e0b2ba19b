"""The exceptions of every layer, as PEP 249 draws them.

::

    Exception
    ├── Warning
    └── Error
        ├── InterfaceError
        └── DatabaseError
            ├── DataError
            ├── OperationalError
            │   ├── Unavailable             no leader, no quorum, or too slow
            │   ├── LeaseTimeout            "database is locked"
            │   ├── TransactionConflict     the transaction may be retried
            │   ├── CommitOutcomeUnknown    it may or may not have been committed
            │   └── HostLost                the process that hosted the node ended
            ├── IntegrityError
            ├── InternalError
            ├── ProgrammingError
            └── NotSupportedError

This module imports nothing, so that every layer may raise what a caller can catch.
"""

from __future__ import annotations

from typing import Literal


class Warning(Exception):  # noqa: A001, N818, RUF100 - the name is PEP 249's
    """Something the caller should know, such as truncated data."""


class Error(Exception):
    """The base of all errors of this driver.

    ``sqlite_errorcode`` (int, SQLite's extended result code) and ``sqlite_errorname`` (str, such as
    ``"SQLITE_CONSTRAINT_UNIQUE"``) are set where SQLite gave a code, as on :mod:`sqlite3`.
    """

    sqlite_errorcode: int
    sqlite_errorname: str


class InterfaceError(Error):
    """The driver was misused."""


class DatabaseError(Error):
    """An error of the database."""


class DataError(DatabaseError):
    """A value is out of range or too big."""


class OperationalError(DatabaseError):
    """The database could not do it; not necessarily the programmer's fault."""


class IntegrityError(DatabaseError):
    """A constraint failed."""


class InternalError(DatabaseError):
    """The database is in a state it should not be in."""


class ProgrammingError(DatabaseError):
    """The statement, or the way the driver was called, is wrong."""


class NotSupportedError(DatabaseError):
    """Something a replicated SQLite database cannot do."""


class Unavailable(OperationalError):
    """The group could not take the request before its deadline, and surely did not execute it.

    ``reason`` is ``"no leader"`` (none is known), ``"no quorum"`` (a majority of the members is not in
    reach), ``"too slow"`` (there is a leader, but no answer in time), ``"failed"`` (this node stopped
    itself; the message says why) or ``"suspect"`` (its content is not what the group decided, or may not be: it
    serves no reads either).
    """

    def __init__(
        self, message: str, reason: Literal["no leader", "no quorum", "too slow", "failed", "suspect"]
    ) -> None:
        super().__init__(message)
        self.reason = reason


class LeaseTimeout(OperationalError):
    """database is locked: another transaction held the write lease until the deadline."""


class TransactionConflict(OperationalError):
    """The transaction was rolled back because of a concurrent one; it can be retried as a whole."""


class CommitOutcomeUnknown(OperationalError):
    """The deadline passed while a write was under way: it may or may not have been committed."""


class HostLost(OperationalError):
    """The process that hosted this machine's node ended before it answered."""
