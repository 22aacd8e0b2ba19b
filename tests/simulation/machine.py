"""One machine of the group: its disk, the process that hosts its node, and the processes that are attached to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from django_raftsqlite.exceptions import HostLost, OperationalError, Unavailable
from django_raftsqlite.node.api import Backend, NodeConfig
from django_raftsqlite.node.host import HostedNode
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.sqlite.machine import StateMachine
from django_raftsqlite.sqlite.readers import ReaderPool

from .disk import Disk
from .world import Process, Violation

if TYPE_CHECKING:
    from .installed import Log
    from .simulation import Simulation

T = TypeVar("T")
ATTEMPT = 0.05


class _FolderLock:
    def release(self) -> None:
        pass


class Host(HostedNode):
    """The real host; what it commits is compared with what all others have committed."""

    machine: Machine

    def _on_commit(self, index: int, term: int, payload: bytes) -> None:
        self.machine.simulation.checks.committed(self.machine, index, term, payload)
        super()._on_commit(index, term, payload)


class Applying(StateMachine):
    """The real state machine; it may be slow, and what it applies is compared."""

    machine: Machine

    def apply(self, index: int, term: int, data: bytes) -> Any:
        seconds = self.machine.apply_seconds()
        if seconds:
            self.machine.world.sleep(seconds)
        before = self.applied_index
        outcomes = super().apply(index, term, data)
        if before < index:
            self.machine.simulation.checks.applied(self.machine, self, index, outcomes)
        return outcomes

    def install(self, copy: Any, go_on: Any) -> None:
        super().install(copy, go_on)
        self.machine.simulation.checks.installed(self.machine, self)


class Machine:
    """``process`` hosts the node while there is one; ``host`` is set while it does."""

    def __init__(self, simulation: Simulation, number: int, address: str) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.number = number
        self.address = address
        self.disk = Disk(self.world, simulation.folder / f"m{number}")
        self.process: Process | None = None
        self.host: Host | None = None
        self.log: Log | None = None
        self.guests: list[Process] = []
        self.boots = 0
        self.reluctant = False
        self.wall = 0.0
        self.slow_apply = 0.0
        self.slow_sync = 0.0
        self.excused = False
        self.commit_seen = 0
        self.applied_seen = 0
        self.place: Any = None
        self._waiting: dict[_Answer, None] = {}
        self._before: tuple[int, dict[int, int], int] | None = None

    @property
    def config(self) -> NodeConfig:
        scenario = self.simulation.scenario
        return NodeConfig(
            name=self.disk.folder / "db.sqlite3",
            address=self.address,
            peers=self.simulation.addresses,
            secret="s" * 16,
            timeout=scenario.timeout,
            wal_limit=scenario.wal_limit,
            lease_timeout=scenario.lease_timeout,
            log_entries=scenario.log_entries,
            reluctant=self.reluctant,
        )

    @property
    def up(self) -> bool:
        return self.process is not None

    @property
    def replica(self) -> Any:
        """The member, None while there is none that works."""
        driver = None if self.host is None else self.host._driver
        return None if driver is None or driver._failed is not None else driver._replica

    def sync_seconds(self) -> float:
        mean = max(self.slow_sync, self.simulation.scenario.sync if self.simulation.ready else 0.0)
        return self.world.random.expovariate(1 / mean) if mean else 0.0

    def apply_seconds(self) -> float:
        return self.world.random.expovariate(1 / self.slow_apply) if self.slow_apply else 0.0

    # Its life

    def boot(self) -> None:
        """Begin to host."""
        assert self.process is None
        self.boots += 1
        # Each time another process hosts it.
        self.reluctant = self.simulation.scenario.reluctant and self.world.random.random() < 0.5
        self.process = process = Process(self.world, f"{self.address}.{self.boots}")
        process.wall = self.wall
        process.on_death = lambda: self.kill(process)
        process.after = lambda: self.simulation.checks.look(self)
        self.world.note(f"{self.address} boots")
        self.world.spawn(process, lambda: self._main(process), "main")

    def _main(self, process: Process) -> None:
        host: Host | None = None
        try:
            host = type("BoundHost", (Host,), {"machine": self})(self.config, _FolderLock())
            self.host = host
            host.start()
        except Violation:
            raise
        except Exception as error:
            self.host = None
            if not self.excused:
                raise Violation(f"{self.address} cannot start: {error!r}") from error
            self.world.note(f"{self.address} cannot start: {type(error).__name__}")
            self.world.remark(repr(error))
            self.world.soon(lambda: self.kill(process))
            return
        self.world.note(f"{self.address} hosts")
        self.simulation.hosting(self, process, host)

    def opened(self, log: Log) -> None:
        """What it promised before it died must be there."""
        if self._before is not None:
            proven, terms, _ = self._before
            for index in range(1, proven + 1):
                if index in terms and log.terms.get(index) != terms[index] and index >= log.first_index:
                    raise Violation(
                        f"{self.address} had entry {index} of term {terms[index]} on its disk, and has "
                        f"{log.terms.get(index)} after a restart"
                    )
        self.log = log

    def kill(self, process: Process | None = None, *, power: bool = False) -> None:
        """Its process is killed; or, with all others, by a power failure."""
        if power:
            for guest in list(self.guests):
                self.kill_guest(guest)
        if self.process is not None and process in (None, self.process):
            self._end_process(self.process)
        if power:
            self.disk.lose_power(self.world.random)

    def _end_process(self, process: Process) -> None:
        self.world.note(f"{self.address} dies")
        log, host = self.log, self.host
        self.process = self.host = self.log = None
        self.place = None
        self.commit_seen = self.applied_seen = 0
        if log is not None:
            self._before = log.proven_index, dict(log.terms), log.first_index
        process.kill()
        transport = None if host is None else host._driver._transport
        if transport is not None:
            transport.died()
        _close_files(process)
        for answer in list(self._waiting):
            answer.end(HostLost("the host has ended"), failed=True)
        self._waiting.clear()
        self.simulation.ended(process)

    def kill_guest(self, guest: Process) -> None:
        """An attached process is killed."""
        if not guest.alive:
            return
        self.world.note(f"{guest.name} dies")
        self.guests.remove(guest)
        guest.kill()
        _close_files(guest)
        for session in list(guest.sessions):
            session.drop()
        self.simulation.ended(guest)

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry is on the disk, whatever happens to the machine."""
        if self.log is not None:
            proven, terms, first = self.log.proven_index, self.log.terms, self.log.first_index
        elif self._before is not None:
            proven, terms, first = self._before
        else:
            return False
        # What was cut off the log is in the database, which was synced before.
        return index < first or (index <= proven and terms.get(index) == term)

    # Guests

    def serve(self, guest: Process, call: Callable[[], T], after: Callable[[], None] | None = None) -> T:
        """Run ``call`` in a thread of the host, for a task of a guest, which waits. Raises HostLost."""
        process, world = self.process, self.world
        if process is None or self.host is None:
            raise HostLost("nobody hosts it")
        answer = _Answer(world)
        self._waiting[answer] = None

        def run() -> None:
            try:
                value, failed = call(), False
            except Exception as error:
                value, failed = error, True  # type: ignore[assignment]
            if after is not None:
                after()
            self._waiting.pop(answer, None)
            answer.end(value, failed=failed)

        world.spawn(process, run, "serve")
        if self.simulation.scenario.links_break and world.random.random() < 0.02:
            patience = guest.monotonic() + world.random.expovariate(1 / 0.01)
            if not answer.wait(max(patience - guest.monotonic(), 0.0)):
                world.note(f"{guest.name}: the link to its host breaks")
                raise HostLost("the link broke")
        else:
            answer.wait(None)
        if answer.failed:
            raise answer.value
        result: T = answer.value
        return result


