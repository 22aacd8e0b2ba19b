"""A node that another process of this machine hosts."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..exceptions import CommitOutcomeUnknown, HostLost, OperationalError, TransactionConflict
from ..sqlite.entry import Base, Result, Statement, decode_result
from . import socketpath, wire
from .api import NodeConfig

CONNECT_TIMEOUT = 2.0
ANSWER_GRACE = 2.0  # beyond the host's own deadline: a stopped host must not hang its guests
STATEMENT_TIMEOUT = 3600.0
MAX_IDLE_SOCKETS = 8


class AttachedNode:
    """Writes, transactions and status through the host; reads go to the file directly.

    Thread-safe: each call, and each session, uses a socket of its own from a small pool. ``lost`` turns true when
    the host has gone; the node is of no more use then.
    """

    def __init__(self, config: NodeConfig, first: socket.socket) -> None:
        self.config = config
        self.lost = False
        self._mutex = threading.Lock()
        self._idle: list[socket.socket] = []
        self.host_pid = self._hello(first)
        self._idle.append(first)

    def submit(self, statement: Statement, pragmas: Mapping[str, int], *, solo: bool, timeout: float) -> Result:
        """See Node. A host that ends meanwhile leaves the outcome unknown."""
        request = ["submit", wire.encode_statement(statement), dict(pragmas), solo, timeout]
        result = decode_result(self._call(request, timeout, unknown=True))
        assert result is not None
        return result

    def begin(
        self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> AttachedSession:
        """See Node."""
        sock = self._take()
        try:
            base = self._converse(sock, ["begin", dict(pragmas), reason, timeout, nowait], timeout)
        except HostLost:
            raise
        except BaseException:
            self._give(sock)
            raise
        return AttachedSession(self, sock, Base(*base))

    def read_barrier(self, *, timeout: float) -> None:
        """See Node."""
        self._call(["barrier", timeout], timeout)

    def status(self) -> dict[str, Any]:
        """See Node."""
        status: dict[str, Any] = self._call(["status"], self.config.timeout)
        return status

    def close(self) -> None:
        """Detach; idempotent."""
        self.lost = True
        with self._mutex:
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()

    def _hello(self, sock: socket.socket) -> int:
        pid: int = self._converse(sock, ["hello", wire.PROTOCOL, __version__, os.getpid()], CONNECT_TIMEOUT)
        return pid

    def _call(self, request: list[Any], timeout: float, *, unknown: bool = False) -> Any:
        sock = self._take()
        try:
            value = self._converse(sock, request, timeout, unknown=unknown)
        except (HostLost, CommitOutcomeUnknown):
            sock.close()
            raise
        except BaseException:
            self._give(sock)
            raise
        self._give(sock)
        return value

    def _converse(self, sock: socket.socket, request: list[Any], timeout: float, *, unknown: bool = False) -> Any:
        try:
            wire.send(sock, request)
            answer = wire.receive(sock, time.monotonic() + timeout + ANSWER_GRACE)
        except BaseException as error:
            sock.close()  # an answer that comes later must not meet another request
            if not isinstance(error, wire.Closed | TimeoutError):
                raise
            self.lost = True
            how = "did not answer in time" if isinstance(error, TimeoutError) else "has ended"
            text = f"the process that hosts the node{self._who()} {how}"
            if unknown:
                raise CommitOutcomeUnknown(f"{text}: the write may or may not have been committed") from error
            raise HostLost(f"{text}; the next statement attaches anew") from error
        if answer[0] == "ok":
            return answer[1]
        raise wire.decode_error(answer)

    def _who(self) -> str:
        return f" (process {self.host_pid})" if hasattr(self, "host_pid") else ""

    def _take(self) -> socket.socket:
        with self._mutex:
            while self._idle:
                sock = self._idle.pop()
                if _alive(sock):
                    return sock
                sock.close()
        try:
            sock = socketpath.connect(self.config.folder, CONNECT_TIMEOUT)
        except OSError as error:
            self.lost = True
            raise HostLost(
                f"the process that hosts the node (process {self.host_pid}) is not there any more ({error}); "
                "the next statement attaches anew"
            ) from error
        self._hello(sock)
        return sock

    def _give(self, sock: socket.socket) -> None:
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
    """A :class:`~django_raftsqlite.node.api.WriteSession` on the host's scratch, over a socket of its own."""

    def __init__(self, node: AttachedNode, sock: socket.socket, base: Base) -> None:
        self._node = node
        self._socket: socket.socket | None = sock
        self._in_transaction = True
        self._total_changes = 0
        self.base = base

    def execute(self, statement: Statement) -> Result:
        """See WriteSession."""
        request = ["execute", wire.encode_statement(statement)]
        error, result, self._in_transaction, self._total_changes = self._converse(request, STATEMENT_TIMEOUT)
        if error is not None:
            raise wire.decode_error(error)
        decoded = decode_result(result)
        assert decoded is not None
        return decoded

    @property
    def in_transaction(self) -> bool:
        """See WriteSession."""
        return self._in_transaction

    def total_changes(self) -> int:
        """See WriteSession."""
        return self._total_changes

    def commit(self, statements: Sequence[Statement], *, timeout: float) -> None:
        """See WriteSession."""
        request = ["commit", [wire.encode_statement(s) for s in statements], timeout]
        try:
            error, self._in_transaction = self._converse(request, timeout, unknown=True)
        except BaseException:
            self._in_transaction = False
            self._release()
            raise
        if not self._in_transaction:
            self._release()
        if error is not None:
            raise wire.decode_error(error)

    def rollback(self) -> None:
        """See WriteSession."""
        if self._socket is not None:
            with contextlib.suppress(OperationalError):
                self._converse(["rollback"], self._node.config.timeout)
            self._release()

    def _converse(self, request: list[Any], timeout: float, *, unknown: bool = False) -> Any:
        if self._socket is None:
            raise TransactionConflict("the transaction is over")
        try:
            return self._node._converse(self._socket, request, timeout, unknown=unknown)
        except (HostLost, CommitOutcomeUnknown):
            if self._socket.fileno() < 0:
                self._socket = None
            raise

    def _release(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._node._give(sock)
