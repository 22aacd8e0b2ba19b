"""The host's side of the node's Unix socket: one thread for each attached connection."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..sqlite.entry import encode_outcome
from ..sqlite.errors import StatementError
from ..sqlite.wellformed import check_item
from . import socketpath, wire
from .api import Moved
from .requests import Request

if TYPE_CHECKING:
    from .host import HostedNode
    from .session import LocalSession

logger = logging.getLogger("django_raftsqlite.node")

HELLO_TIMEOUT = 2.0
LONGEST_WAIT = 30 * 86400.0
"""Seconds. The thread of a request that waits for longer would outlive its process for ever."""
_TIMED = dict.fromkeys(
    ("open_origin", "execute", "commit", "barrier", "staleness", "reach", "members", "verify", "snapshot"), -1
) | {"begin": 2}
"""Where a request has its timeout."""


class AttachServer:
    """Accepts attached processes and does for them what the host does for itself.

    The accept thread owns the listener; each connection's thread owns its socket and at most one session, which
    is rolled back when the connection ends, however it ends.
    """

    def __init__(self, host: HostedNode) -> None:
        self._host = host
        self._listener: socket.socket | None = None
        self._mutex = threading.Lock()
        self._connections: dict[_Connection, threading.Thread] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="raftsqlite-attach", daemon=True)

    def start(self) -> None:
        """Open the socket. Raises OSError."""
        config = self._host.config
        self._listener = socketpath.listen(config.folder, config.mode)
        self._thread.start()

    def close(self) -> None:
        """Close the listener and every connection, so that their processes look for another host at once."""
        self._closing = True
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(2)
        self._thread.join()
        self._listener.close()
        with contextlib.suppress(OSError):
            (self._host.config.folder / socketpath.SOCKET_NAME).unlink()
        with self._mutex:
            connections = list(self._connections)
        for connection in connections:
            connection.shutdown()

    def join(self, timeout: float) -> None:
        """Wait (``timeout`` seconds at most) until the connections' threads have ended; after the host was closed."""
        deadline = time.monotonic() + timeout
        with self._mutex:
            threads = list(self._connections.values())
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def status(self) -> dict[str, Any]:
        """The host's, with the ids of the processes that are attached."""
        status = self._host.status()
        with self._mutex:
            attached = {connection.pid for connection in self._connections if connection.pid}
        status["host"]["attached"] = sorted(attached)
        return status

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closing:
            try:
                sock = socketpath.accept(self._listener)
            except OSError:
                if not self._closing:
                    logger.exception("node %s no longer accepts attached processes", self._host.config.address)
                return
            connection = _Connection(self, self._host, sock)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._mutex:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.serve()
        finally:
            with self._mutex:
                del self._connections[connection]


