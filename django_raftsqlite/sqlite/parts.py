"""Transactions larger than a log entry: cut into parts by their author, put together again by apply.

The parts go through the log like everything else, and apply keeps them in `_raftsqlite_part` until the item that
names them all comes. An author sends that item when its parts are applied on its own node: so they are before it in
the log, and every node has them.

Memory. The author holds its statements, one encoded copy of them, and the largest statement once more. Apply reads
part by part and decodes statement by statement: it holds one part and the largest statement, never the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apsw
import msgpack

from .entry import ItemKind, RequestId, Statement, Transaction, make_transaction, transaction_head
from .errors import MalformedEntry, NodeFault
from .text import traits

PART_BYTES = 512 * 1024
"""Bytes of an encoded transaction above which it is sent in parts, and of all its parts but the last."""


class TransactionTooLarge(Exception):
    """A transaction of ``size`` bytes is beyond the limit."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Part(NamedTuple):
    """Bytes of a transaction: those of its ``number`` (from 0).

    ``request`` names the part, since it is a request of its own; ``sequence`` is that of the transaction, which has
    the same origin. The low-water mark does not pass ``sequence`` before the transaction was decided, or given up.
    """

    request: RequestId
    low_water: int
    sequence: int
    number: int
    data: bytes


class Parted(NamedTuple):
    """A transaction whose parts are in the log: what takes its place in an entry.

    ``size`` (bytes) and ``sha256`` are those of the whole encoding, ``pieces`` is the number of its parts.
    """

    request: RequestId
    low_water: int
    size: int
    pieces: int
    sha256: bytes


@dataclass(slots=True)
class Encoded:
    """A transaction as its author sends it: whole when there is one piece, else in parts."""

    pieces: list[bytes]
    size: int
    sha256: bytes

    def named(self, request: RequestId, low_water: int) -> tuple[ItemKind, bytes]:
        """The item to be sent, behind the pieces if there are several."""
        if len(self.pieces) == 1:
            return ItemKind.TRANSACTION, self.pieces[0]
        return ItemKind.PARTED_TRANSACTION, encode_parted(self.parted(request, low_water))

    def parted(self, request: RequestId, low_water: int) -> Parted:
        """The item that names all parts."""
        return Parted(request, low_water, self.size, len(self.pieces), self.sha256)


def encode_pieces(transaction: Transaction, *, limit: int, part_bytes: int = PART_BYTES) -> Encoded:
    """Encode as :func:`~.entry.encode_transaction` does, cut into pieces of ``part_bytes``; the last may be smaller.

    Raises TransactionTooLarge beyond ``limit`` bytes, and what encode_transaction raises.
    """
    packer = msgpack.Packer(use_bin_type=True, unicode_errors="surrogatepass")
    digest = hashlib.sha256()
    pieces: list[bytes] = []
    rest = bytearray()
    size = 0
    for chunk in _chunks(transaction, packer):
        size += len(chunk)
        if size > limit:
            # Counted to the end, since the limit may have to be raised to it, but kept no longer.
            pieces.clear()
            rest.clear()
            continue
        if len(rest) + len(chunk) <= part_bytes:
            rest += chunk
            continue
        view = memoryview(chunk)
        while len(rest) + len(view) > part_bytes:
            room = part_bytes - len(rest)
            pieces.append(bytes(rest) + view[:room] if rest else bytes(view[:room]))
            digest.update(pieces[-1])
            rest.clear()
            view = view[room:]
        rest += view
    if size > limit:
        raise TransactionTooLarge(size)
    pieces.append(bytes(rest))
    digest.update(rest)
    return Encoded(pieces, size, digest.digest())


def _chunks(transaction: Transaction, packer: msgpack.Packer) -> Iterator[bytes]:
    head = transaction_head(transaction)
    yield packer.pack_array_header(len(head) + 1)
    for field in head:
        yield packer.pack(field)
    yield packer.pack_array_header(len(transaction.statements))
    for statement in transaction.statements:
        yield packer.pack(tuple(statement))


def encode_part(part: Part) -> bytes:
    """Encode for the log."""
    packed: bytes = msgpack.packb((*part.request, *part[1:]), use_bin_type=True)
    return packed


def decode_part(data: bytes) -> Part:
    """The inverse of :func:`encode_part`; raises MalformedEntry."""
    try:
        origin, own, low_water, sequence, number, content = msgpack.unpackb(data)
        return Part(RequestId(origin, own), low_water, sequence, number, content)
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise MalformedEntry(f"a part of a transaction cannot be decoded: {error}") from error


def encode_parted(parted: Parted) -> bytes:
    """Encode for the log."""
    packed: bytes = msgpack.packb((*parted.request, *parted[1:]), use_bin_type=True)
    return packed


def decode_parted(data: bytes) -> Parted:
    """The inverse of :func:`encode_parted`; raises MalformedEntry."""
    try:
        origin, sequence, low_water, size, pieces, sha256 = msgpack.unpackb(data)
        return Parted(RequestId(origin, sequence), low_water, size, pieces, sha256)
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise MalformedEntry(f"a transaction in parts cannot be decoded: {error}") from error


class Incomplete(Exception):
    """The parts are not, or not all, those of the transaction. The same on every node."""


