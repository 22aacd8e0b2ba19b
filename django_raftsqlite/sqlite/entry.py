"""Log entries: what is replicated, and how it is written down.

An entry is what Raft orders: a *batch* of items, applied in one SQLite transaction with a savepoint
each, or one *solo* transaction for what cannot share a SQLite transaction (``foreign_keys=OFF``,
``VACUUM``). Everything is msgpack, never pickle. A transaction is encoded once, by its author; the leader
puts the bytes into an entry without looking inside.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgpack

from .errors import MalformedEntry

SQLiteValue = None | int | float | str | bytes
Parameters = Sequence[SQLiteValue] | Mapping[str, SQLiteValue] | None
Row = tuple[SQLiteValue, ...]


class Base(NamedTuple):
    """The identity of a state, which a number alone is not (ABA).

    ``lineage`` (16 bytes) changes at restore and recovery; ``version`` (int) counts committed
    transactions; ``last`` (24 bytes) is the request id of the transaction that made this version.
    """

    lineage: bytes
    version: int
    last: bytes


class RequestId(NamedTuple):
    """Names a request for ever: ``origin`` (16 random bytes, one per process) and its ``sequence`` (from 1)."""

    origin: bytes
    sequence: int

    def to_bytes(self) -> bytes:
        """24 bytes: the origin, then the sequence big-endian."""
        return self.origin + self.sequence.to_bytes(8, "big")


class Statement(NamedTuple):
    """One statement with all that makes its replay exact.

    ``clock`` is wall-clock milliseconds since the Unix epoch, ``seed`` 63 random bits. ``expect`` is the
    digest (8 bytes, :func:`result_digest`) of what the author saw, or None where the author saw nothing yet.
    """

    sql: str
    parameters: Parameters
    clock: int
    seed: int
    expect: bytes | None = None


class Column(NamedTuple):
    """A result column: its name and its declared type (None for an expression)."""

    name: str
    decltype: str | None


@dataclass(slots=True)
class Result:
    """What a statement gave: ``columns`` is None where it returns no rows by nature.

    ``rowcount`` is -1 where PEP 249 has nothing to count; ``lastrowid`` is None unless a row was inserted.
    """

    columns: tuple[Column, ...] | None = None
    rows: list[Row] = field(default_factory=list)
    rowcount: int = -1
    lastrowid: int | None = None


class Status(enum.IntEnum):
    """How a request ended. The same on every node."""

    DONE = 0
    ERROR = 1  # a deterministic SQL error; nothing of the transaction is kept, but see OR FAIL
    CONFLICT = 2  # its base is gone
    REPLAY_DIFFERS = 3  # same base, other results: the author used something replay cannot repeat
    REFUSED = 4  # its origin is not open, or the request is below the origin's low-water mark
    INCOMPLETE = 5  # it came in parts, and they are not all there; surely not executed


@dataclass(slots=True)
class Outcome:
    """What became of a request. ``code`` is SQLite's extended code for ERROR, else 0."""

    status: Status
    result: Result | None = None
    code: int = 0
    message: str = ""


class Statements(Protocol):
    """Statements in order, however they are kept; may be gone through more than once."""

    def __iter__(self) -> Iterator[Statement]: ...

    def __len__(self) -> int: ...


@dataclass(slots=True)
class Transaction:
    """The unit that is applied or not: one autocommit statement, or the net writes of ``atomic()``.

    ``base`` is None for an autocommit statement. ``pragmas`` are connection-state pragmas that differ from
    their default (``{"foreign_keys": 0}``). ``low_water`` is the lowest sequence of this origin whose
    outcome its author may still ask for; everything below is forgotten. ``solo`` must not share an entry.
    """

    request: RequestId
    low_water: int
    statements: Statements
    base: Base | None = None
    pragmas: Mapping[str, int] = field(default_factory=dict)
    solo: bool = False


class ItemKind(enum.IntEnum):
    """What an item of an entry is."""

    TRANSACTION = 1
    OPEN_ORIGIN = 2
    CLOSE_ORIGIN = 3
    EXPIRE_ORIGINS = 4
    PART = 5
    PARTED_TRANSACTION = 6
    EXPIRE_PARTS = 7
    VERIFY = 8
    PROTOCOL = 9
    LINEAGE = 10
    RESTORE = 20
    BEGIN_ARCHIVE = 21


SINCE = {ItemKind.VERIFY: 2, ItemKind.LINEAGE: 2, ItemKind.RESTORE: 2, ItemKind.BEGIN_ARCHIVE: 2}
"""Since which version of the protocol an item may be in the log; those that are not named, since the first."""

CLOCK_SINCE = 2
"""Since which version of the protocol an entry may tell its leader's clock."""