class _Connection:
    """One attached connection. ``pid`` is what the other side said it is; 0 for one that only looks."""

    def __init__(self, server: AttachServer, host: HostedNode, sock: socket.socket) -> None:
        self._server = server
        self._host = host
        self._socket = sock
        self._session: LocalSession | None = None
        self.pid = 0
        self._verbs: dict[str, Callable[..., Any]] = {
            "ping": lambda: None,
            "open_origin": self._open_origin,
            "close_origin": host.close_origin,
            "execute": self._execute,
            "begin": self._begin,
            "run": self._run,
            "seal": self._seal,
            "resume": self._resume,
            "commit": self._commit,
            "rollback": self._rollback,
            "barrier": self._barrier,
            "staleness": self._staleness,
            "reach": self._reach,
            "status": self._status,
            "figures": host.figures,
            "note": host.note,
            "members": lambda verb, address, learner, timeout: host.change_members(
                verb, address, learner=learner, timeout=timeout
            ),
            "verify": lambda timeout: host.verify(timeout=timeout),
            "snapshot": lambda timeout: host.snapshot(timeout=timeout),
        }

    def serve(self) -> None:
        try:
            if self._hello():
                while True:
                    self._answer(wire.receive(self._socket))
        except (wire.Closed, TimeoutError):
            pass
        except Exception:
            logger.exception("an attached process (%s) was cut off", self.pid or "before it said who it is")
        finally:
            self._rollback()
            self._socket.close()

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _hello(self) -> bool:
        hello = wire.receive(self._socket, time.monotonic() + HELLO_TIMEOUT, wire.MAX_HELLO)
        match hello:
            case ["hello", protocol, str(version), int(pid)]:
                pass
            case _:
                return False
        if (protocol, version) != (wire.PROTOCOL, __version__):
            text = (
                f"process {os.getpid()} hosts this node with django-raftsqlite {__version__} (protocol "
                f"{wire.PROTOCOL}), this process runs {version} (protocol {protocol}): restart the older of the two"
            )
            wire.send(self._socket, ["error", "OperationalError", text])
            return False
        self.pid = pid
        wire.send(self._socket, ["ok", os.getpid()])
        return True

    def _answer(self, request: Any) -> None:
        if not isinstance(request, list) or not request:
            raise wire.Closed("what it says is no request")
        verb, *arguments = request
        try:
            if verb in _TIMED and not arguments[_TIMED[verb]] <= LONGEST_WAIT:
                raise ValueError("nobody waits for as long as that")
            answer = ["ok", self._verbs[verb](*arguments)]
        except Exception as error:
            answer = wire.encode_error(error)
        wire.send(self._socket, answer)

    def _open_origin(self, origin: bytes, timeout: float) -> None:
        self._host.open_origin(origin, timeout=timeout)

    def _execute(self, *arguments: Any) -> bytes:
        *request, timeout = arguments
        return encode_outcome(self._host.execute(_checked(request), timeout=timeout))

    def _begin(self, pragmas: dict[str, int], reason: str, timeout: float, nowait: bool) -> Any:
        self._rollback()
        self._session = self._host.begin_for(self.pid, pragmas, reason=reason, timeout=timeout, nowait=nowait)
        return tuple(self._session.base), self._session.claim

    def _run(self, statements: list[Any]) -> Any:
        """The results, and whether the transaction goes on."""
        session = self._need_session()
        results = session.repeat([wire.decode_statement(statement) for statement in statements])
        return [wire.encode_ran(result) for result in results], session.in_transaction

    def _resume(self) -> Any:
        session = self._need_session()
        session.resume()
        return tuple(session.base)

    def _seal(self) -> Any:
        """Answers with the statement's error, which leaves the session open."""
        try:
            self._need_session().seal()
        except (StatementError, Moved) as error:
            return wire.encode_error(error)
        return None

    def _commit(self, *arguments: Any) -> Any:
        """Answers with the statement's error, which leaves the session open, or with the request's outcome."""
        *request, timeout = arguments
        session = self._need_session()
        try:
            outcome = session.commit(_checked(request), timeout=timeout)
        except (StatementError, Moved) as error:
            return wire.encode_error(error), None
        except BaseException:
            self._session = None
            raise
        self._session = None
        return None, encode_outcome(outcome)

    def _rollback(self) -> None:
        if self._session is not None:
            self._session.rollback()
            self._session = None

    def _barrier(self, timeout: float) -> None:
        self._host.read_barrier(timeout=timeout)

    def _staleness(self, limit: float, timeout: float) -> float:
        return self._host.staleness(limit, timeout=timeout)

    def _reach(self, lineage: bytes, version: int, timeout: float) -> bool:
        return self._host.reach(lineage, version, timeout=timeout)

    def _status(self) -> Any:
        return self._server.status()

    def _need_session(self) -> LocalSession:
        if self._session is None:
            raise RuntimeError("no transaction is open on this connection")
        return self._session


def _checked(value: list[Any]) -> Request:
    """A request whose content every node can decode. Raises ValueError."""
    request = wire.decode_request(value)
    check_item(request.kind, request.payload, request.id.to_bytes(), request.solo)
    return request
