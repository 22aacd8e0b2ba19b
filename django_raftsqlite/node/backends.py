"""A process's backend of a node: it hosts it, or attaches to the process that does, again and again as hosts end."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import apsw

from ..exceptions import HostLost, OperationalError, Unavailable
from ..sqlite import forking
from ..sqlite.connections import Snapshot
from ..sqlite.errors import NodeFault
from ..sqlite.readers import ReaderPool
from . import socketpath
from .api import Backend, NodeConfig
from .attached import AttachedNode
from .host import HostedNode
from .lock import FolderLock
from .server import AttachServer
from .snapshots import SnapshotWatch
from .suspicion import Mark

logger = logging.getLogger("django_raftsqlite.node")

RETRY = 0.05
CONNECT_TIMEOUT = 0.2
JOIN_TIMEOUT = 5.0
SHORTEST_WAIT = 0.05
T = TypeVar("T")

_all: weakref.WeakSet[Backends] = weakref.WeakSet()


class Backends:
    """The backends of one node in this process, one after the other.

    Opens one at the first need: takes the folder's lock and hosts, or attaches to the process that has it. When that
    one ends, it opens the next at once, so that the node is never without a host while a process is there that may
    host. The read-only connections to the node's file stay the same. After :meth:`close` (``closed``) there is no
    next one; in a forked child (not ``mine``) there is none at all.

    Thread-safe. ``_mutex`` is held while a backend is opened or closed, and waited for with a deadline.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.closed = False
        self.mine = True
        self._mutex = threading.Lock()
        self._backend: Backend | None = None
        self._server: AttachServer | None = None
        self._mark: Mark | None = None
        self._readers: ReaderPool | None = None
        self._watch: SnapshotWatch | None = None
        self._trouble: str | None = None  # of the thread that opens it, for those that wait for that
        self._notes: Counter[str] = Counter()
        self._notes_mutex = threading.Lock()
        _all.add(self)

    @property
    def readers(self) -> ReaderPool:
        """Read-only connections to this node's file; opens the node if nobody has yet."""
        readers = self._readers
        if readers is None:
            self.current()
            readers = self._readers
            assert readers is not None
        return readers

    @property
    def hosting(self) -> bool:
        """Whether this process hosts the node (a snapshot)."""
        return isinstance(self._backend, HostedNode)

    def current(self, deadline: float | None = None) -> Backend:
        """The hosted or attached node. Raises OperationalError when there is none, Unavailable when not in time."""
        backend = self._backend
        if backend is not None and not backend.lost and self.mine:
            return backend
        if not self.mine:
            raise OperationalError(f"the node of {self.config.name} was opened before this process forked")
        if deadline is None:
            deadline = time.monotonic() + self.config.timeout
        if not self._mutex.acquire(timeout=max(deadline - time.monotonic(), SHORTEST_WAIT)):
            why = self._trouble or f"the node of {self.config.name} was not opened in time by another thread"
            raise Unavailable(why, "too slow")
        try:
            backend = self._backend
            if backend is not None and backend.lost:
                backend.close()
                backend = self._backend = None
            if backend is None:
                if self.closed:
                    raise OperationalError(f"the node of {self.config.name} is closed in this process")
                backend = self._backend = self._open(deadline)
                self._trouble = None
            return backend
        finally:
            self._mutex.release()

    def ask(self, question: Callable[[Backend, float], T], deadline: float) -> T:
        """Ask the backend what may be asked twice; a host that has gone is replaced at once."""
        while True:
            try:
                return self.told(question(self.current(deadline), left(deadline)))
            except HostLost:
                if time.monotonic() >= deadline:
                    raise

    def told(self, answer: T) -> T:
        """What the backend says is true of the node's present file: the next read has to be of no older one."""
        if self._mark is not None:
            self._mark.look_again()
        return answer

    def status(self, timeout: float) -> dict[str, Any]:
        """What the host says of the node, with the process ids that are attached."""

        def status(backend: Backend, _left: float) -> dict[str, Any]:
            server = self._server
            return backend.status() if server is None else server.status()

        return self.ask(status, time.monotonic() + timeout)

    def note(self, what: str) -> None:
        """Count it for the host, which is told within seconds."""
        with self._notes_mutex:
            self._notes[what] += 1

    def tell_notes(self) -> None:
        """Tell the host what was noted; what it could not be told is kept for the next time."""
        backend = self._backend
        if not self._notes or backend is None:
            return
        with self._notes_mutex:
            notes, self._notes = self._notes, Counter()
        try:
            backend.note(notes)
        except OperationalError:
            with self._notes_mutex:
                self._notes.update(notes)

    def close(self, farewell: Callable[[Backend], object]) -> None:
        """Stop hosting, or detach; idempotent. ``farewell`` is the last word to a backend that is not lost."""
        self.tell_notes()
        self.closed = True
        with self._mutex:
            backend, self._backend = self._backend, None
            server, self._server = self._server, None
            readers, self._readers = self._readers, None
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.close()
            if server is not None:
                server.close()
            if readers is not None:
                readers.close()
            if backend is not None:
                if not backend.lost:
                    farewell(backend)
                backend.close()
            if server is not None:
                server.join(JOIN_TIMEOUT)

    # To open one -------------------------------------------------------------------------------------------

    def _open(self, deadline: float) -> Backend:
        problem = "nobody hosts it"
        lock = self._prepare() if self.config.host else None
        while True:
            try:
                if lock is not None and lock.acquire():
                    return self._host(lock)
                return self._attach()
            except (OSError, HostLost) as error:
                problem = str(error)
            except OperationalError as error:
                # A process that was killed gives its lock up a moment before its port.
                if not _port_in_use(error) or self.closed or time.monotonic() > deadline:
                    raise
            self._trouble = text = self._nobody(problem, None if lock is None else lock.holder)
            if self.closed or time.monotonic() > deadline:
                if lock is None and self._readers is None:  # never yet: rather a mistake than a fault
                    raise OperationalError(text)
                raise Unavailable(text, "too slow")
            time.sleep(RETRY)

    def _attach(self) -> AttachedNode:
        attached = AttachedNode(self.config, socketpath.connect(self.config.folder, CONNECT_TIMEOUT))
        try:
            if self.config.host:
                attached.watch(self._succeed)
            self._open_readers()
        except BaseException:
            attached.close()
            raise
        return attached

    def _host(self, lock: FolderLock) -> HostedNode:
        try:
            host = HostedNode(self.config, lock, self._oldest_snapshot)
        except (NodeFault, OSError, apsw.Error) as error:
            lock.release()
            raise OperationalError(f"the node of {self.config.name} cannot be opened: {error}") from error
        except BaseException:
            lock.release()
            raise
        server = AttachServer(host)
        try:
            host.start()
            server.start()
            self._open_readers()
        except BaseException as error:
            server.close()
            host.close()
            if not isinstance(error, OSError):
                raise
            raise OperationalError(f"the node's socket in {self.config.folder} cannot be opened: {error}") from error
        self._server = server
        return host

    def _open_readers(self) -> None:
        if self._readers is None:
            self._readers = self._reader_pool()
            self._watch = SnapshotWatch(self._readers, self.config.name, self.config.wal_limit, also=self.tell_notes)
            self._watch.start()

    def _reader_pool(self) -> ReaderPool:
        self._mark = Mark(self.config.folder)
        return ReaderPool(self.config.name, self.config.registrars, permit=self._mark.permit)

    def _oldest_snapshot(self) -> Snapshot | None:
        readers = self._readers
        return None if readers is None else readers.oldest_snapshot()

    def _succeed(self) -> None:
        """The host has ended: one of the processes that were attached must host the node now, busy or not."""
        while not self.closed:
            try:
                self.current()
            except OperationalError as error:
                logger.warning("the node of %s has no host at the moment: %s", self.config.name, error)
                time.sleep(1.0)
            else:
                return

    def _nobody(self, problem: str, holder: int | None) -> str:
        if not self.config.host:
            return (
                f"no process hosts the node of {self.config.name} ({problem}), and this one may not: start one with "
                '`manage.py raft node`, or remove OPTIONS["host"] = False'
            )
        who = "the process" if holder is None else f"process {holder}"
        return (
            f"{who}, which holds the lock of {self.config.folder} and so hosts its node, does not answer: {problem}"
        )

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


def left(deadline: float) -> float:
    """Seconds until ``deadline``, and always enough for an answer that is there."""
    return max(deadline - time.monotonic(), SHORTEST_WAIT)


def _port_in_use(error: OperationalError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


def _disown() -> None:
    """A forked child must not touch its parent's threads, sockets or SQLite handles, not even to close them."""
    for backends in list(_all):
        backends.mine = False
        forking.keep_for_ever(backends)
    _all.clear()


os.register_at_fork(after_in_child=_disown)
