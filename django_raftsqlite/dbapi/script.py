"""What a transaction has read, kept so that it can be read again and compared."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack

from ..sqlite.entry import Parameters, Row
from ..sqlite.errors import StatementError, convert_error

KEPT_ROWS = 256
"""Rows of one read that are remembered as they are; more are folded into a digest at once."""


class Read:
    """One read and its answer.

    ``clock`` and ``seed`` make it repeatable. ``count`` rows were read, all of them when ``complete``. ``code`` and
    ``kind`` are the StatementError's that it ended with, or 0 and "". The rows of a small answer are kept, since
    the application holds them anyway and most transactions never compare; a large one is a running digest, so
    that memory stays bounded.
    """

    __slots__ = ("_digest", "_kept", "clock", "code", "complete", "count", "kind", "parameters", "seed", "sql")

    def __init__(self, sql: str, parameters: Parameters, clock: int, seed: int) -> None:
        self.sql = sql
        self.parameters = parameters
        self.clock = clock
        self.seed = seed
        self.count = 0
        self.complete = False
        self.code = 0
        self.kind = ""
        self._kept: list[Row] | None = None
        self._digest: Any = None

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


def _new() -> Any:
    return hashlib.blake2b(digest_size=16)


def _fold(digest: Any, rows: list[Row]) -> None:
    # Row by row, so that the digest does not depend on how the rows came in batches.
    digest.update(b"".join([msgpack.packb(row, use_bin_type=True, unicode_errors="surrogatepass") for row in rows]))