class Item(NamedTuple):
    """``payload`` by kind: an encoded transaction; an origin id (16 bytes) to open or close; msgpack
    ``[idle_versions, idle_ms]`` for EXPIRE_ORIGINS; an encoded :class:`~.parts.Part` or
    :class:`~.parts.Parted`; msgpack ``[idle_ms]`` for EXPIRE_PARTS; 16 bytes that name a verification, or an
    archive; an encoded :class:`~.restoring.Restore`; msgpack ``[version]``: from here on the group uses this version
    of the protocol; or the 16 bytes of a new lineage."""

    kind: ItemKind
    payload: bytes


@dataclass(slots=True)
class Entry:
    """``time`` is the leader's log time in ms (never goes back).

    ``clock`` is its wall clock, in ms since the Unix epoch: nothing depends on it but which moment somebody means who
    wants the state of a moment back. 0 where it is not told: before the group uses :data:`CLOCK_SINCE`, and in an
    entry that no leader wrote.
    """

    time: int
    items: tuple[Item, ...]
    solo: bool = False
    clock: int = 0


def encode_transaction(transaction: Transaction) -> bytes:
    """Encode; raises OverflowError for an integer beyond 64 bits and TypeError for a foreign type."""
    return _pack((*transaction_head(transaction), [tuple(statement) for statement in transaction.statements]))


def transaction_head(transaction: Transaction) -> tuple[Any, ...]:
    """All of a transaction but its statements, as plain types; they follow it when it is encoded."""
    return (
        transaction.request.origin,
        transaction.request.sequence,
        transaction.low_water,
        transaction.base,
        dict(transaction.pragmas),
        transaction.solo,
    )


def make_transaction(head: Sequence[Any], statements: Statements) -> Transaction:
    """The transaction with this :func:`transaction_head`; raises TypeError or ValueError."""
    origin, sequence, low_water, base, pragmas, solo = head
    return Transaction(
        request=RequestId(origin, sequence),
        low_water=low_water,
        statements=statements,
        base=None if base is None else Base(*base),
        pragmas=pragmas,
        solo=solo,
    )


def decode_transaction(data: bytes) -> Transaction:
    """The inverse of :func:`encode_transaction`; raises MalformedEntry."""
    try:
        *head, statements = _unpack(data)
        return make_transaction(head, tuple(Statement(*statement) for statement in statements))
    except (TypeError, ValueError) as error:
        raise MalformedEntry(f"a transaction cannot be decoded: {error}") from error


def encode_entry(entry: Entry) -> bytes:
    """Encode an entry for the log."""
    told = (entry.clock,) if entry.clock else ()  # versions that do not know of it take it for damage
    return _pack((entry.time, entry.solo, [tuple(item) for item in entry.items], *told))


def decode_entry(data: bytes) -> Entry:
    """The inverse of :func:`encode_entry`; raises MalformedEntry."""
    try:
        time, solo, items, *clock = _unpack(data)
        return Entry(time, tuple(Item(ItemKind(kind), payload) for kind, payload in items), solo, *clock)
    except (TypeError, ValueError) as error:
        raise MalformedEntry(f"a log entry cannot be decoded: {error}") from error


def encode_result(result: Result | None) -> Any:
    """A result as plain msgpack types."""
    if result is None:
        return None
    columns = None if result.columns is None else [tuple(column) for column in result.columns]
    return (columns, result.rows, result.rowcount, result.lastrowid)


def decode_result(value: Any) -> Result | None:
    """The inverse of :func:`encode_result`."""
    if value is None:
        return None
    columns, rows, rowcount, lastrowid = value
    return Result(
        None if columns is None else tuple(Column(*column) for column in columns),
        [tuple(row) for row in rows],
        rowcount,
        lastrowid,
    )


def encode_outcome(outcome: Outcome) -> bytes:
    """An outcome for the outcome table and for the wire."""
    return _pack((int(outcome.status), encode_result(outcome.result), outcome.code, outcome.message))


def decode_outcome(data: bytes) -> Outcome:
    """The inverse of :func:`encode_outcome`; raises MalformedEntry."""
    try:
        status, result, code, message = _unpack(data)
        return Outcome(Status(status), decode_result(result), code, message)
    except (TypeError, ValueError) as error:
        raise MalformedEntry(f"an outcome cannot be decoded: {error}") from error


def result_digest(code: int, result: Result | None) -> bytes:
    """8 bytes that stand for what the author of a statement saw: its code, rows and rowcount.

    Error texts are not part of it: they may differ between SQLite versions.
    """
    rows, rowcount = ([], -1) if result is None else (result.rows, result.rowcount)
    return hashlib.blake2b(_pack((code, rows, rowcount)), digest_size=8).digest()


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogatepass")
    return packed


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, use_list=True, unicode_errors="surrogatepass")
    except (msgpack.UnpackException, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
