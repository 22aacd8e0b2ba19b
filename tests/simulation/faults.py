"""What goes wrong, kind by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw

from .disk import VFS_NAME
from .scenario import Fault
from .world import Process

if TYPE_CHECKING:
    from .machine import Machine
    from .simulation import Simulation


DEADLY = {"kill", "power", "kill_in_call", "disk_error", "disk_full", "blink_all"}
TRIES = 50


class Faults:
    """Makes the scenario's faults happen, and ends them."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self.over = False

    def happen(self, fault: Fault) -> None:
        """A fault's time has come. One that needs a leader, or a running node, and finds none does nothing."""
        if self.over:
            return
        machine = self._machine(fault.who)
        if machine is None or not machine.part or (fault.kind in DEADLY and self._unnoticed(machine, fault.kind)):
            return
        self._world.note(f"-- {fault}")
        getattr(self, f"_{fault.kind}")(fault, machine)

    def end(self) -> None:
        """All that can be ended ends."""
        self.over = True
        simulation = self._simulation
        simulation.network.heal()
        simulation.network.delay = simulation.scenario.delay
        simulation.storage.down = False
        for machine in simulation.machines:
            machine.slow_apply = machine.slow_sync = 0.0
            machine.disk.broken, machine.disk.full = None, False
            if machine.process is not None:
                machine.process.calls_left = None
                machine.process.stalled_until = 0.0
                if machine.host is None or machine.host.failed is not None:
                    machine.kill()
            machine.excused = False

    def _unnoticed(self, machine: Machine, kind: str) -> bool:
        """Whether a member would be killed that has not seen yet what another program did to its file.

        Such a write may stay unnoticed (docs/limitations.md), so it is not for chance.
        """
        members = self._simulation.machines if kind == "blink_all" else [machine]
        return any(each.touched and (each.host is None or each.host.suspect is None) for each in members)

    def _machine(self, who: int) -> Machine | None:
        machines = self._simulation.machines
        if self._simulation.checks.spared is not None:
            leader = self._simulation.checks.spared[0].number
            minority = [(leader + step) % len(machines) for step in range(1, (len(machines) - 1) // 2 + 1)]
            return machines[minority[who % len(minority)]]
        if who >= 0:
            return machines[who % len(machines)]
        leading = [m for m in machines if m.replica is not None and m.replica.is_leader]
        return max(leading, key=lambda machine: machine.replica.term) if leading else None

    def _later(self, fault: Fault, end: object) -> None:
        self._world.after(fault.lasts, lambda: None if self.over else end())  # type: ignore[operator]

    def _boot_later(self, fault: Fault, machine: Machine) -> None:
        def boot() -> None:
            if machine.process is None:
                machine.boot()

        # Some are back before anybody noticed.
        self._world.after(0.005 if fault.amount < 0.2 else fault.lasts, lambda: None if self.over else boot())

    # Members

    def _join(self, fault: Fault, _machine: Machine) -> None:
        self._simulation.changes.join(fault)

    def _remove(self, _fault: Fault, machine: Machine) -> None:
        self._simulation.changes.remove(machine)

    def _wipe(self, fault: Fault, machine: Machine) -> None:
        self._simulation.changes.wipe(fault, machine)

    # Backups and the archive

    def _back_up(self, _fault: Fault, machine: Machine) -> None:
        self._simulation.restores.back_up(machine)

    def _restore(self, fault: Fault, machine: Machine) -> None:
        self._simulation.restores.restore(machine, fault.amount)

    def _storage_down(self, fault: Fault, _machine: Machine) -> None:
        self._simulation.storage.down = True
        self._later(fault, lambda: setattr(self._simulation.storage, "down", False))

    # Processes and machines

    def _kill(self, fault: Fault, machine: Machine) -> None:
        machine.kill()
        self._boot_later(fault, machine)

    def _power(self, fault: Fault, machine: Machine) -> None:
        had_guests = len(machine.guests)
        machine.kill(power=True)
        self._boot_later(fault, machine)
        for _ in range(had_guests):
            self._later(fault, lambda: self._simulation.begin_guest(machine))

    def _kill_in_call(self, fault: Fault, machine: Machine) -> None:
        if machine.process is not None:
            machine.process.calls_left = int(fault.amount * 60)
            self._world.after(fault.lasts + 0.05, lambda: None if self.over else self._revive(machine))

    def _revive(self, machine: Machine) -> None:
        if machine.process is None:
            machine.boot()
        else:
            machine.process.calls_left = None

    def _blink_all(self, fault: Fault, machine: Machine) -> None:
        """The power of the whole group fails."""
        for each in self._simulation.machines:
            self._power(fault, each)

    def _restart(self, fault: Fault, machine: Machine) -> None:
        """What failed or is down is started again."""
        for each in self._simulation.machines:
            if each.process is None:
                each.boot()
            elif each.host is not None and each.host.failed is not None:
                each.kill()
                each.disk.broken, each.disk.full = None, False
                each.boot()

    def _stall(self, fault: Fault, machine: Machine) -> None:
        """SIGSTOP, or a hypervisor that looks elsewhere."""
        if machine.process is not None:
            machine.process.stalled_until = self._world.now + 2 * fault.lasts

    def _kill_guest(self, fault: Fault, machine: Machine) -> None:
        if machine.guests:
            machine.kill_guest(machine.guests[0])
            self._later(fault, lambda: self._simulation.begin_guest(machine))

    def _clock_jump(self, fault: Fault, machine: Machine) -> None:
        machine.wall = (fault.amount - 0.5) * 7200
        for process in [machine.process, *machine.guests]:
            if process is not None:
                process.wall = machine.wall

    def _slow_apply(self, fault: Fault, machine: Machine) -> None:
        machine.slow_apply = fault.amount * 0.1
        self._later(fault, lambda: setattr(machine, "slow_apply", 0.0))

    def _transfer(self, fault: Fault, machine: Machine) -> None:
        """The leader hands over."""
        host = machine.host
        if host is not None and machine.replica is not None:
            host._driver.call(host._driver._with_replica, lambda replica: replica.handover.to_whoever_is_ready())

    # Disks

    def _slow_sync(self, fault: Fault, machine: Machine) -> None:
        machine.slow_sync = fault.amount * 0.1
        self._later(fault, lambda: setattr(machine, "slow_sync", 0.0))

    def _disk_error(self, fault: Fault, machine: Machine) -> None:
        machine.excused = True
        machine.disk.broken = ["log.sqlite3", "db.sqlite3-wal", "sqlite3"][int(fault.amount * 3)]
        self._later(fault, lambda: self._mend(machine))

    def _disk_full(self, fault: Fault, machine: Machine) -> None:
        machine.excused = True
        machine.disk.full = True
        self._later(fault, lambda: self._mend(machine))

    def _mend(self, machine: Machine) -> None:
        """The disk works again; the node that stopped is started again."""
        machine.disk.broken, machine.disk.full = None, False
        if machine.process is not None and (machine.host is None or machine.host.failed is not None):
            machine.kill()
        if machine.process is None:
            machine.boot()

    def _foreign(self, fault: Fault, machine: Machine) -> None:
        """Another program writes to the file of a running node, while all others are sound."""
        machines = self._simulation.machines
        ready = machine.host is not None and machine.host.suspect is None and not machine.disk.full
        calls_left = machine.process is not None and machine.process.calls_left is not None
        if not ready or machine.disk.broken or machine.excused or calls_left or any(m.touched for m in machines):
            return
        if not self._held_by_others(machine):
            return
        machine.touched = "touched"
        program = Process(self._world, f"another program on {machine.address}")

        def write() -> None:
            connection = apsw.Connection(str(machine.disk.folder / "db.sqlite3"), vfs=VFS_NAME)
            program.connections.append(connection)
            done = False
            for _ in range(TRIES):
                try:
                    connection.execute("UPDATE spare SET text = text || '!'")
                    done = True
                except apsw.BusyError:
                    self._world.sleep(0.003)
                    continue
                except apsw.SQLError:  # the node begins at an old state, without the table
                    pass
                break
            if not done:
                machine.touched = None
            connection.close()

        self._world.spawn(program, write, "another program")

    def _held_by_others(self, machine: Machine) -> bool:
        """Whether what is committed is on another disk as well: with one that was lost, it may not be any more."""
        checks, others = self._simulation.checks, [each for each in self._simulation.there if each is not machine]
        index = checks.last_committed
        return not others or any(each.holds(index, checks.entries_term(index)) for each in others)

    # The network

    def _cut(self, fault: Fault, machine: Machine) -> None:
        other = self._simulation.machines[fault.other % len(self._simulation.machines)]
        if other is not machine:
            self._simulation.network.cut(machine.address, other.address)
            self._later(fault, self._simulation.network.heal)

    def _isolate(self, fault: Fault, machine: Machine) -> None:
        for other in self._simulation.machines:
            if other is not machine:
                self._simulation.network.cut(machine.address, other.address)
        self._later(fault, self._simulation.network.heal)

    def _halves(self, fault: Fault, machine: Machine) -> None:
        """Two sides, of which one may have a majority."""
        machines = self._simulation.machines
        first = {(machine.number + step) % len(machines) for step in range(1 + int(fault.amount * len(machines) / 2))}
        for a in machines:
            for b in machines:
                if a.number in first and b.number not in first:
                    self._simulation.network.cut(a.address, b.address)
        self._later(fault, self._simulation.network.heal)

    def _block(self, fault: Fault, machine: Machine) -> None:
        """One way between two members."""
        other = self._simulation.machines[fault.other % len(self._simulation.machines)]
        if other is not machine:
            self._simulation.network.block(machine.address, other.address)
            self._later(fault, self._simulation.network.heal)

    def _block_isolate(self, fault: Fault, machine: Machine) -> None:
        """A member that hears and is not heard, or the other way round, or neither; nobody is told."""
        for other in self._simulation.machines:
            if other is not machine:
                if fault.amount < 0.67:
                    self._simulation.network.block(machine.address, other.address)
                if fault.amount > 0.33:
                    self._simulation.network.block(other.address, machine.address)
        self._later(fault, self._simulation.network.heal)

    def _reset(self, fault: Fault, machine: Machine) -> None:
        other = self._simulation.machines[fault.other % len(self._simulation.machines)]
        if other is not machine:
            self._simulation.network.reset(machine.address, other.address)

    def _slow_network(self, fault: Fault, machine: Machine) -> None:
        network = self._simulation.network
        network.delay = (0.02, 0.02 + 0.3 * fault.amount)
        self._later(fault, lambda: setattr(network, "delay", self._simulation.scenario.delay))
