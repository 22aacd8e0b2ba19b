"""One run of a scenario: the group boots, clients work, faults happen, all heals, and everything must add up."""

from __future__ import annotations

import random
import shutil
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import apsw

from django_raftsqlite.dbapi.connection import Connection
from django_raftsqlite.node import archive, compaction, settling, snapshot_source, startup
from django_raftsqlite.raft import consensus, progress
from django_raftsqlite.sqlite import connections, parts, restoring

from .aftermath import Aftermath
from .changes import Changes
from .checks import Checks
from .clients import SPARE, Client, leave_to_the_dead, set_up
from .disk import Disk
from .faults import Faults
from .guests import Share
from .history import DONE, FAILED, UNKNOWN, History
from .installed import installed
from .machine import Machine, state_machines
from .network import Network
from .restores import Restores
from .scenario import Scenario
from .storage import Storage
from .world import Process, Violation, World

ELECTED = 20.0
HEALED = 40.0


@dataclass
class Report:
    """What a run gave."""

    seed: int
    digest: str
    violation: str | None
    trace: list[str]
    done: int = 0
    failed: int = 0
    unknown: int = 0
    reads: int = 0
    entries: int = 0
    elections: int = 0
    snapshots: int = 0
    changes: int = 0
    healed: int = 0
    restores: int = 0
    archived: int = 0
    moments: int = 0
    events: int = 0


class Simulation:
    """The group and all around it. Everything that happens is decided by the scenario."""

    def __init__(self, scenario: Scenario, folder: Path, *, keep_trace: bool = False) -> None:
        self.scenario = scenario
        self.folder = folder
        self.world = World(scenario.seed, keep_trace=keep_trace)
        self.network = Network(self.world)
        self.network.delay = scenario.delay
        self.addresses = tuple(f"n{number}:1" for number in range(scenario.nodes))
        self.machines: list[Machine] = []
        for number in range(scenario.nodes + scenario.spares):
            self.machines.append(Machine(self, number, f"n{number}:1"))
            self.machines[-1].part = number < scenario.nodes
        self.changes = Changes(self)
        self.made = 0
        self.checks = Checks(self)
        self.network.voted = self.checks.voted
        self.history = History(lambda: self.world.now)
        self.faults = Faults(self)
        self.desk = Disk(self.world, folder / "desk")
        self.restores = Restores(self, self.chance("lineages"))
        self.storage = Storage(self)
        self.archived = self.moments = 0
        self.winding_down = self.settling = False
        self.ready = False
        self.busy: dict[Client, float] = {}
        self._names = 0

    def chance(self, name: str) -> random.Random:
        """Random numbers for one purpose."""
        return random.Random(f"{self.scenario.seed} {name}")

    # What machines say

    @property
    def there(self) -> list[Machine]:
        """The machines that take part."""
        return [machine for machine in self.machines if machine.part]

    def machine_at(self, address: str) -> Machine:
        """Whose address it is."""
        return next(machine for machine in self.machines if machine.address == address)

    def machine_of(self, path: Path) -> Machine:
        """Whose file it is."""
        return next(machine for machine in self.machines if machine.disk.folder in path.parents)

    def machine_of_process(self, process: Process) -> Machine:
        """Who runs it."""
        return next(machine for machine in self.machines if machine.process is process)

    def hosting(self, machine: Machine, process: Process, host: object) -> None:
        """A machine's process hosts its node; on the machine's own task."""
        if self.ready:
            self._begin_when_there(machine, process)

    def _begin_when_there(self, machine: Machine, process: Process) -> None:
        """The clients of a process begin, as soon as the tables are there on a disk that was empty."""
        if not process.alive or machine.host is None:
            return
        if machine.disks and machine.host._applied.index < self.made:
            self.world.after(0.05, lambda: self._begin_when_there(machine, process))
        else:
            self.begin_clients(machine, process)

    def ended(self, process: Process) -> None:
        """A process died: what its clients were doing has an unknown outcome."""
        for client in [client for client in self.busy if client.process is process]:
            del self.busy[client]
        self.restores.under_way.discard(process)

    @staticmethod
    def spoiled(connection: apsw.Connection) -> bool:
        """Whether the content is not what the group wrote, but what another program made of it."""
        return connection.execute("SELECT text FROM spare").get != SPARE

    # Clients

    def begin_clients(self, machine: Machine, process: Process) -> None:
        """The clients of a process begin."""
        share = Share(machine, process)
        for number in range(self.scenario.clients):
            client = Client(self, machine, process, share, number)
            self.world.spawn(process, client.run, f"client {number}")

    def begin_guest(self, machine: Machine) -> None:
        """A process is started beside the host, and attaches to it."""
        self._names += 1
        guest = Process(self.world, f"{machine.address}.guest{self._names}")
        guest.wall = machine.wall
        machine.guests.append(guest)
        self.begin_clients(machine, guest)

    def began(self, client: Client) -> None:
        self.busy[client] = self.world.now

    def finished(self, client: Client) -> None:
        self.busy.pop(client, None)

    # The run

    def run(self) -> None:
        """All of it. Raises Violation, or whatever the product raised and should not."""
        world = self.world
        for machine in self.there:
            machine.boot()
        self.wait(lambda: self.leader() is not None, ELECTED, "a leader is elected")
        self._set_up()
        self.ready = True
        if self.scenario.spared:
            leader = self.leader()
            assert leader is not None
            self.checks.spared = leader, leader.replica.term
        for machine in self.there:
            if machine.process is not None:
                self.begin_clients(machine, machine.process)
            for _ in range(self.scenario.guests):
                self.begin_guest(machine)
        start = world.now
        for fault in self.scenario.faults:
            world.at(start + fault.at, lambda fault=fault: self.faults.happen(fault))
        world.run(start + self.scenario.seconds)
        Aftermath(self).run()

    def leader(self) -> Machine | None:
        """Who leads, and has an entry of its term committed."""
        """Who leads, and has committed something in its term."""
        for machine in self.there:
            if machine.replica is not None and machine.replica.view.established:
                return machine
        return None

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Let time pass until it is so. Raises Violation when it is not within ``seconds``."""
        step = self.world.now
        end = step + seconds
        while not condition():
            step = self.world.now + 0.02
            if step > end:
                raise Violation(f"not within {seconds:g} s: {what}\n{self.describe()}")
            self.world.run(step)

    def task(self, machine: Machine, act: Callable[[Connection], None], what: str, seconds: float) -> None:
        """Run something on a connection of a machine's own process."""
        process = machine.process
        assert process is not None
        over: list[bool] = []

        def run() -> None:
            connection = Connection(Share(machine, process), timeout=seconds)
            try:
                act(connection)
                connection.close()
            finally:
                leave_to_the_dead(connection)
            over.append(True)

        self.world.spawn(process, run, what)
        self.wait(lambda: bool(over), seconds + 5, what)

    def _set_up(self) -> None:
        def act(connection: Connection) -> None:
            set_up(connection, self.scenario.keys)

        leader = self.leader()
        assert leader is not None
        self.task(leader, act, "the tables are made", ELECTED)
        self.wait(self.settled, HEALED, "all nodes have the tables")
        self.made = leader.replica.commit_index

    def settled(self) -> bool:
        """All members have applied all of the leader's log."""
        leader = self.leader()
        if leader is None or (self.ready and not self.changes.complete):
            return False
        top = leader.replica.last_index
        return all(
            machine.host is not None
            and machine.replica is not None
            and machine.replica.commit_index == top
            and machine.host._applied.index == top
            for machine in self.there
        )

    def describe(self) -> str:
        """Where everything stands."""
        lines = []
        for machine in self.there:
            host, replica = machine.host, machine.replica
            if host is None or replica is None:
                lines.append(f"{machine.address}: {'no host' if host is None else host.failed}")
            else:
                lines.append(
                    f"{machine.address}: {replica.view} applied={host._applied.index} suspect={host.suspect}"
                )
        lines += [f"{client.name} waits since {self.world.now - since:.1f} s" for client, since in self.busy.items()]
        return "\n".join(lines)