class _Answer:
    def __init__(self, world: Any) -> None:
        self._world = world
        self._ticket: Any = None
        self.done = False
        self.failed = False
        self.value: Any = None

    def wait(self, seconds: float | None) -> bool:
        if not self.done:
            self._ticket = self._world.ticket()
            woken = self._world.wait(seconds)
            assert self.done or not woken, "woken by nobody"
            self._ticket = None
        return self.done

    def end(self, value: Any, *, failed: bool) -> None:
        self.done, self.value, self.failed = True, value, failed
        if self._ticket is not None:
            self._world.wake(*self._ticket)


def _close_files(process: Process) -> None:
    for connection in process.connections:
        with suppress(Exception):
            connection.close(True)
    process.connections.clear()
    for descriptor in process.descriptors:
        with suppress(OSError):
            os.close(descriptor)
    process.descriptors.clear()


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
        super().__init__(machine.config)
        self._machine = machine
        self._process = process

    def _open(self, deadline: float) -> Backend:
        machine = self._machine
        while True:
            if machine.host is not None and machine.host._driver._replica is not None:
                if self._readers is None:
                    self._readers = ReaderPool(self.config.name, self.config.registrars)
                if machine.process is self._process:
                    return machine.host
                backend: Any = GuestBackend(machine, self._process)
                return backend  # type: ignore[no-any-return]
            if self._process.monotonic() > deadline:
                raise Unavailable("no process hosts the node", "too slow")
            machine.world.sleep(ATTEMPT)


def state_machines(simulation: Simulation) -> Callable[..., StateMachine]:
    """What the host module is to make state machines with."""

    def make(*arguments: Any, **keywords: Any) -> StateMachine:
        process = simulation.world.process
        assert process is not None
        bound = type("BoundApplying", (Applying,), {"machine": simulation.machine_of_process(process)})
        made: StateMachine = bound(*arguments, **keywords)
        return made

    return make
