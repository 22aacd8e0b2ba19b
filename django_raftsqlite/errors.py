"""What applications catch: the driver's own operational errors as classes of Django.

::

    django.db.OperationalError
    ├── Unavailable             no leader, no quorum, or too slow; surely not executed
    ├── LeaseTimeout            "database is locked"
    ├── TransactionConflict     rolled back because of a concurrent one; may be retried as a whole
    ├── CommitOutcomeUnknown    it may or may not have been committed
    └── HostLost                the process that hosted this machine's node ended before it answered
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from django.db.utils import DatabaseErrorWrapper, OperationalError

from . import exceptions


class Unavailable(OperationalError):
    """The group could not take the request before its deadline, and surely did not execute it.

    ``reason`` (str) is ``"no leader"``, ``"no quorum"``, ``"too slow"`` or ``"failed"``.
    """

    reason: str = ""


class LeaseTimeout(OperationalError):
    """Another transaction held the write lease until the deadline ("database is locked")."""


class TransactionConflict(OperationalError):
    """The transaction was rolled back because of a concurrent one; it can be retried as a whole."""


class CommitOutcomeUnknown(OperationalError):
    """The deadline passed while a write was under way: it may or may not have been committed.

    Hooks of ``transaction.on_commit`` did not run. The connection stays usable, so that the application
    can look whether its rows are there.
    """


class HostLost(OperationalError):
    """The process that hosted this machine's node ended before it answered; the next query attaches anew."""


DJANGO_CLASS: dict[type[BaseException], type[OperationalError]] = {
    exceptions.Unavailable: Unavailable,
    exceptions.LeaseTimeout: LeaseTimeout,
    exceptions.TransactionConflict: TransactionConflict,
    exceptions.CommitOutcomeUnknown: CommitOutcomeUnknown,
    exceptions.HostLost: HostLost,
}
"""The driver's class (PEP 249) to the one that reaches the application."""


class ErrorWrapper(DatabaseErrorWrapper):
    """Django's translation of driver errors, which would flatten ours to a bare OperationalError."""

    wrapper: Any

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            return
        django_class = DJANGO_CLASS.get(exc_type)
        if django_class is None or exc_value is None:
            super().__exit__(exc_type, exc_value, traceback)
            return
        error: Any = django_class(*exc_value.args)
        if isinstance(exc_value, exceptions.Unavailable):
            error.reason = exc_value.reason
        self.wrapper.errors_occurred = True
        raise error.with_traceback(traceback) from exc_value
