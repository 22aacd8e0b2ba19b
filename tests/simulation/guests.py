"""The processes beside a machine's host: as attached ones, without the socket."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from django_raftsqlite.exceptions import HostLost, OperationalError, Unavailable
from django_raftsqlite.node.api import Backend
from django_raftsqlite.node.backends import Backends
from django_raftsqlite.node.process import ProcessNode

from .machine import Machine
from .world import Process

T = TypeVar("T")
ATTEMPT = 0.05


class GuestBackend:
    """As :class:`django_raftsqlite.node.attached.AttachedNode`, without the socket."""

    def __init__(self, machine: Machine, guest: Process) -> None:
        assert machine.host is not None
        self._machine = machine
        self._guest = guest
        self._host = machine.host
        self._lost = False

    @property
    def lost(self) -> bool:
        return self._lost or self._machine.host is not self._host

    def _call(self, call: Callable[[], T]) -> T:
        if self.lost:
            raise HostLost("the host has ended")
        try:
            return self._machine.serve(self._guest, call)
        except HostLost:
            self._lost = True
            raise

    def open_origin(self, origin: bytes, *, timeout: float) -> None:
        self._call(lambda: self._host.open_origin(origin, timeout=timeout))

    def close_origin(self, origin: bytes) -> None:
        with suppress(HostLost):
            self._call(lambda: self._host.close_origin(origin))

    def execute(self, request: Any, *, timeout: float) -> Any:
        copy = _copy(request)
        request.sent = True
        try:
            outcome = self._call(lambda: self._host.execute(copy, timeout=timeout))
        except HostLost:
            raise
        except BaseException:
            request.sent = copy.sent
            raise
        return outcome

    def begin(self, pragmas: Any, *, reason: str, timeout: float, nowait: bool = False) -> GuestSession:
        host, abandoned = self._host, []
        begun: list[Any] = []

        def begin() -> Any:
            session = host.begin_for(4712, pragmas, reason=reason, timeout=timeout, nowait=nowait)
            begun.append(session)
            if abandoned or not self._guest.alive:
                session.rollback()
            return session

        try:
            return GuestSession(self._machine, self, self._guest, self._call(begin))
        except BaseException:
            abandoned.append(True)
            if begun and self._machine.process is not None and self._machine.host is host:
                self._machine.world.spawn(self._machine.process, begun[0].rollback, "drop")
            raise

    def read_barrier(self, *, timeout: float) -> None:
        self._call(lambda: self._host.read_barrier(timeout=timeout))

    def staleness(self, limit: float, *, timeout: float) -> float:
        return self._call(lambda: self._host.staleness(limit, timeout=timeout))

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        return self._call(lambda: self._host.reach(lineage, version, timeout=timeout))

    def status(self) -> dict[str, Any]:
        return self._call(self._host.status)

    def close(self) -> None:
        self._lost = True


class GuestSession:
    """As AttachedSession: one thread of the host serves it, and rolls it back when its guest has gone."""

    def __init__(self, machine: Machine, backend: GuestBackend, guest: Process, session: Any) -> None:
        self._machine = machine
        self._backend = backend
        self._guest = guest
        self._session = session
        self._host = machine.host
        self._serving = False
        self._dropped = False
        self.base = session.base
        self.claim = session.claim
        self._in_transaction = True
        guest.sessions[self] = None

    def _call(self, call: Callable[[], T]) -> T:
        if self._dropped or self._machine.host is not self._host:
            self.drop()
            raise HostLost("the host has ended")
        self._serving = True
        try:
            return self._machine.serve(self._guest, call, self._served)
        except HostLost:
            self.drop()
            raise

    def _served(self) -> None:
        self._serving = False
        if self._dropped:
            self._session.rollback()

    def drop(self) -> None:
        """The connection is closed: its thread in the host rolls back when it is done with what it does."""
        self._guest.sessions.pop(self, None)
        if self._dropped:
            return
        self._dropped = True
        process = self._machine.process
        if not self._serving and process is not None and process.alive and self._machine.host is self._host:
            self._machine.world.spawn(process, self._session.rollback, "drop")

    def execute(self, statement: Any) -> Any:
        result = self._call(lambda: self._session.execute(statement))
        self._in_transaction = self._session.in_transaction
        return result

    def repeat(self, statements: Any) -> Any:
        results = self._call(lambda: self._session.repeat(statements))
        self._in_transaction = self._session.in_transaction
        return results

    def resume(self) -> None:
        self._call(self._session.resume)
        self.base = self._session.base
        self._in_transaction = True

    @property
    def in_transaction(self) -> bool:
        return self._in_transaction

    def seal(self) -> None:
        self._call(self._session.seal)
        self._in_transaction = False

    def commit(self, request: Any, *, timeout: float) -> Any:
        copy = _copy(request)
        before, request.sent = request.sent, True
        try:
            outcome = self._call(lambda: self._session.commit(copy, timeout=timeout))
        except HostLost:
            raise
        except BaseException:
            request.sent = copy.sent or before
            raise
        finally:
            self._in_transaction = self._session.in_transaction
        self._guest.sessions.pop(self, None)
        return outcome

    def rollback(self) -> None:
        with suppress(OperationalError):
            if not self._dropped:
                self._call(self._session.rollback)
        self._guest.sessions.pop(self, None)


def _copy(request: Any) -> Any:
    """What the other side of a socket has."""
    return type(request)(
        request.id, request.payload, solo=request.solo, lease=request.lease, sent=request.sent, kind=request.kind
    )


class Share(ProcessNode):
    """A process's share of its machine's node: hosted in it, or attached."""

    def __init__(self, machine: Machine, process: Process) -> None:
        super().__init__(machine.config, _Backends(machine, process))


class _Backends(Backends):
    def __init__(self, machine: Machine, process: Process) -> None:
        super().__init__(machine.config)
        self._machine = machine
        self._process = process

    def _open(self, deadline: float) -> Backend:
        machine = self._machine
        while True:
            if machine.host is not None and machine.host._driver._replica is not None:
                if self._readers is None:
                    self._readers = self._reader_pool()
                if machine.process is self._process:
                    return machine.host
                backend: Any = GuestBackend(machine, self._process)
                return backend  # type: ignore[no-any-return]
            if self._process.monotonic() > deadline:
                raise Unavailable("no process hosts the node", "too slow")
            machine.world.sleep(ATTEMPT)