def run(scenario: Scenario, *, keep_trace: bool = False, switched_off: Callable[[], Any] | None = None) -> Report:
    """Run a scenario; what is found is in the report, never raised."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="raftsqlite-simulation-", dir=base))
    violation: str | None = None
    try:
        simulation = Simulation(scenario, folder, keep_trace=keep_trace)
        with ExitStack() as stack:
            vfs = stack.enter_context(installed(simulation.world, simulation.network, simulation))
            vfs.disks.extend([simulation.desk, *(machine.disk for machine in simulation.machines)])
            for owner, name, value in _settings(simulation):
                stack.enter_context(mock.patch.object(owner, name, value))
            if switched_off is not None:
                stack.enter_context(switched_off())
            try:
                simulation.run()
            except Exception as error:
                violation = f"{type(error).__name__}: {error}"
                simulation.world.remark(violation)
                if keep_trace and not isinstance(error, Violation):
                    simulation.world.remark("".join(traceback.format_exception(error)))
            finally:
                for machine in simulation.machines:
                    machine.kill(power=False)
                    for guest in list(machine.guests):
                        machine.kill_guest(guest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    history, world = simulation.history, simulation.world
    return Report(
        seed=scenario.seed,
        digest=world.digest,
        violation=violation,
        trace=world.trace or [],
        done=history.count(DONE),
        failed=history.count(FAILED),
        unknown=history.count(UNKNOWN) + history.count("open"),
        reads=history.reads + history.demanding_reads,
        entries=simulation.checks.last_committed,
        elections=simulation.checks.elections,
        snapshots=simulation.checks.snapshots,
        changes=simulation.checks.changes,
        healed=simulation.checks.healed,
        restores=simulation.restores.count,
        archived=simulation.archived,
        moments=simulation.moments,
        events=world.events,
    )


def _settings(simulation: Simulation) -> list[tuple[Any, str, Any]]:
    scenario = simulation.scenario
    settings: list[tuple[Any, str, Any]] = [
        (startup, "StateMachine", state_machines(simulation)),
        (connections, "_CHECKPOINT_PAGES", scenario.checkpoint_pages),
        (consensus, "APPLY_PER_TICK", scenario.apply_per_tick),
    ]
    if scenario.log_entries < 1000:
        settings += [(compaction, "LOOK_EVERY", 0.1), (snapshot_source, "PATIENCE", 0.1)]
    if scenario.restores:
        settings.append((restoring, "PART_BYTES", 20_000))
    if scenario.archive:
        settings += [(archive, "SEGMENT_BYTES", 3000), (archive, "LONGEST_RETRY", 1.0)]
    if scenario.small_batches:
        settings += [(consensus, "BATCH_BYTES", 2000), (progress, "WINDOW_BYTES", 5000)]
    if scenario.small_parts:

        def small(*arguments: Any, **keywords: Any) -> Any:
            return parts.encode_pieces(*arguments, **{**keywords, "part_bytes": 700})

        settings.append((settling, "encode_pieces", small))
    return settings
