"""Reads on this node's own file: readers, and the rows of a SELECT that are still to come."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from itertools import islice
from typing import Any, Protocol

import apsw

from ..sqlite import clock, forking
from ..sqlite.connections import Connection, Snapshot
from ..sqlite.entry import Row
from .errors import from_reader, operational
from .script import Read
from .types import Columns, adapt_all, bindable, convert_binding, named

EAGER = 256
"""Rows read at once. A SELECT with fewer, which nearly all are, is over when execute() returns."""

DRAIN_LIMIT = 100_000
"""Rows of one half-read SELECT that are read into memory when its reader is needed for something else."""


def moment() -> tuple[int, int]:
    """The wall clock (ms since the epoch) and 63 random bits of a statement that begins now.

    From the system's randomness: after a fork, two processes would draw the same from a generator's state.
    """
    return time.time_ns() // 1_000_000, secrets.randbits(63)


class Reader:
    """A read-only connection to this node's file, held by one Connection.

    ``described[0]`` are the columns, described in full, of the statement begun last. ``spare`` is a cursor that is
    not in use. ``open`` counts the SELECTs that are half read on it, and the transaction whose snapshot it holds.
    While there is one, an autocommit statement must not run here: it would see the old state and miss the
    connection's own writes. ``reusable`` is false once the connection was altered (functions, limits, temporary or
    attached tables), so that nobody else gets it.
    """

    __slots__ = ("connection", "described", "open", "reusable", "spare")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.open = 0
        self.reusable = True
        described: list[tuple[tuple[Any, ...], ...]] = [()]

        # APSW forgets the columns of a SELECT as soon as it had no row: ask before the first step, in another form
        # than select() does, since APSW keeps its answer. The closure holds the list alone, so that there is no
        # cycle through the connection.
        def trace(cursor: apsw.Cursor, _sql: str, _bindings: Any) -> bool:
            # Called again for a comment behind the semicolon, which has none.
            described[0] = cursor.description_full or described[0]
            return True

        self.described = described
        self.spare: apsw.Cursor | None = None
        connection.exec_trace = trace
        connection.convert_binding = convert_binding

    @property
    def private(self) -> bool:
        """Whether it has temporary or attached tables, which no other connection has."""
        return self.connection.private

    def reads(self, what: str) -> None:
        """A statement or a transaction begins to read; the first one has the snapshot of all that follow."""
        if not self.open:
            self.connection.snapshot = Snapshot(time.monotonic(), what)

    def ended(self) -> None:
        """A statement or a transaction has ended; ``open`` is right."""
        if not self.open:
            self.connection.snapshot = None

    def detach(self) -> apsw.Connection:
        """The connection as the pool had it."""
        if self.spare is not None:
            self.spare.close(True)
            self.spare = None
        self.connection.exec_trace = None
        self.connection.convert_binding = None
        return self.connection


class Answer:
    """What a statement gave: ``rows`` is complete unless ``stream`` is set, which then has all of them."""

    __slots__ = ("columns", "lastrowid", "rowcount", "rows", "stream")

    def __init__(
        self,
        columns: Columns = (),
        rows: list[Row] | None = None,
        stream: Stream | None = None,
        rowcount: int = -1,
        lastrowid: int | None = None,
    ) -> None:
        self.columns = columns
        self.rows: list[Row] = [] if rows is None else rows
        self.stream = stream
        self.rowcount = rowcount
        self.lastrowid = lastrowid


class Owner(Protocol):
    """Who keeps the readers: ``lock`` is the Connection's, ``finished(reader)`` says that a stream let go of it."""

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    def began(self, stream: Stream) -> None: ...

    def finished(self, reader: Reader) -> None: ...


