"""PEP 249's Cursor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ..exceptions import ProgrammingError
from .script_text import statements
from .types import Description, plan

if TYPE_CHECKING:
    from .connection import Connection
    from .reading import Stream


class Cursor:
    """One statement at a time and its rows.

    Used by one thread at a time; several cursors of a Connection may be used by several threads. ``description``
    stays until the next execute, also when there were no rows. ``rowcount`` is -1 unless the statement was an
    INSERT, UPDATE, DELETE or REPLACE, and is known at once with RETURNING. ``lastrowid`` is the rowid of the last row
    that :meth:`execute` inserted.
    """

    # Defaults on the class: a cursor is made for nearly every statement.
    arraysize = 1
    description: Description | None = None
    rowcount = -1
    lastrowid: int | None = None
    _rows: Iterator[Any] = iter(())
    _stream: Stream | None = None
    _closed = False

    def __init__(self, connection: Connection, /) -> None:
        self.connection = connection
        self.row_factory = connection.row_factory

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        """Run one statement, with qmark or named parameters.

        Raises ProgrammingError for more than one statement in ``sql``.
        """
        connection = self.connection
        if connection.unusable is not None or self._closed:
            self._refuse()
        with connection.lock:
            self._reset()
            answer = connection.run(sql, parameters)
            self.description, convert = plan(answer.columns)
            self.rowcount = answer.rowcount
            if answer.lastrowid is not None:
                self.lastrowid = answer.lastrowid
            self._stream = stream = answer.stream
            if stream is None and convert is None:
                self._rows = iter(answer.rows)
            else:
                batches: Iterable[Any] = (answer.rows,) if stream is None else stream
                self._rows = chain.from_iterable(batches if convert is None else map(convert, batches))
            if self.row_factory is not None:
                self._rows = map(partial(self.row_factory, self), self._rows)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        """Run an INSERT, UPDATE, DELETE or REPLACE once for each item of ``parameters``.

        In autocommit each run is a transaction of its own. ``rowcount`` is the sum; ``lastrowid`` stays.
        """
        connection = self.connection
        if connection.unusable is not None or self._closed:
            self._refuse()
        with connection.lock:
            self._reset()
            self.rowcount = connection.run_many(sql, parameters)
        return self

    def executescript(self, sql_script: str, /) -> Cursor:
        """Commit an open transaction, then run each statement of the script on its own.

        Each is complete before the next begins; rows are dropped.
        """
        if self.connection.unusable is not None or self._closed:
            self._refuse()
        if not isinstance(sql_script, str):
            raise TypeError(f"executescript() argument must be str, not {type(sql_script).__name__}")
        with self.connection.lock:
            rowcount = self.rowcount
            self._reset()
            self.rowcount = rowcount
            self.connection.commit()
            for sql in statements(sql_script):
                answer = self.connection.run(sql, None)
                if answer.stream is not None:
                    answer.stream.close()
        return self

    def fetchone(self) -> Any:
        """The next row, or None."""
        if self.connection.unusable is not None or self._closed:
            self._refuse()
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next ``size`` rows (default: ``arraysize``), fewer at the end."""
        if self.connection.unusable is not None or self._closed:
            self._refuse()
        return list(islice(self._rows, self.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        """All remaining rows."""
        if self.connection.unusable is not None or self._closed:
            self._refuse()
        return list(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.connection.unusable is not None or self._closed:
            self._refuse()
        return next(self._rows)

    def close(self) -> None:
        """Drop the rows not read yet; the cursor cannot be used again."""
        if self._stream is not None and self.connection.unusable is None:
            with self.connection.lock:
                self._reset()
        self._rows = iter(())
        self._closed = True

    def setinputsizes(self, sizes: Any, /) -> None:
        """Nothing, as PEP 249 allows."""

    def setoutputsize(self, size: Any, column: Any = None, /) -> None:
        """Nothing, as PEP 249 allows."""

    def _reset(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._rows = iter(())
        self.description = None
        self.rowcount = -1

    def _refuse(self) -> None:
        self.connection.check()
        raise ProgrammingError("Cannot operate on a closed cursor.")
