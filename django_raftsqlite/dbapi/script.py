"""What a transaction's application has seen, kept so that it can be run again and compared."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack

from ..exceptions import TransactionConflict
from ..node.api import WriteSession
from ..sqlite.entry import Result, Row, Statement, result_digest
from ..sqlite.errors import StatementError, convert_error

LIMIT = 64 * 1024 * 1024
"""Bytes, roughly, of a transaction's statements that are remembered; one that goes beyond cannot be run again."""

KEPT_ROWS = 256
"""Rows of one read that are remembered as they are; more are folded into a digest at once."""

KEPT_READS = 1000
"""Reads whose rows may be remembered as they are; those of later ones are folded into a digest at once."""

_TOGETHER = 100
_OVERHEAD = 500


class Read:
    """One read and its answer.

    Its statement's clock and seed make it repeatable. ``count`` rows were read, all when ``complete``. ``code`` and
    ``kind`` are the StatementError's that it ended with, or 0 and "". The rows of a small answer are kept, since
    the application holds them anyway and most transactions never compare; a large one is a running digest, so
    that memory stays bounded.
    """

    __slots__ = ("_digest", "_kept", "code", "complete", "count", "kind", "statement")

    def __init__(self, statement: Statement, *, keep: bool = True) -> None:
        self.statement = statement
        self.count = 0
        self.complete = False
        self.code = 0
        self.kind = ""
        self._kept: list[Row] | None = None
        self._digest: Any = None if keep else _new()

    def add(self, rows: list[Row]) -> None:
        """More rows were read."""
        self.count += len(rows)
        if self._kept is None and self._digest is None and self.count < KEPT_ROWS:
            self._kept = rows
            return
        if self._digest is None:
            self._digest = _new()
            if self._kept is not None:
                _fold(self._digest, self._kept)
                self._kept = None
        _fold(self._digest, rows)

    def failed(self, error: Exception) -> None:
        """It ended with an error."""
        converted = convert_error(error)
        self.code, self.kind = converted.code, converted.kind
        self.complete = True

    def end(self, result: Result | None, error: StatementError | None) -> None:
        """It was run to its end at once."""
        if result is not None:
            self.add(result.rows)
        if error is not None:
            self.code, self.kind = error.code, error.kind
        self.complete = True

    def same(self, found: Result | StatementError) -> bool:
        """Whether a second run gave the same as far as it was seen."""
        return self.same_failure(found) if isinstance(found, StatementError) else self.same_rows(found.rows)

    def same_failure(self, error: StatementError) -> bool:
        """Whether it ended with this error at its first row, then as now."""
        return (self.count, self.code, self.kind) == (0, error.code, error.kind)

    def same_rows(self, rows: list[Row]) -> bool:
        """Whether a second run, which gave ``rows``, gave what the first one did as far as that was read."""
        if self.kind or len(rows) < self.count or (self.complete and len(rows) != self.count):
            return False
        again = _new()
        _fold(again, rows[: self.count])
        return bool(again.digest() == self._answer())

    def _answer(self) -> bytes:
        digest = self._digest
        if digest is None:
            digest = _new()
            _fold(digest, self._kept or [])
        answer: bytes = digest.digest()
        return answer


class Step:
    """A write or a savepoint command, and the digest of its answer."""

    __slots__ = ("statement",)

    def __init__(self, statement: Statement) -> None:
        self.statement = statement

    def same(self, found: Result | StatementError) -> bool:
        """Whether a second run gave the same."""
        digest = result_digest(found.code, None) if isinstance(found, StatementError) else result_digest(0, found)
        return digest == self.statement.expect


class Script:
    """Everything that a transaction's application saw, in order: reads, writes, errors and savepoint commands.

    Nothing is ever dropped from it: an error within a savepoint that was rolled back may have chosen what came next.
    It lives in the process that runs the transaction, so that the end of the host does not end it. Its memory is
    bounded by :data:`LIMIT`; what goes beyond is forgotten, and the transaction can no longer be run again.
    """

    def __init__(self) -> None:
        self._items: list[Read | Step] = []
        self._bytes = 0
        self._unrepeatable: tuple[str, str] | None = None

    def read(self, statement: Statement) -> Read:
        """The next read, whose answer is yet to come."""
        read = Read(statement, keep=len(self._items) < KEPT_READS)
        self._add(read)
        return read

    def step(self, statement: Statement) -> None:
        """The next write or savepoint command; ``expect`` is what it gave."""
        self._add(Step(statement))

    def unrepeatable(self, sql: str, why: str) -> None:
        """A statement that cannot be run again elsewhere."""
        self._unrepeatable = self._unrepeatable or (sql, why)

    def check(self, session: WriteSession) -> None:
        """Run all of it again and compare. Raises TransactionConflict naming what changed; or Moved, LeaseLost,
        HostLost."""
        if self._unrepeatable is not None:
            raise _conflict(*self._unrepeatable)
        for start in range(0, len(self._items), _TOGETHER):
            items = self._items[start : start + _TOGETHER]
            found = session.repeat([item.statement for item in items])
            for place, item in enumerate(items):
                if place >= len(found) or not item.same(found[place]):
                    raise _conflict(item.statement.sql, "would be answered differently now")

    def _add(self, item: Read | Step) -> None:
        if self._unrepeatable is not None:
            return
        self._bytes += _size(item.statement)
        if self._bytes > LIMIT:
            self._items.clear()
            self.unrepeatable(item.statement.sql, f"is beyond the {LIMIT} bytes that are remembered to be run again")
            return
        self._items.append(item)


def _size(statement: Statement) -> int:
    parameters = statement.parameters
    values = parameters.values() if isinstance(parameters, dict) else parameters or ()
    long = sum(len(value) for value in values if isinstance(value, (str, bytes)))
    return _OVERHEAD + len(statement.sql) + long


def _conflict(sql: str, why: str) -> TransactionConflict:
    shown = sql if len(sql) <= 200 else sql[:197] + "..."
    return TransactionConflict(
        f"another transaction was committed since this one began, and a statement of it {why}: {shown!r};"
        " the transaction was rolled back and can be retried as a whole"
    )


def _new() -> Any:
    return hashlib.blake2b(digest_size=16)


def _fold(digest: Any, rows: list[Row]) -> None:
    # Row by row, so that the digest does not depend on how the rows came in batches.
    digest.update(b"".join([msgpack.packb(row, use_bin_type=True, unicode_errors="surrogatepass") for row in rows]))
