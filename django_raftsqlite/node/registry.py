"""The nodes of this process: one for each database file, hosted here or attached to."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import apsw

from ..exceptions import HostLost, OperationalError
from ..sqlite.entry import Result, Statement
from ..sqlite.errors import NodeFault
from ..sqlite.readers import ReaderPool
from . import socketpath
from .api import NodeConfig, WriteSession
from .attached import AttachedNode
from .host import HostedNode
from .lock import FolderLock
from .server import AttachServer

RETRY = 0.05
Backend = HostedNode | AttachedNode
T = TypeVar("T")


class ProcessNode:
    """This process's share of a node: it stays the same object while hosts come and go.

    Opens its backend at the first need: takes the folder's lock and hosts, or attaches to the process
    that has it. When that one is lost, the call that noticed raises and the next one opens anew. Thread-safe.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._mutex = threading.Lock()
        self._backend: Backend | None = None
        self._server: AttachServer | None = None
        self._readers: ReaderPool | None = None
        self._closed = False

    @property
    def readers(self) -> ReaderPool:
        """Read-only connections to this node's file; opens the node if nobody has yet."""
        readers = self._readers
        if readers is None:
            self.backend()
            readers = self._readers
            assert readers is not None
        return readers

    @property
    def hosting(self) -> bool:
        """Whether this process hosts the node (a snapshot)."""
        return isinstance(self._backend, HostedNode)

    def backend(self) -> Backend:
        """The hosted or attached node. Raises OperationalError when neither can be had in time."""
        backend = self._backend
        if backend is not None and not (isinstance(backend, AttachedNode) and backend.lost):
            return backend
        with self._mutex:
            backend = self._backend
            if isinstance(backend, AttachedNode) and backend.lost:
                backend.close()
                backend = self._backend = None
            if backend is None:
                if self._closed:
                    raise OperationalError(f"the node of {self.config.name} is closed in this process")
                backend = self._backend = self._open()
            return backend

    def submit(self, statement: Statement, pragmas: Mapping[str, int], *, solo: bool, timeout: float) -> Result:
        """See Node."""
        return self._ask(lambda backend: backend.submit(statement, pragmas, solo=solo, timeout=timeout))

    def begin(self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False) -> WriteSession:
        """See Node."""

        def begin(backend: Backend) -> WriteSession:
            return backend.begin(pragmas, reason=reason, timeout=timeout, nowait=nowait)

        return self._ask(begin)

    def read_barrier(self, *, timeout: float) -> None:
        """See Node."""
        self._ask(lambda backend: backend.read_barrier(timeout=timeout))

    def status(self) -> dict[str, Any]:
        """See Node; with the process ids that are attached."""
        status = self._ask(lambda backend: backend.status())
        if self._server is not None:
            status["host"]["attached"] = self._server.attached()
        return status

    def _ask(self, question: Callable[[Backend], T]) -> T:
        """HostLost says that nothing was executed yet, so a host that has gone is replaced at once."""
        try:
            return question(self.backend())
        except HostLost:
            return question(self.backend())

    def close(self) -> None:
        """Stop hosting, or detach; idempotent."""
        with self._mutex:
            self._closed = True
            backend, self._backend = self._backend, None
            server, self._server = self._server, None
            readers, self._readers = self._readers, None
            if server is not None:
                server.close()
            if readers is not None:
                readers.close()
            if backend is not None:
                backend.close()

    def _open(self) -> Backend:
        folder = self.config.folder
        deadline = time.monotonic() + self.config.timeout
        problem = "nobody hosts it"
        lock = self._prepare() if self.config.host else None
        while True:
            if lock is not None and lock.acquire():
                return self._host(lock)
            try:
                backend = AttachedNode(self.config, socketpath.connect(folder, RETRY * 4))
            except (OSError, HostLost) as error:
                problem = str(error)
            else:
                if self._readers is None:
                    self._readers = ReaderPool(self.config.name, self.config.registrars)
                return backend
            if time.monotonic() > deadline:
                raise OperationalError(self._nobody(problem))
            time.sleep(RETRY)

    def _host(self, lock: FolderLock) -> HostedNode:
        try:
            host = HostedNode(self.config, lock)
        except (NodeFault, OSError, apsw.Error) as error:
            lock.release()
            raise OperationalError(f"the node of {self.config.name} cannot be opened: {error}") from error
        except BaseException:
            lock.release()
            raise
        host.start()
        server = AttachServer(host)
        try:
            server.start()
        except OSError as error:
            host.close()
            raise OperationalError(f"the node's socket in {self.config.folder} cannot be opened: {error}") from error
        self._server = server
        if self._readers is None:
            self._readers = ReaderPool(self.config.name, self.config.registrars)
        return host

    def _nobody(self, problem: str) -> str:
        if not self.config.host:
            return (
                f"no process hosts the node of {self.config.name} ({problem}), and this one may not: start one with "
                '`manage.py raft node`, or remove OPTIONS["host"] = False'
            )
        return f"the process that holds the lock of {self.config.folder} does not answer: {problem}"

    def _prepare(self) -> FolderLock:
        """The node's folder, made if need be; its mode follows the files' (read implies enter)."""
        folder, mode = self.config.folder, self.config.mode
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(mode | (mode & 0o444) >> 2)
            return FolderLock(folder, mode)
        except OSError as error:
            raise OperationalError(f"the node's folder {folder} cannot be made: {error}") from error


_mutex = threading.Lock()
_nodes: dict[Path, ProcessNode] = {}
_inherited: list[ProcessNode] = []


def open_node(config: NodeConfig) -> ProcessNode:
    """This process's node for ``config.name``; two aliases with one file share it."""
    key = Path(os.path.realpath(config.name))
    with _mutex:
        node = _nodes.get(key)
        if node is None or node._closed:
            node = _nodes[key] = ProcessNode(config)
        return node


def attach_node(config: NodeConfig) -> AttachedNode | None:
    """The node as its host's guest, to look at it: None when no process hosts it. The caller closes it."""
    try:
        return AttachedNode(config, socketpath.connect(config.folder, config.timeout))
    except (OSError, HostLost):
        return None


def close_node(name: Path) -> None:
    """Close this process's node for that database file, if it has one."""
    with _mutex:
        node = _nodes.pop(Path(os.path.realpath(name)), None)
    if node is not None:
        node.close()


def close_nodes() -> None:
    """Close all nodes of this process."""
    with _mutex:
        nodes = list(_nodes.values())
        _nodes.clear()
    for node in nodes:
        with contextlib.suppress(OperationalError):
            node.close()


def _forget_in_child() -> None:
    """A forked child must not touch its parent's threads, sockets or SQLite handles, not even to close them."""
    global _mutex  # noqa: PLW0603 - it may be held by a thread that does not exist here
    _mutex = threading.Lock()
    _inherited.extend(_nodes.values())
    _nodes.clear()


atexit.register(close_nodes)
os.register_at_fork(after_in_child=_forget_in_child)
