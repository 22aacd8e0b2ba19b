"""What an attached process and its host say to each other over the node's Unix socket.

One request, one answer, in turn. A request is ``[verb, *arguments]``; an answer ``["ok", value]`` or
``["error", name, *arguments]``, where the name is an exception both sides know. Only processes that may open
the socket (its file mode) get this far; still, nothing is unpickled and sizes are bounded.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import msgpack

from .. import exceptions
from ..sqlite.entry import ItemKind, RequestId, Result, Statement, decode_result, encode_result
from ..sqlite.errors import StatementError
from .api import LeaseLost, Moved
from .requests import OriginClosed, Request

PROTOCOL = 5
MAX_MESSAGE = (1024 + 1) * 1024 * 1024
"""Bytes. Holds the largest statement of the largest transaction that can be asked for."""
MAX_HELLO = 4096
"""Bytes of the first message, before it is known that the other side is a process of this version."""
SEND_TIMEOUT = 30.0
_PIECE = 1024 * 1024
_LENGTH = struct.Struct(">I")


class Closed(Exception):
    """The other side has gone."""


def send(sock: socket.socket, message: Any, timeout: float = SEND_TIMEOUT) -> None:
    """Send one message. Raises Closed; TimeoutError when it takes longer than ``timeout`` (seconds); ValueError for
    one beyond MAX_MESSAGE."""
    body: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="surrogatepass")
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(body)} bytes is beyond the limit of {MAX_MESSAGE}")
    try:
        sock.settimeout(timeout)
        sock.sendall(_LENGTH.pack(len(body)) + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise Closed(str(error)) from error


def receive(sock: socket.socket, deadline: float | None = None, limit: int = MAX_MESSAGE) -> Any:
    """Receive one message of at most ``limit`` bytes. Raises Closed, also for what is none; TimeoutError when
    ``deadline`` (monotonic seconds) passes first."""
    (length,) = _LENGTH.unpack(_receive_exactly(sock, _LENGTH.size, deadline))
    if length > limit:
        raise Closed(f"a message of {length} bytes is beyond the limit of {limit}")
    body = _receive_exactly(sock, length, deadline)
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Closed(f"a message cannot be read ({type(error).__name__})") from error


def readable(sock: socket.socket, timeout: float | None) -> bool:
    """Whether something comes, or the end does, within ``timeout`` seconds (None: however long it takes)."""
    poll = select.poll()  # select(2) knows no descriptors above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def _receive_exactly(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    # Room is made as it comes: a length alone takes no memory.
    buffer = bytearray(min(size, _PIECE))
    filled = 0
    while filled < size:
        if filled == len(buffer):
            buffer.extend(bytes(min(filled, size - filled)))
        sock.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
        try:
            with memoryview(buffer) as view, view[filled:] as rest:
                count = sock.recv_into(rest)
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(str(error)) from error
        if not count:
            raise Closed("the connection was closed")
        filled += count
    return bytes(buffer)


def encode_statement(statement: Statement) -> tuple[Any, ...]:
    """A statement as plain types."""
    return tuple(statement)


def decode_statement(value: Any) -> Statement:
    """The inverse of :func:`encode_statement`."""
    return Statement(*value)


def encode_request(request: Request) -> tuple[Any, ...]:
    """A request as plain types; its transaction stays the bytes that its author made of it."""
    return request.id.to_bytes(), int(request.kind), request.payload, request.solo, request.lease, request.sent


def decode_request(value: Sequence[Any]) -> Request:
    """The inverse of :func:`encode_request`."""
    name, kind, payload, solo, lease, sent = value
    request = RequestId(name[:16], int.from_bytes(name[16:], "big"))
    return Request(request, payload, solo=solo, lease=lease, sent=sent, kind=ItemKind(kind))


def encode_ran(ran: Result | StatementError) -> Any:
    """What a statement gave, as plain types."""
    if isinstance(ran, StatementError):
        return ran.code, ran.message, ran.kind
    return (encode_result(ran),)


def decode_ran(value: Any) -> Result | StatementError:
    """The inverse of :func:`encode_ran`."""
    if len(value) > 1:
        return StatementError(*value)
    result = decode_result(value[0])
    assert result is not None
    return result


_NAMED: dict[str, Any] = {"OriginClosed": OriginClosed, "Moved": Moved, "LeaseLost": LeaseLost} | {
    name: getattr(exceptions, name)
    for name in (
        "DataError",
        "LeaseTimeout",
        "TransactionConflict",
        "CommitOutcomeUnknown",
        "HostLost",
        "OperationalError",
        "NotSupportedError",
    )
}


def encode_error(error: Exception) -> list[Any]:
    """An exception as an answer; one that the other side does not know becomes an OperationalError."""
    if isinstance(error, StatementError):
        return ["error", "StatementError", error.code, error.message, error.kind]
    if isinstance(error, exceptions.Unavailable):
        return ["error", "Unavailable", str(error), error.reason]
    for name, known in _NAMED.items():
        if type(error) is known:
            return ["error", name, str(error)]
    return ["error", "OperationalError", f"{type(error).__name__} in the process that hosts the node: {error}"]


def decode_error(answer: list[Any]) -> Exception:
    """The inverse of :func:`encode_error`."""
    _, name, *arguments = answer
    if name == "StatementError":
        return StatementError(*arguments)
    if name == "Unavailable":
        return exceptions.Unavailable(*arguments)
    error: Exception = _NAMED.get(name, exceptions.OperationalError)(*arguments)
    return error
