"""A process's share of a node: what its connections read and write through, whichever process hosts the node."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from ..exceptions import OperationalError
from ..sqlite.entry import Base, Result, Statement
from ..sqlite.errors import StatementError
from ..sqlite.readers import ReaderPool
from ..sqlite.restoring import send_file
from . import tracing
from .api import Backend, BackendSession, Moved, NodeConfig
from .backends import Backends
from .origin import Origin
from .settling import Settling
from .staleness import ASK_AT, moment


class ProcessNode:
    """This process's share of a node: it stays the same object while hosts come and go. A Node.

    What is asked goes to one of its ``backends`` (by default, :class:`.backends.Backends` of its own); what is
    written goes through ``settling``. Thread-safe: all else that it has is the newest moment that a read is known to
    be as new as, and where threads race for it, an older one only costs another question.
    """

    def __init__(self, config: NodeConfig, backends: Backends | None = None) -> None:
        self.config = config
        self._backends = Backends(config) if backends is None else backends
        self.settling = Settling(config, self._backends)
        self._as_of = -inf  # the newest moment of which it is known that all committed before it is applied

    @property
    def origin(self) -> Origin:
        """What numbers this process's requests."""
        return self.settling.origin

    @property
    def readers(self) -> ReaderPool:
        """Read-only connections to this node's file; opens the node if nobody has yet."""
        return self._backends.readers

    @property
    def hosting(self) -> bool:
        """Whether this process hosts the node (a snapshot)."""
        return self._backends.hosting

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._backends.closed

    def backend(self, deadline: float | None = None) -> Backend:
        """The hosted or attached node. Raises OperationalError when there is none, Unavailable when not in time."""
        return self._backends.current(deadline)

    def submit(self, statement: Statement, pragmas: Mapping[str, int], *, solo: bool, timeout: float) -> Result:
        """See Node."""
        encode = self.settling.encoder((statement,), None, pragmas, solo=solo)
        outcome = self.settling.settle(encode, solo=solo, deadline=time.monotonic() + timeout)
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
            self._backends.ask(begin, deadline).rollback()
        self.settling.need_origin(deadline)
        return Session(self._backends, self.settling, self._backends.ask(begin, deadline), pragmas)

    def read_barrier(self, *, timeout: float) -> None:
        """See Node."""
        self._backends.ask(lambda backend, left: backend.read_barrier(timeout=left), time.monotonic() + timeout)

    def limit_staleness(self, limit: float, *, timeout: float) -> None:
        """See Node. What the backend said last is kept, so that most reads ask nobody."""
        asked = moment()
        if asked - self._as_of > limit * ASK_AT:
            deadline = time.monotonic() + timeout
            age = self._backends.ask(lambda backend, left: backend.staleness(limit, timeout=left), deadline)
            self._as_of = max(self._as_of, asked - age)

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        """See Node."""
        deadline = time.monotonic() + timeout
        return self._backends.ask(lambda backend, left: backend.reach(lineage, version, timeout=left), deadline)

    def restore(self, path: Path, *, timeout: float, told: Callable[[int], object] = lambda _: None) -> bytes:
        """Put the content of a file that :func:`~..sqlite.restoring.prepare` made in the place of the whole group's.

        Returns when that is applied here: the lineage that began with it. Every part of the file may take ``timeout``
        seconds; ``told`` hears how many bytes were sent. Until all are, nothing has changed. Raises Unavailable,
        LeaseTimeout (surely not restored), OperationalError (not fit to be restored), CommitOutcomeUnknown, OSError.
        """
        lineage = os.urandom(16)
        sent = send_file(path, lineage, told)
        try:
            self.settling.settle(lambda _id, _low_water: sent, solo=True, deadline=time.monotonic() + timeout)
        except StatementError as error:
            raise OperationalError(f"nothing was restored: {error}") from error
        return lineage

    def status(self) -> dict[str, Any]:
        """See Node; with the process ids that are attached."""
        return self._backends.status(self.config.timeout)

    def figures(self) -> dict[str, Any]:
        """See Node; what this process has noted is told first."""
        self._backends.tell_notes()
        return self._backends.ask(lambda backend, _left: backend.figures(), time.monotonic() + self.config.timeout)

    def note(self, what: str) -> None:
        """See Node. The host is told within seconds."""
        self._backends.note(what)

    def close(self) -> None:
        """Stop hosting, or detach; idempotent. In a forked child it does nothing."""
        if self._backends.mine:
            self._backends.close(self._farewell)

    def _farewell(self, backend: Backend) -> None:
        if self.origin.opened:
            backend.close_origin(self.origin.id)


class Session:
    """A :class:`~django_raftsqlite.node.api.WriteSession`: a backend's, whose COMMIT survives that backend."""

    def __init__(
        self, backends: Backends, settling: Settling, session: BackendSession, pragmas: Mapping[str, int]
    ) -> None:
        self._backends = backends
        self._settling = settling
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
        encode = self._settling.encoder(statements, session.base, pragmas, solo=solo)
        try:
            self._settling.settle(encode, solo=solo, deadline=time.monotonic() + timeout, session=session)
        except (StatementError, Moved):
            raise
        except BaseException:
            session.rollback()  # it is over, also where it was never asked to commit
            raise

    def rollback(self) -> None:
        """See WriteSession."""
        if self._backends.mine:
            self._session.rollback()
