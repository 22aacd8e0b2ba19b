"""One run of a scenario: the group boots, clients work, faults happen, all heals, and everything must add up."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import apsw

from django_raftsqlite.dbapi.connection import Connection
from django_raftsqlite.node import compaction, snapshot_source, startup
from django_raftsqlite.node import process as process_module
from django_raftsqlite.raft import consensus
from django_raftsqlite.sqlite import connections, parts

from .changes import Changes
from .checks import Checks
from .clients import SPARE, Client, leave_to_the_dead, set_up
from .faults import Faults
from .guests import Share
from .history import DONE, FAILED, UNKNOWN, History
from .installed import installed
from .machine import OLD, Machine, state_machines
from .network import Network
from .scenario import Scenario
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
        self.winding_down = False
        self.ready = False
        self._busy: dict[Client, float] = {}
        self._owners: dict[Process, Machine] = {}
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
        for client in [client for client in self._busy if client.process is process]:
            del self._busy[client]

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
        self._busy[client] = self.world.now

    def finished(self, client: Client) -> None:
        self._busy.pop(client, None)

    # The run

    def run(self) -> None:
        """All of it. Raises Violation, or whatever the product raised and should not."""
        world = self.world
        for machine in self.there:
            machine.boot()
        self._wait(lambda: self.leader() is not None, ELECTED, "a leader is elected")
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
        self._recover()

    def leader(self) -> Machine | None:
        """Who leads, and has committed something in its term."""
        for machine in self.there:
            if machine.replica is not None and machine.replica.view.established:
                return machine
        return None

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        step = self.world.now
        end = step + seconds
        while not condition():
            step = self.world.now + 0.02
            if step > end:
                raise Violation(f"not within {seconds:g} s: {what}\n{self.describe()}")
            self.world.run(step)

    def _task(self, machine: Machine, act: Callable[[Connection], None], what: str, seconds: float) -> None:
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
        self._wait(lambda: bool(over), seconds + 5, what)

    def _set_up(self) -> None:
        def act(connection: Connection) -> None:
            set_up(connection, self.scenario.keys)

        leader = self.leader()
        assert leader is not None
        self._task(leader, act, "the tables are made", ELECTED)
        self._wait(self._settled, HEALED, "all nodes have the tables")
        self.made = leader.replica.commit_index

    def _recover(self) -> None:
        """All faults end; the group must be whole again within bounds, and agree."""
        world = self.world
        world.note("all faults end")
        self.faults.end()
        for machine in self.there:
            if machine.process is None:
                machine.boot()
        world.run(world.now + 1.0)
        self.winding_down = True
        self._wait(lambda: not self._busy, HEALED, "every client has its answer")
        self._wait(self._settled, HEALED, "all nodes have applied the same")
        if self.scenario.upgrade:
            self._upgrade()
        if self.scenario.damaged:
            self._damage()
        if self.scenario.damaged or self.checks.healed or self.scenario.upgrade:
            self._verify()
        found: list[Any] = []
        for machine in self.there:

            def read(connection: Connection) -> None:
                cursor = connection.cursor()
                rows = cursor.execute("SELECT op, k, n FROM done ORDER BY rowid").fetchall()
                spare = cursor.execute("SELECT text FROM spare").fetchall()
                found.append((rows, dict(cursor.execute("SELECT k, n FROM counter").fetchall()), spare))

            self._task(machine, read, "the tables are read", 5.0)
        for each in found[1:]:
            if each != found[0]:
                raise Violation("the tables differ between nodes")
        rows, counters, spare = found[0]
        if spare != [(SPARE,)]:
            raise Violation(f"what another program wrote spread to all nodes: {spare}")
        self.history.check(rows, counters)

    def _upgrade(self) -> None:
        """The last machines are upgraded, one by one; then, and not before, the group uses the new protocol."""
        self.checks.spared = None  # leaders are stopped, too
        for machine in self.there:
            if machine.old:
                found = {each.host._protocol.used for each in self.there if each.host is not None}
                if found != {1}:
                    raise Violation(f"the group uses protocol {found} while {machine.address} speaks {OLD}")
                machine.kill()
                machine.upgrade()
                machine.boot()
                self._wait(self._settled, HEALED, f"{machine.address} is back with the new version")

        def used() -> bool:
            return all(machine.host is not None and machine.host._protocol.used == 2 for machine in self.there)

        self._wait(used, HEALED, "the group uses the new protocol")
        self._wait(self._settled, HEALED, "all nodes have applied the same with the new protocol")

    def _damage(self) -> None:
        """A byte of a follower's table changes on its disk, and nothing else tells of it: not even a time."""
        leader = self.leader()
        if leader is None or len(leader.replica.members.voters) < 3:
            return  # of two nobody can tell which is wrong
        for machine in self.there:
            path = machine.disk.folder / "db.sqlite3"
            at = path.read_bytes().find(SPARE.encode())
            if at < 0 or machine is self.leader():
                continue
            _overwrite(path, at, b"W")
            with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
                if connection.execute("SELECT text FROM spare").get != SPARE:
                    machine.touched = "touched"
                    self.world.note(f"-- a byte of {machine.address}'s table changes")
                    return
            _overwrite(path, at, SPARE[:1].encode())  # the page is in the WAL, too

    def _verify(self) -> None:
        """All members have the same content, row by row, or are found not to have, and healed."""
        damaged = [machine for machine in self.there if machine.touched]
        healed = self.checks.healed
        self._verified()
        self._wait(lambda: self.checks.healed == healed + len(damaged), HEALED, "what is damaged is found and healed")
        self._wait(self._settled, HEALED, "all nodes have applied the same again")
        if damaged:
            self._verified()
        latest = {machine.address: machine.host._verification.latest for machine in self.there if machine.host}
        if len({told["digest"] for told in latest.values() if told is not None}) != 1 or None in latest.values():
            raise Violation(f"the content differs after it was healed: {latest}")

    def _verified(self) -> None:
        """What `raft verify` does: an entry in the log, at which every member hashes its content."""
        leader = self.leader()
        assert leader is not None and leader.process is not None and leader.host is not None
        host, told = leader.host, []
        self.world.spawn(leader.process, lambda: told.append(bytes.fromhex(host.verify(timeout=ELECTED))), "verify")

        def over() -> bool:
            if not told:
                return False
            for machine in self.there:
                if machine.host is None:
                    return False
                latest = machine.host._verification.latest
                done = latest is not None and latest["id"] == told[0] and (latest["digest"] or latest["problem"])
                if not done and machine.touched is None:
                    return False
            return True

        self._wait(over, HEALED, "all members have verified their content")

    def _settled(self) -> bool:
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
                lines.append(f"{machine.address}: {replica.view} applied={host._applied.index}")
        lines += [f"{client.name} waits since {self.world.now - since:.1f} s" for client, since in self._busy.items()]
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
            vfs.disks.extend(machine.disk for machine in simulation.machines)
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
        events=world.events,
    )


def _overwrite(path: Path, at: int, content: bytes) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _settings(simulation: Simulation) -> list[tuple[Any, str, Any]]:
    scenario = simulation.scenario
    settings: list[tuple[Any, str, Any]] = [
        (startup, "StateMachine", state_machines(simulation)),
        (connections, "_CHECKPOINT_PAGES", scenario.checkpoint_pages),
        (consensus, "APPLY_PER_TICK", scenario.apply_per_tick),
    ]
    if scenario.log_entries < 1000:
        settings += [(compaction, "LOOK_EVERY", 0.1), (snapshot_source, "PATIENCE", 0.1)]
    if scenario.small_batches:
        settings += [(consensus, "BATCH_BYTES", 2000), (consensus, "WINDOW_BYTES", 5000)]
    if scenario.small_parts:

        def small(*arguments: Any, **keywords: Any) -> Any:
            return parts.encode_pieces(*arguments, **{**keywords, "part_bytes": 700})

        settings.append((process_module, "encode_pieces", small))
    return settings