class Stream:
    """A SELECT that was not read to its end when execute() returned.

    Used under its owner's lock. Invariant: ``reader.open`` counts this stream exactly as long as its statement can
    still be stepped. ``failure`` is raised when the rows before it were given out, as sqlite3 does.
    """

    def __init__(
        self,
        raw: apsw.Cursor,
        reader: Reader,
        first: list[Row],
        owner: Owner,
        *,
        read: Read | None,
        failure: Exception | None,
    ) -> None:
        self.reader = reader
        self._raw: apsw.Cursor | None = raw
        self._waiting = first
        self._owner = owner
        self._read = read
        self._failure = failure
        self._hurried = False
        reader.open += 1
        owner.began(self)
        if failure is not None:
            self._end()

    def __iter__(self) -> Iterator[list[Row]]:
        """The remaining rows, in batches."""
        while rows := self._take():
            yield rows

    def _take(self) -> list[Row]:
        with self._owner.lock:
            if not self._waiting and self._raw is not None:
                if self._hurried:
                    self._read_out()
                else:
                    self._step(EAGER)
            rows, self._waiting = self._waiting, []
            if not rows and self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            return rows

    def _step(self, count: int) -> None:
        assert self._raw is not None
        read = self._read
        rows: list[Row] = []
        if read is not None:
            clock.enter(read.statement.clock, read.statement.seed)
        try:
            rows.extend(islice(self._raw, count))
        except Exception as error:
            self._failure = from_reader(error)
            if read is not None:
                read.failed(error)
        except BaseException:
            # Interrupted: rows between those and the next ones may be lost.
            self._end()
            raise
        finally:
            if read is not None:
                clock.leave()
        self._waiting += rows
        if read is not None:
            read.add(rows)
        if len(rows) < count:
            if read is not None:
                read.complete = True
            self._end()

    def drain(self) -> None:
        """Read what is left into memory, so that the reader is free. Raises OperationalError over the limit."""
        if self._raw is None:
            return
        room = DRAIN_LIMIT - len(self._waiting)
        self._step(max(room, 1))
        if self._raw is not None:
            raise operational(
                f"a SELECT is still open with more than {DRAIN_LIMIT} rows to read; read it to its end, or close its"
                " cursor, before the transaction writes"
            )

    @property
    def autocommit(self) -> bool:
        """Whether its snapshot is its own, and not an open transaction's."""
        return not self.reader.connection.in_transaction

    def hurry(self) -> None:
        """Read the rest into memory at the next fetch, so that the snapshot is free."""
        self._hurried = True

    def end(self, why: str) -> None:
        """Give the snapshot up: once the rows that are here were given out, fetching raises OperationalError."""
        if self._raw is not None:
            self._failure = operational(why)
            self._end()

    def _read_out(self) -> None:
        self._step(DRAIN_LIMIT)
        self.end(
            "the SELECT was ended: it was half read for long, kept the WAL from being reset, which is above its limit"
            f' (OPTIONS["wal_limit"]), and had more than {DRAIN_LIMIT} rows to read; read it faster, or in parts'
        )

    def close(self) -> None:
        """Forget the rows not read yet."""
        self._waiting = []
        self._failure = None
        self._end()

    def __del__(self) -> None:
        if forking.inherited():
            forking.keep_for_ever(self)
            return
        # The cursor was dropped half read. Without the callback: collection may happen anywhere, under any lock.
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(apsw.Error):
                raw.close(True)
            self.reader.open -= 1
            self.reader.ended()

    def _end(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close(True)
            self.reader.open -= 1
            self.reader.ended()
            self._owner.finished(self.reader)


def select(reader: Reader, sql: str, parameters: Any, owner: Owner, read: Read | None = None) -> Answer:
    """Begin a read on ``reader`` and, with a few rows, end it. ``read`` records it in a transaction's script.

    Raises PEP 249's exceptions, and what binding raises.
    """
    # Taken out while in use: a Python function in the SQL may run statements of its own.
    raw, reader.spare = reader.spare or reader.connection.cursor(), None
    rows: list[Row] = []
    failure: Exception | None = None
    begun = False
    columns: Columns = ()
    reader.described[0] = ()
    reader.reads(sql)
    if read is not None:
        clock.enter(read.statement.clock, read.statement.seed)
    try:
        try:
            raw.execute(sql, bindable(parameters))
        except KeyError:
            raw.execute(sql, bind(reader, sql, parameters))
        begun = True
        rows.extend(islice(raw, 1))
        if rows:
            # Asked only now: the first step prepares a statement again whose schema has changed since the trace.
            columns = raw.get_description()
            rows.extend(islice(raw, EAGER - 1))
    except Exception as error:
        failure = from_reader(error)
        if read is not None:
            read.failed(error)
        if not begun:
            raw.close(True)
            reader.ended()
            raise failure from error
    except BaseException:
        # Interrupted: as long as anybody keeps the traceback, the statement would keep the reader's snapshot.
        raw.close(True)
        raise
    finally:
        if read is not None:
            clock.leave()
    if not rows:
        columns = tuple(column[:2] for column in reader.described[0])
    complete = len(rows) < EAGER and failure is None
    if read is not None:
        read.complete = complete
        read.add(rows)
    if complete:
        reader.spare = raw
        reader.ended()
        return Answer(columns, rows)
    return Answer(columns, stream=Stream(raw, reader, rows, owner, read=read, failure=failure))


def bind(reader: Reader, sql: str, parameters: Any) -> Any:
    """Prepare and bind a statement exactly as every node will, without running it; return what it was bound to.

    Of a mapping, only the names that the statement uses are kept. Raises PEP 249's exceptions, and what binding
    raises.
    """
    adapted = adapt_all(parameters)
    names: tuple[str | None, ...] = ()

    def stop(cursor: apsw.Cursor, _sql: str, _bindings: Any) -> bool:
        nonlocal names
        names = cursor.bindings_names
        return False

    raw = reader.connection.cursor()
    raw.exec_trace = stop
    try:
        while True:
            try:
                raw.execute(sql, adapted)
            except apsw.ExecTraceAbort:
                break
            except KeyError as missing:
                assert isinstance(adapted, dict)
                adapted[missing.args[0]] = named(parameters, missing.args[0])
            except Exception as error:
                raise from_reader(error) from error
            else:
                break  # nothing but white space and comments
    finally:
        raw.close(True)
    if isinstance(adapted, dict):
        return {name: adapted[name] for name in names if name is not None}
    return adapted or None
