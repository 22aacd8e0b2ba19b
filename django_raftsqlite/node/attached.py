"""A node that another process of this machine hosts."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import __version__
from ..exceptions import HostLost, OperationalError
from ..sqlite.entry import Base, Outcome, Result, Statement, decode_outcome
from ..sqlite.errors import StatementError
from . import socketpath, wire
from .api import LeaseLost, NodeConfig
from .requests import Request

CONNECT_TIMEOUT = 2.0
CLOSE_TIMEOUT = 1.0
MAX_IDLE_SOCKETS = 8
ALIVE_EVERY = 1.0
"""Seconds without an answer after which the host is asked whether it is there, and asked again."""


class AttachedNode:
    """Writes, transactions and status through the host; reads go to the file directly. A Backend.

    Thread-safe: each call, and each session, uses a socket of its own from a small pool. The host keeps the
    deadlines; this side only finds out when the host ended (its sockets end) or stands still (it does not say that it
    is there). ``lost`` turns true then, and the node is of no more use. A ``visitor`` only looks, and is not counted
    among the processes that are attached.
    """

    def __init__(self, config: NodeConfig, first: socket.socket, *, visitor: bool = False) -> None:
        self.config = config
        self._pid = 0 if visitor else os.getpid()
        self.lost = False
        self._closed = False
        self._watched: socket.socket | None = None
        self._mutex = threading.Lock()
        self._idle: list[socket.socket] = []
        self.host_pid = socketpath.peer_pid(first)
        pid = self._hello(first)
        self.host_pid = self.host_pid or pid
        self._idle.append(first)

    def open_origin(self, origin: bytes, *, timeout: float) -> None:
        """See Backend."""
        self._call(["open_origin", origin, timeout], timeout)

    def close_origin(self, origin: bytes) -> None:
        """See Backend."""
        with contextlib.suppress(OperationalError):
            self._call(["close_origin", origin], CLOSE_TIMEOUT)

    def execute(self, request: Request, *, timeout: float) -> Outcome:
        """See Backend."""
        sock = self._take()
        try:
            message = ["execute", *wire.encode_request(request), timeout]
            request.sent = True
            outcome = decode_outcome(self._converse(sock, message, timeout))
        finally:
            self._give(sock)
        return outcome

    def begin(
        self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> AttachedSession:
        """See Backend."""
        sock = self._take()
        try:
            base, claim = self._converse(sock, ["begin", dict(pragmas), reason, timeout, nowait], timeout)
        except BaseException:
            self._give(sock)
            raise
        return AttachedSession(self, sock, Base(*base), claim)

    def read_barrier(self, *, timeout: float) -> None:
        """See Backend."""
        self._call(["barrier", timeout], timeout)

    def staleness(self, limit: float, *, timeout: float) -> float:
        """See Backend."""
        age: float = self._call(["staleness", limit, timeout], timeout)
        return age

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        """See Backend."""
        reached: bool = self._call(["reach", lineage, version, timeout], timeout)
        return reached

    def verify(self, *, timeout: float) -> str:
        """See Backend."""
        verification: str = self._call(["verify", timeout], timeout)
        return verification

    def snapshot(self, *, timeout: float) -> str:
        """See Backend."""
        done: str = self._call(["snapshot", timeout], timeout)
        return done

    def change_members(self, verb: str, address: str, *, learner: bool, timeout: float) -> str:
        """See Backend."""
        done: str = self._call(["members", verb, address, learner, timeout], timeout)
        return done

    def status(self) -> dict[str, Any]:
        """See Backend."""
        status: dict[str, Any] = self._call(["status"], self.config.timeout)
        return status

    def figures(self) -> dict[str, Any]:
        """See Backend."""
        figures: dict[str, Any] = self._call(["figures"], self.config.timeout)
        return figures

    def note(self, counts: Mapping[str, int]) -> None:
        """See Backend."""
        self._call(["note", dict(counts)], CLOSE_TIMEOUT)

    def watch(self, ended: Callable[[], None]) -> None:
        """Have ``ended`` called, in a thread of its own, as soon as the host has ended; not after :meth:`close`.

        Raises HostLost.
        """
        self._watched = self._connect()
        threading.Thread(
            target=self._watch, args=(self._watched, ended), name="raftsqlite-watch", daemon=True
        ).start()

    def close(self) -> None:
        """Detach; idempotent."""
        self.lost = self._closed = True
        with self._mutex:
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()
        if self._watched is not None:
            with contextlib.suppress(OSError):
                self._watched.shutdown(socket.SHUT_RDWR)  # its thread wakes, and closes it

    def _watch(self, sock: socket.socket, ended: Callable[[], None]) -> None:
        with sock:
            wire.readable(sock, None)  # nothing ever comes through it but its end
        if not self._closed:
            self.lost = True
            ended()

    def _hello(self, sock: socket.socket) -> int:
        try:
            wire.send(sock, ["hello", wire.PROTOCOL, __version__, self._pid])
            answer = wire.receive(sock, time.monotonic() + CONNECT_TIMEOUT)
        except (wire.Closed, TimeoutError) as error:
            sock.close()
            raise self._gone(error) from error
        except BaseException:
            sock.close()
            raise
        if answer[0] != "ok":
            sock.close()
            raise wire.decode_error(answer)
        pid: int = answer[1]
        return pid

    def _call(self, message: list[Any], timeout: float) -> Any:
        sock = self._take()
        try:
            return self._converse(sock, message, timeout)
        finally:
            self._give(sock)

    def _converse(self, sock: socket.socket, message: list[Any], timeout: float | None) -> Any:
        """Ask and wait for the answer. The socket is closed when it may still get one, or can get no other."""
        try:
            wire.send(sock, message, wire.SEND_TIMEOUT if timeout is None else timeout + CONNECT_TIMEOUT)
            self._await(sock, timeout)
            answer = wire.receive(sock, time.monotonic() + wire.SEND_TIMEOUT)
        except BaseException as error:
            sock.close()  # an answer that comes later must not meet another request
            if not isinstance(error, wire.Closed | TimeoutError):
                raise
            raise self._gone(error) from error
        if answer[0] == "ok":
            return answer[1]
        raised = wire.decode_error(answer)
        if isinstance(raised, HostLost):  # it stops
            self.lost = True
        raise raised

    def _await(self, sock: socket.socket, timeout: float | None) -> None:
        """Return when an answer begins to come. Raises HostLost when the host ended or stands still.

        ``timeout`` (seconds) is the one that the host was told; None where it was told none: a statement on scratch
        may take as long as it likes. Both while the host shows signs of life.
        """
        deadline = time.monotonic() + (self.config.timeout if timeout is None else timeout)
        while not wire.readable(sock, ALIVE_EVERY):
            patience = max(deadline - time.monotonic(), CONNECT_TIMEOUT)
            other = self._take()
            try:
                wire.send(other, ["ping"], patience)
                wire.receive(other, time.monotonic() + patience)
            except BaseException:
                other.close()
                raise
            self._give(other)

    def _gone(self, error: Exception) -> HostLost:
        self.lost = True
        who = f" (process {self.host_pid})" if self.host_pid else ""
        what = "does not answer" if isinstance(error, TimeoutError) else "has ended"
        return HostLost(f"the process that hosts the node{who} {what}")

    def _connect(self) -> socket.socket:
        try:
            sock = socketpath.connect(self.config.folder, CONNECT_TIMEOUT)
        except OSError as error:
            raise self._gone(error) from error
        self._hello(sock)
        return sock

    def _take(self) -> socket.socket:
        with self._mutex:
            while self._idle:
                sock = self._idle.pop()
                if _alive(sock):
                    return sock
                sock.close()
        return self._connect()

    def _give(self, sock: socket.socket) -> None:
        """Keep a socket for the next call, unless it is closed."""
        with self._mutex:
            if not self.lost and sock.fileno() >= 0 and len(self._idle) < MAX_IDLE_SOCKETS:
                self._idle.append(sock)
                return
        sock.close()


def _alive(sock: socket.socket) -> bool:
    """Whether the host still holds the other end: known before anything is sent, so that nothing is left unknown."""
    try:
        sock.setblocking(False)
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False  # the end of the stream, or an answer that nobody asked for


class AttachedSession:
    """A :class:`~django_raftsqlite.node.api.BackendSession` on the host's scratch, over a socket of its own."""

    def __init__(self, node: AttachedNode, sock: socket.socket, base: Base, claim: bytes) -> None:
        self._node = node
        self._socket: socket.socket | None = sock
        self._in_transaction = True
        self.base = base
        self.claim = claim

    def execute(self, statement: Statement) -> Result:
        """See BackendSession."""
        (result,) = self.repeat([statement])
        if isinstance(result, StatementError):
            raise result
        return result

    def repeat(self, statements: Sequence[Statement]) -> list[Result | StatementError]:
        """See BackendSession."""
        message = ["run", [wire.encode_statement(statement) for statement in statements]]
        results, self._in_transaction = self._converse(message, None)
        return [wire.decode_ran(result) for result in results]

    def resume(self) -> None:
        """See BackendSession."""
        timeout = self._node.config.timeout
        self.base = Base(*self._converse(["resume"], timeout))
        self._in_transaction = True

    @property
    def in_transaction(self) -> bool:
        """See BackendSession."""
        return self._in_transaction

    def seal(self) -> None:
        """See BackendSession."""
        error = self._converse(["seal"], self._node.config.timeout)
        if error is not None:
            raise wire.decode_error(error)
        self._in_transaction = False

    def commit(self, request: Request, *, timeout: float) -> Outcome:
        """See BackendSession."""
        message = ["commit", *wire.encode_request(request), timeout]
        before, request.sent = request.sent, True
        try:
            error, outcome = self._converse(message, timeout)
        except BaseException:
            self._in_transaction = False
            self._release()
            raise
        if error is not None:  # an open foreign key, or it was moved: nothing was sent
            request.sent = before
            raise wire.decode_error(error)
        self._in_transaction = False
        self._release()
        return decode_outcome(outcome)

    def rollback(self) -> None:
        """See BackendSession."""
        if self._socket is not None:
            with contextlib.suppress(OperationalError):
                self._converse(["rollback"], self._node.config.timeout)
            self._release()

    def _converse(self, message: list[Any], timeout: float | None) -> Any:
        if self._socket is None:
            raise LeaseLost("the transaction is over")
        return self._node._converse(self._socket, message, timeout)

    def _release(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._node._give(sock)
