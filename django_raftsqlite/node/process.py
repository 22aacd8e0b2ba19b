"""A process's share of a node: what it writes ends exactly once, whichever process hosts the node meanwhile."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import apsw

from ..exceptions import (
    CommitOutcomeUnknown,
    DataError,
    HostLost,
    LeaseTimeout,
    OperationalError,
    Unavailable,
)
from ..sqlite import forking
from ..sqlite.connections import Snapshot
from ..sqlite.entry import Base, Outcome, RequestId, Result, Statement, Statements, Status, Transaction
from ..sqlite.errors import NodeFault, StatementError
from ..sqlite.parts import TransactionTooLarge, encode_pieces
from ..sqlite.readers import ReaderPool
from ..sqlite.restoring import send_file
from . import socketpath, tracing
from .api import Backend, BackendSession, Moved, NodeConfig
from .attached import AttachedNode
from .host import HostedNode
from .lock import FolderLock
from .origin import Origin
from .requests import Encoded, OriginClosed, Request
from .server import AttachServer
from .snapshots import SnapshotWatch
from .staleness import ASK_AT, moment
from .suspicion import Mark
from .verdicts import raise_unless_done, unknown

logger = logging.getLogger("django_raftsqlite.node")

RETRY = 0.05
CONNECT_TIMEOUT = 0.2
JOIN_TIMEOUT = 5.0
SHORTEST_WAIT = 0.05
T = TypeVar("T")
Encode = Callable[[RequestId, int], Encoded]

_all: weakref.WeakSet[ProcessNode] = weakref.WeakSet()


class ProcessNode:
    """This process's share of a node: it stays the same object while hosts come and go. A Node.

    Opens its backend at the first need: takes the folder's lock and hosts, or attaches to the process that has it.
    When that one ends, it opens anew at once, so that the node is never without a host while a process is there that
    may host. Numbers this process's requests (``origin``) and sends each of them, under its one id, to one backend
    after the other until its outcome is known or its deadline passes.

    Thread-safe. ``_mutex`` is held while a backend is opened or closed, and waited for with a deadline.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.origin = Origin()
        self._mutex = threading.Lock()
        self._backend: Backend | None = None
        self._server: AttachServer | None = None
        self._mark: Mark | None = None
        self._readers: ReaderPool | None = None
        self._watch: SnapshotWatch | None = None
        self._notes: Counter[str] = Counter()
        self._notes_mutex = threading.Lock()
        self._as_of = -inf  # the newest moment of which it is known that all committed before it is applied
        self._closed = False
        self._mine = True
        _all.add(self)

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

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def mine(self) -> bool:
        """Whether this process made it; false in a forked child, which must open a node of its own."""
        return self._mine

    def backend(self, deadline: float | None = None) -> Backend:
        """The hosted or attached node. Raises OperationalError when there is none, Unavailable when not in time."""
        backend = self._backend
        if backend is not None and not backend.lost and self._mine:
            return backend
        if not self._mine:
            raise OperationalError(f"the node of {self.config.name} was opened before this process forked")
        if deadline is None:
            deadline = time.monotonic() + self.config.timeout
        if not self._mutex.acquire(timeout=max(deadline - time.monotonic(), SHORTEST_WAIT)):
            raise Unavailable(f"the node of {self.config.name} was not opened in time by another thread", "too slow")
        try:
            backend = self._backend
            if backend is not None and backend.lost:
                backend.close()
                backend = self._backend = None
            if backend is None:
                if self._closed:
                    raise OperationalError(f"the node of {self.config.name} is closed in this process")
                backend = self._backend = self._open(deadline)
            return backend
        finally:
            self._mutex.release()

    # The Node protocol --------------------------------------------------------------------------------------

    def submit(self, statement: Statement, pragmas: Mapping[str, int], *, solo: bool, timeout: float) -> Result:
        """See Node."""
        encode = self.encoder((statement,), None, pragmas, solo=solo)
        outcome = self.settle(encode, solo=solo, deadline=time.monotonic() + timeout)
        if outcome.result is None:
            raise OperationalError(
                "the write was committed, but its rows (over 64 KiB) were lost with the leader that first sent it"
            )
        return outcome.result

    def begin(self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False) -> Session:
        """See Node."""
        deadline = time.monotonic() + timeout

        def begin(backend: Backend, left: float) -> BackendSession:
            return backend.begin(pragmas, reason=reason, timeout=left, nowait=nowait)

        with tracing.span(tracing.LEASE_WAIT, self.config):
            return self._begin(begin, deadline, pragmas, nowait=nowait)

    def _begin(
        self,
        begin: Callable[[Backend, float], BackendSession],
        deadline: float,
        pragmas: Mapping[str, int],
        *,
        nowait: bool,
    ) -> Session:
        if nowait and not self.origin.opened:
            # To open it may take as long as the lease is another's, which is to be told at once. And COMMIT could not
            # open it: that waits for the lease to end.
            self._ask(begin, deadline).rollback()
        self._need_origin(deadline)
        return Session(self, self._ask(begin, deadline), pragmas)

    def read_barrier(self, *, timeout: float) -> None:
        """See Node."""
        self._ask(lambda backend, left: backend.read_barrier(timeout=left), time.monotonic() + timeout)

    def limit_staleness(self, limit: float, *, timeout: float) -> None:
        """See Node. What the backend said last is kept, so that most reads ask nobody."""
        asked = moment()
        if asked - self._as_of > limit * ASK_AT:
            deadline = time.monotonic() + timeout
            age = self._ask(lambda backend, left: backend.staleness(limit, timeout=left), deadline)
            self._as_of = max(self._as_of, asked - age)

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        """See Node."""
        deadline = time.monotonic() + timeout
        return self._ask(lambda backend, left: backend.reach(lineage, version, timeout=left), deadline)

    def restore(self, path: Path, *, timeout: float, told: Callable[[int], object] = lambda _: None) -> bytes:
        """Put the content of a file that :func:`~..sqlite.restoring.prepare` made in the place of the whole group's.

        Returns when that is applied here: the lineage that began with it. Every part of the file may take ``timeout``
        seconds; ``told`` hears how many bytes were sent. Until all are, nothing has changed. Raises Unavailable,
        LeaseTimeout (surely not restored), OperationalError (not fit to be restored), CommitOutcomeUnknown, OSError.
        """
        lineage = os.urandom(16)
        sent = send_file(path, lineage, told)
        try:
            self.settle(lambda _id, _low_water: sent, solo=True, deadline=time.monotonic() + timeout)
        except StatementError as error:
            raise OperationalError(f"nothing was restored: {error}") from error
        return lineage

    def status(self) -> dict[str, Any]:
        """See Node; with the process ids that are attached."""

        def status(backend: Backend, _left: float) -> dict[str, Any]:
            server = self._server
            return backend.status() if server is None else server.status()

        return self._ask(status, time.monotonic() + self.config.timeout)

    def figures(self) -> dict[str, Any]:
        """See Node; what this process has noted is told first."""
        self._tell_notes()
        return self._ask(lambda backend, _left: backend.figures(), time.monotonic() + self.config.timeout)

    def note(self, what: str) -> None:
        """See Node. The host is told within seconds."""
        with self._notes_mutex:
            self._notes[what] += 1

    def _tell_notes(self) -> None:
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

    def close(self) -> None:
        """Stop hosting, or detach; idempotent. In a forked child it does nothing."""
        if not self._mine:
            return
        self._tell_notes()
        self._closed = True
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
                if self.origin.opened and not backend.lost:
                    backend.close_origin(self.origin.id)
                backend.close()
            if server is not None:
                server.join(JOIN_TIMEOUT)

    # Requests -----------------------------------------------------------------------------------------------

    def encoder(self, statements: Statements, base: Base | None, pragmas: Mapping[str, int], *, solo: bool) -> Encode:
        """What writes a transaction down for :meth:`settle`; raises DataError when it is too large."""

        def encode(request: RequestId, low_water: int) -> Encoded:
            limit = self.config.max_transaction_bytes
            try:
                return encode_pieces(Transaction(request, low_water, statements, base, pragmas, solo), limit=limit)
            except TransactionTooLarge as error:
                raise DataError(
                    f"a transaction of {error.size} bytes is beyond the limit of {limit} bytes "
                    '(OPTIONS["max_transaction_bytes"]): write it in smaller transactions, or raise the limit'
                ) from error

        return encode

    def settle(
        self, encode: Encode, *, solo: bool, deadline: float, session: BackendSession | None = None
    ) -> Outcome:
        """Number what was encoded and bring it to its outcome, which is DONE; ``session`` is the one that it
        commits.

        Raises as Node.submit and WriteSession.commit say.
        """
        with tracing.span(tracing.COMMIT, self.config, autocommit=session is None):
            return self._settle(encode, solo=solo, deadline=deadline, session=session)

    def _settle(self, encode: Encode, *, solo: bool, deadline: float, session: BackendSession | None) -> Outcome:
        patience = _left(deadline)
        while True:
            if session is None:
                self._need_origin(deadline)
            request = self.origin.create(encode, solo=solo, lease=None if session is None else session.claim)
            try:
                if request.pieces:
                    if session is not None and not self._seal(session):
                        session = None
                    self._send_parts(request, patience)
                    deadline = time.monotonic() + patience
                outcome = self._execute(request, deadline, session)
            except OriginClosed:  # surely not executed, so it may have another number
                self.origin.renew(request.id.origin)
                session = None
                continue
            finally:
                self.origin.forget(request)
            if outcome.status is Status.REFUSED:
                self.origin.renew(request.id.origin)
            raise_unless_done(outcome)
            return outcome

    def _seal(self, session: BackendSession) -> bool:
        """End a session's statements; whether its host is still there to commit it."""
        try:
            session.seal()
        except HostLost:
            return False
        return True

    def _send_parts(self, request: Request, patience: float) -> None:
        """Have the parts of a transaction applied, so that it can name them.

        One after the other, so that others' writes go between them and no message is long in the way of a heartbeat.
        Each of them may take ``patience`` seconds. Raises as :meth:`Backend.execute`, but never CommitOutcomeUnknown,
        since parts alone change nothing.
        """
        for number in range(len(request.pieces)):
            part = self.origin.part(request, number)
            request.pieces[number] = b""
            try:
                outcome = self._execute(part, time.monotonic() + patience, None)
            except CommitOutcomeUnknown as error:
                raise Unavailable(
                    f"nothing of the transaction was executed, since a part of it was not replicated: {error}",
                    "too slow",
                ) from error
            finally:
                self.origin.forget(part)
            if outcome.status is not Status.DONE:
                raise OriginClosed

    def _execute(self, request: Request, deadline: float, session: BackendSession | None) -> Outcome:
        """Have one host after the other execute it, always under the same id."""
        while True:
            try:
                if session is not None:
                    return self._told(session.commit(request, timeout=_left(deadline)))
                return self._told(self._backend_for(request, deadline).execute(request, timeout=_left(deadline)))
            except HostLost as error:
                session = None
                if time.monotonic() < deadline:
                    continue
                if request.sent:
                    raise unknown(error) from error
                raise Unavailable(f"the write was not sent: {error}", "too slow") from error

    def _backend_for(self, request: Request, deadline: float) -> Backend:
        """Any backend; where the request may be in the log, only the deadline ends the search."""
        while True:
            try:
                return self.backend(deadline)
            except OperationalError as error:
                if not request.sent:
                    raise
                if self._closed or time.monotonic() >= deadline:
                    raise unknown(error) from error
                time.sleep(RETRY)

    def _need_origin(self, deadline: float) -> None:
        """Return when the group knows this process's origin."""
        old = self.origin.renew_if_idle()
        if old is not None:
            self._ask(lambda backend, _left: backend.close_origin(old), deadline)
        held: LeaseTimeout | None = None
        while not self.origin.opened:
            origin = self.origin.id

            def open_origin(backend: Backend, left: float, origin: bytes = origin) -> None:
                backend.open_origin(origin, timeout=left)

            try:
                self._ask(open_origin, deadline)
            except LeaseTimeout as error:
                # Another thread of this process, which asked first, may have had less time.
                if deadline - time.monotonic() < SHORTEST_WAIT:
                    raise
                held = error
            except Unavailable as error:
                if held is None:
                    raise
                raise held from error  # what little time was left did not do for an answer: this is still why
            except HostLost as error:
                raise Unavailable(
                    f"this process could not be made known to the group: {error}", "too slow"
                ) from error
            else:
                self.origin.mark_opened(origin)

    def _ask(self, question: Callable[[Backend, float], T], deadline: float) -> T:
        """Ask the backend what may be asked twice; a host that has gone is replaced at once."""
        while True:
            try:
                return self._told(question(self.backend(deadline), _left(deadline)))
            except HostLost:
                if time.monotonic() >= deadline:
                    raise

    def _told(self, answer: T) -> T:
        """What the backend says is true of the node's present file: the next read has to be of no older one."""
        if self._mark is not None:
            self._mark.look_again()
        return answer

    # Backends -----------------------------------------------------------------------------------------------

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
                if not _port_in_use(error) or self._closed or time.monotonic() > deadline:
                    raise
            if self._closed or time.monotonic() > deadline:
                text = self._nobody(problem, None if lock is None else lock.holder)
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
            self._watch = SnapshotWatch(self._readers, self.config.name, self.config.wal_limit, also=self._tell_notes)
            self._watch.start()

    def _reader_pool(self) -> ReaderPool:
        self._mark = Mark(self.config.folder)
        return ReaderPool(self.config.name, self.config.registrars, permit=self._mark.permit)

    def _oldest_snapshot(self) -> Snapshot | None:
        readers = self._readers
        return None if readers is None else readers.oldest_snapshot()

    def _succeed(self) -> None:
        """The host has ended: one of the processes that were attached must host the node now, busy or not."""
        while not self._closed:
            try:
                self.backend()
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


