"""The SQL functions and collations of every connection, and our own in place of those that don't repeat."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from . import clock

Registrar = Callable[["FunctionRegistry"], None]

_MAX_INTEGER = (1 << 63) - 1
_MAX_LENGTH = 1_000_000_000  # SQLITE_MAX_LENGTH


class FunctionRegistry:
    """A connection as registrars see it: :mod:`sqlite3`'s signatures, over APSW.

    ``names`` are the (name, number of arguments) registered by registrars, names in lower case; collations have
    -2 for the number. Every node must have the same set. Used while a connection is being opened, by the
    thread that opens it.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._names: dict[tuple[str, int], Callable[..., Any] | None] = {}

    @property
    def names(self) -> frozenset[tuple[str, int]]:
        return frozenset(self._names)

    def create_function(
        self, name: str, narg: int, func: Callable[..., Any] | None, *, deterministic: bool = False
    ) -> None:
        """As :meth:`sqlite3.Connection.create_function`; None removes it."""
        self._connection.create_scalar_function(name, func, narg, deterministic=deterministic)
        self._names[name.lower(), narg] = func

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Callable[[], Any] | None) -> None:
        """As :meth:`sqlite3.Connection.create_aggregate`: a class with ``step`` and ``finalize``."""
        factory = None if aggregate_class is None else _aggregate_factory(aggregate_class)
        self._connection.create_aggregate_function(name, factory, n_arg)
        self._names[name.lower(), n_arg] = aggregate_class

    def create_window_function(
        self, name: str, num_params: int, aggregate_class: Callable[[], Any] | None, /
    ) -> None:
        """As :meth:`sqlite3.Connection.create_window_function`: ``step``, ``inverse``, ``value``, ``finalize``."""
        factory = None if aggregate_class is None else _window_factory(aggregate_class)
        self._connection.create_window_function(name, factory, num_params)
        self._names[name.lower(), num_params] = aggregate_class

    def create_collation(self, name: str, callable: Callable[[str, str], int] | None, /) -> None:
        """As :meth:`sqlite3.Connection.create_collation`; None removes it."""
        self._connection.create_collation(name, callable)
        self._names[name.lower(), -2] = callable

    def execute(self, sql: str, parameters: Any = None) -> apsw.Cursor:
        """Run a statement, for registrars that ask what the library can do."""
        return self._connection.execute(sql, parameters)

    def registered(self, name: str, narg: int) -> Callable[..., Any] | None:
        """What a registrar registered under this name, if anything."""
        return self._names.get((name.lower(), narg))


class StatementCounters:
    """`total_changes()` of one connection, counted from :meth:`restart` instead of from its opening.

    What a transaction sees must not depend on what ran before it on this connection: that differs between nodes
    (restarts) and between scratch and apply. `changes()` and `last_insert_rowid()` need no function of ours, since
    SQLite lets both be set back.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        # Weak: the connection holds this object through the function, and would never be collected.
        self._connection = weakref.ref(connection)
        self._start = 0

    def restart(self) -> None:
        """A transaction begins: `changes()`, `total_changes()` and `last_insert_rowid()` are 0."""
        connection = self._connection()
        assert connection is not None
        connection.set_last_insert_rowid(0)
        _forget_changes(connection)
        self._start = connection.total_changes()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is written in this block is counted nowhere; `changes()` is 0 after it."""
        connection = self._connection()
        assert connection is not None
        before, rowid = connection.total_changes(), connection.last_insert_rowid()
        yield
        self._start += connection.total_changes() - before
        connection.set_last_insert_rowid(rowid)
        _forget_changes(connection)

    def total_changes(self) -> int:
        """Rows changed since :meth:`restart`."""
        connection = self._connection()
        assert connection is not None
        return connection.total_changes() - self._start


def register(
    connection: apsw.Connection, registrars: Iterable[Registrar]
) -> tuple[FunctionRegistry, StatementCounters]:
    """Run the registrars, then put our own functions over those whose answer would differ between nodes.

    By name, since SQLite's own ones read the process's random pool, which no entry could carry.
    """
    registry = FunctionRegistry(connection)
    for registrar in registrars:
        registrar(registry)
    counters = StatementCounters(connection)

    def scalar(name: str, function: Callable[..., Any], narg: int) -> None:
        connection.create_scalar_function(name, function, narg)

    scalar("random", _random, 0)
    scalar("randomblob", _randomblob, 1)
    scalar("total_changes", counters.total_changes, 0)
    if registry.registered("RAND", 0):
        scalar("RAND", _rand, 0)
    for name, version in (("UUIDV4", 4), ("UUIDV7", 7)):
        original = registry.registered(name, 0)
        if original is not None:
            scalar(name, _uuid_function(version, dashes="-" in str(original())), 0)
    return registry, counters


def _forget_changes(connection: apsw.Connection) -> None:
    if connection.changes():
        # Only a completed INSERT, UPDATE or DELETE sets changes(); this one touches no row.
        connection.execute("DELETE FROM _raftsqlite_state WHERE 0")


def _random() -> int:
    # SQLite's never gives the lowest 64-bit integer, so that abs(random()) cannot overflow.
    value = clock.generator().getrandbits(64) - (1 << 63)
    return value if value >= 0 else -(value & _MAX_INTEGER)


def _randomblob(size: Any) -> bytes:
    # "If N is less than 1 then a 1-byte random blob is returned" (https://sqlite.org/lang_corefunc.html).
    try:
        wanted = int(size or 0)
    except (ValueError, OverflowError):
        wanted = 0  # as sqlite3_value_int64() reads what is no number
    if wanted > _MAX_LENGTH:
        raise apsw.TooBigError("string or blob too big")
    return clock.generator().randbytes(max(1, wanted))


def _rand() -> float:
    return clock.generator().random()


def _uuid_function(version: int, *, dashes: bool) -> Callable[[], str]:
    """A UUID drawn from the statement's clock and seed, written as the registrar's own function writes it."""

    def make() -> str:
        draw = clock.generator()
        if version == 4:
            value = draw.getrandbits(128)
        else:  # RFC 9562, section 5.7: 48 bits of milliseconds, then random bits
            value = (clock.now_ms() & ((1 << 48) - 1)) << 80 | draw.getrandbits(80)
        value = value & ~(0xF << 76) | version << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        made = uuid.UUID(int=value)
        return str(made) if dashes else made.hex

    return make


def _aggregate_factory(aggregate_class: Callable[[], Any]) -> Callable[[], Any]:
    # As on sqlite3, the class is made at the first row, and an aggregate of no rows is NULL: finalize() is not asked.
    def step(context: list[Any], *values: Any) -> None:
        if not context:
            context.append(aggregate_class())
        context[0].step(*values)

    def final(context: list[Any]) -> Any:
        return context[0].finalize() if context else None

    return lambda: ([], step, final)


def _window_factory(aggregate_class: Callable[[], Any]) -> Callable[[], Any]:
    def factory() -> Any:
        aggregate = aggregate_class()
        return (
            aggregate,
            lambda context, *values: context.step(*values),
            lambda context: context.finalize(),
            lambda context: context.value(),
            lambda context, *values: context.inverse(*values),
        )

    return factory