class StoredStatements:
    """Statements that are decoded from the parts each time they are gone through.

    What they do (``verbs``, see :class:`~.text.Traits`), how many they are and what stands before them (``head``) is
    known after :meth:`look_through`.
    """

    def __init__(self, read: Callable[[], Iterator[bytes]], size: int) -> None:
        self._read = read
        self._size = size
        self.head: list[Any] = []
        self._count = 0
        self.verbs: frozenset[str] = frozenset()

    def look_through(self, pieces: Iterator[bytes]) -> None:
        """Decode all of it once."""
        self.verbs = frozenset({traits(statement.sql).verb for statement in self._decode(pieces)})

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Statement]:
        return self._decode(self._read())

    def _decode(self, pieces: Iterator[bytes]) -> Iterator[Statement]:
        stream = _Stream(pieces)
        try:
            # The default is 100 MiB, which one BLOB may exceed.
            unpacker = msgpack.Unpacker(
                stream,
                read_size=PART_BYTES,
                max_buffer_size=max(self._size, PART_BYTES),
                raw=False,
                strict_map_key=False,
                unicode_errors="surrogatepass",
            )
            fields = unpacker.read_array_header()
            self.head = [unpacker.unpack() for _ in range(fields - 1)]
            self._count = unpacker.read_array_header()
            for _ in range(self._count):
                yield Statement(*unpacker.unpack())
        except (TypeError, ValueError, UnicodeDecodeError, msgpack.UnpackException) as error:
            raise MalformedEntry(f"a transaction in parts cannot be decoded: {error}") from error


class _Stream:
    """What msgpack reads from: pieces one after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


class PartTable:
    """`_raftsqlite_part` while one entry is applied.

    Rows are written at once, in the entry's SQLite transaction. ``held`` (the transactions of which there are
    parts, and the log time of the newest) is a copy of the committed one, which is thrown away with the entry.
    """

    def __init__(self, connection: apsw.Connection, committed: dict[RequestId, int]) -> None:
        self._connection = connection
        self.held = dict(committed)

    def store(self, part: Part, time: int) -> None:
        """Keep a part; one that is there already stays as it is."""
        request = RequestId(part.request.origin, part.sequence)
        self._connection.execute(
            "INSERT OR IGNORE INTO _raftsqlite_part VALUES (?, ?, ?, ?, ?, ?)",
            (*request, part.number, time, _checksum(part.data), part.data),
        )
        self.held[request] = time

    def transaction(self, parted: Parted) -> Transaction:
        """Put a transaction together. Raises Incomplete."""
        statements = StoredStatements(lambda: self._pieces_again(parted), parted.size)
        verified = self._verified(parted)
        transaction: Transaction | MalformedEntry
        try:
            statements.look_through(verified)
            transaction = make_transaction(statements.head, statements)
        except MalformedEntry as error:
            transaction = error
        except (TypeError, ValueError) as error:
            transaction = MalformedEntry(f"a transaction in parts cannot be decoded: {error}")
        for _ in verified:  # what was not read yet
            pass
        if isinstance(transaction, MalformedEntry):
            raise transaction
        if transaction.request != parted.request:
            raise Incomplete("its parts are those of another transaction")
        return transaction

    def content(self, parted: Parted) -> Iterator[bytes]:
        """The parts, one after the other. Raises Incomplete, also behind the last one."""
        return self._verified(parted)

    def _verified(self, parted: Parted) -> Iterator[bytes]:
        """The parts, which this node must have kept as they were; raises Incomplete behind the last one."""
        digest, size = hashlib.sha256(), 0
        for number, (checksum, data) in enumerate(self._rows(parted)):
            if checksum != _checksum(data):
                # Unlike a missing part, this is no property of the log: other nodes find what was stored.
                raise NodeFault(f"part {number} of a transaction is not what this node stored: its file is damaged")
            digest.update(data)
            size += len(data)
            yield data
        if size != parted.size or digest.digest() != parted.sha256:
            raise Incomplete(
                f"its parts are {size} bytes of other content than the {parted.size} that were announced"
            )

    def _rows(self, parted: Parted) -> Iterator[tuple[bytes, bytes]]:
        for number in range(parted.pieces):
            # One row at a time: no statement stays open while those of the transaction run.
            rows: Any = self._connection.execute(
                "SELECT checksum, data FROM _raftsqlite_part WHERE origin = ? AND sequence = ? AND number = ?",
                (*parted.request, number),
            ).fetchall()
            if not rows:
                raise Incomplete(f"part {number} of {parted.pieces} is not there")
            yield rows[0]

    def _pieces_again(self, parted: Parted) -> Iterator[bytes]:
        try:
            for _, data in self._rows(parted):
                yield data
        except Incomplete as incomplete:
            # They were there a moment ago, in this very SQLite transaction.
            raise NodeFault(f"a transaction lost its parts while it was applied: {incomplete}") from incomplete

    def drop(self, request: RequestId) -> None:
        """Forget the parts of a transaction; harmless when there are none."""
        if self.held.pop(request, None) is not None:
            self._connection.execute("DELETE FROM _raftsqlite_part WHERE origin = ? AND sequence = ?", request)

    def expire(self, time: int) -> None:
        """Forget the transactions whose newest part came at ``time`` or before: their author has gone."""
        for request in [request for request, newest in self.held.items() if newest <= time]:
            self.drop(request)


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