def _port_in_use(error: OperationalError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


class Session:
    """A :class:`~django_raftsqlite.node.api.WriteSession`: a backend's, whose COMMIT survives that backend."""

    def __init__(self, node: ProcessNode, session: BackendSession, pragmas: Mapping[str, int]) -> None:
        self._node = node
        self._session = session
        self._pragmas = pragmas

    @property
    def base(self) -> Base:
        """See WriteSession."""
        return self._session.base

    def execute(self, statement: Statement) -> Result:
        """See WriteSession."""
        return self._session.execute(statement)

    def repeat(self, statements: Sequence[Statement]) -> list[Result | StatementError]:
        """See WriteSession."""
        return self._session.repeat(statements)

    def resume(self) -> None:
        """See WriteSession."""
        self._session.resume()

    @property
    def in_transaction(self) -> bool:
        """See WriteSession."""
        return self._session.in_transaction

    def commit(self, statements: Sequence[Statement], *, timeout: float) -> None:
        """See WriteSession."""
        session, pragmas = self._session, self._pragmas
        solo = pragmas.get("foreign_keys", 1) == 0
        encode = self._node.encoder(statements, session.base, pragmas, solo=solo)
        try:
            self._node.settle(encode, solo=solo, deadline=time.monotonic() + timeout, session=session)
        except (StatementError, Moved):
            raise
        except BaseException:
            session.rollback()  # it is over, also where it was never asked to commit
            raise

    def rollback(self) -> None:
        """See WriteSession."""
        if self._node.mine:
            self._session.rollback()


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), SHORTEST_WAIT)


def _disown() -> None:
    """A forked child must not touch its parent's threads, sockets or SQLite handles, not even to close them."""
    for node in list(_all):
        node._mine = False
        forking.keep_for_ever(node)
    _all.clear()


os.register_at_fork(after_in_child=_disown)
