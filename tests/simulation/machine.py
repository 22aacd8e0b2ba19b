"""One machine of the group: its disk, the process that hosts its node, and the processes that are attached to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from django_raftsqlite.exceptions import HostLost
from django_raftsqlite.node.api import ArchiveConfig, NodeConfig
from django_raftsqlite.node.host import HostedNode
from django_raftsqlite.sqlite.machine import StateMachine

from .disk import Disk
from .world import Process, Violation

if TYPE_CHECKING:
    from .installed import Log
    from .simulation import Simulation

T = TypeVar("T")

OLD, NEW = (1, 1), (1, 2)
"""The versions of the protocol that the old and the new version of the program speak."""


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

    def replace(self, copy: Any, go_on: Any) -> None:
        super().replace(copy, go_on)
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
        self.power_failures = 0
        self.reluctant = False
        self.old = simulation.scenario.upgrade
        self.wall = 0.0
        self.slow_apply = 0.0
        self.slow_sync = 0.0
        self.excused = False
        self.touched: str | None = None  # by another program: "touched", then "replaced" by a sound member's content
        self.commit_seen = 0
        self.applied_seen = 0
        self.place: Any = None
        self.part = True
        self.joins = False
        self.learner = False
        self.disks = 0
        self._lost: list[tuple[int, dict[int, int], int]] = []
        self._waiting: dict[_Answer, None] = {}
        self._before: tuple[int, dict[int, int], int] | None = None

    @property
    def config(self) -> NodeConfig:
        scenario = self.simulation.scenario
        return NodeConfig(
            name=self.disk.folder / "db.sqlite3",
            address=self.address,
            peers=() if self.joins else self.simulation.addresses,
            join=tuple(each.address for each in self.simulation.there if each is not self) if self.joins else (),
            learner=self.learner,
            secret="s" * 16,
            timeout=scenario.timeout,
            wal_limit=scenario.wal_limit,
            lease_timeout=scenario.lease_timeout,
            log_entries=scenario.log_entries,
            reluctant=self.reluctant,
            protocols=OLD if self.old else NEW,
            archive=ArchiveConfig(lambda: self.simulation.storage, 0.1, 10**6) if scenario.archive else None,
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
        """Begin to host, if it takes part."""
        assert self.process is None
        if not self.part:
            return
        self.boots += 1
        if self.old and self.boots > 1 and self.world.random.random() < 0.5:
            self.upgrade()
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

    def upgrade(self) -> None:
        """From the next start on it runs the new version of the program."""
        self.old = False
        self.world.note(f"{self.address} is upgraded")

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
            self.power_failures += 1
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

    def wipe(self) -> None:
        """It loses its disk, and with that all its processes."""
        self.world.note(f"{self.address} loses its disk")
        for guest in list(self.guests):
            self.kill_guest(guest)
        self.kill()
        self.disk.wipe()
        self.disks += 1
        if self._before is not None:
            self._lost.append(self._before)
        self._before, self.touched = None, None

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

    def acknowledged(self, index: int, term: int) -> bool:
        """Whether the entry is, or was, on a disk of the machine: it may be lost while its word is on its way."""
        lost = any(
            index < first or (index <= proven and terms.get(index) == term) for proven, terms, first in self._lost
        )
        return lost or self.holds(index, term)

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


def state_machines(simulation: Simulation) -> Callable[..., StateMachine]:
    """What a host is to make state machines with."""

    def make(*arguments: Any, **keywords: Any) -> StateMachine:
        process = simulation.world.process
        assert process is not None
        bound = type("BoundApplying", (Applying,), {"machine": simulation.machine_of_process(process)})
        made: StateMachine = bound(*arguments, **keywords)
        return made

    return make
