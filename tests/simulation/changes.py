"""Members that come and go while everything else happens, and disks that are lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_raftsqlite.exceptions import DatabaseError, HostLost
from django_raftsqlite.raft.members import Role

from .scenario import Fault

if TYPE_CHECKING:
    from .machine import Machine
    from .simulation import Simulation


PATIENCE = 2.0
"""Seconds for which a moment is waited for at which a disk may be lost."""


class Changes:
    """``removed`` are the addresses whose removal was asked for: their nodes may stop themselves, and say why."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._asking = 0
        self.removed: set[str] = set()

    def join(self, fault: Fault) -> None:
        """A machine that is no part of the group, or not any more, joins it with an empty disk."""
        machine = next((each for each in self._simulation.machines if not each.part), None)
        if machine is None:
            return
        machine.wipe()
        machine.part = machine.joins = True
        machine.learner = fault.amount < 0.25
        self.removed.discard(machine.address)
        machine.boot()

    def remove(self, machine: Machine) -> None:
        """Any node asks for a member to be removed; two voters remain at least."""
        simulation = self._simulation
        leader = simulation.leader()
        if leader is None or leader.process is None or leader.host is None or self._asking:
            return
        members = leader.replica.members
        if machine.address not in members or len(members.voters - self.removed - {machine.address}) < 2:
            return
        host = leader.host
        self.removed.add(machine.address)
        self._asking += 1

        def ask() -> None:
            try:
                host.change_members("remove", machine.address, learner=False, timeout=3.0)
            except (DatabaseError, HostLost):
                pass  # It may come about all the same.
            finally:
                self._asking -= 1

        simulation.world.spawn(leader.process, ask, "remove")

    def wipe(self, fault: Fault, machine: Machine) -> None:
        """A machine loses its disk; one at a time, and no change is under way, so that a quorum is left.

        Half of the times another member has missed what was committed last, and the leader is cut off meanwhile.
        """
        self._wipe_soon(machine, self._simulation.world.now + PATIENCE, worst=fault.amount > 0.5)

    def _wipe_soon(self, machine: Machine, until: float, *, worst: bool) -> None:
        world = self._simulation.world
        if self._over or not self._may_lose(machine):
            if not self._over and world.now < until:
                world.after(0.05, lambda: self._wipe_soon(machine, until, worst=worst))
            return
        leader = self._simulation.leader()
        if worst and leader is not None:
            if leader is machine:
                machine = next(each for each in self._simulation.there if each is not leader)
            self._isolate_but(machine, leader)
            world.after(0.3, lambda: self._wipe_worst(machine, leader))
            return
        self._lose(machine)

    def _isolate_but(self, machine: Machine, leader: Machine) -> None:
        """Only a bare majority hears of what is committed now."""
        network = self._simulation.network
        others = [each for each in self._simulation.there if each not in (machine, leader)]
        for other in others[: (len(others) + 1) // 2]:
            for each in self._simulation.there:
                if each is not other:
                    network.cut(each.address, other.address)

    def _wipe_worst(self, machine: Machine, leader: Machine) -> None:
        if self._over:
            return
        network = self._simulation.network
        network.heal()
        if self._may_lose(machine):
            self._lose(machine)
            for each in self._simulation.there:
                if each is not leader:
                    network.cut(each.address, leader.address)
            self._simulation.world.after(1.5, lambda: None if self._over else network.heal())

    def _lose(self, machine: Machine) -> None:
        machine.wipe()
        self._simulation.world.after(0.01, lambda: machine.boot() if machine.process is None else None)

    @property
    def _over(self) -> bool:
        return self._simulation.winding_down or self._simulation.faults.over

    def _may_lose(self, machine: Machine) -> bool:
        simulation = self._simulation
        leader = simulation.leader()
        if leader is None or self._asking:
            return False
        members = leader.replica.members
        if len(members.voters) < 3 or members.index > leader.replica.commit_index or machine.address not in members:
            return False
        for each in simulation.machines:
            if not each.part:
                continue
            member = members.get(each.address)
            known = each.log is not None and each.log.members.index >= members.index
            if member is None or not known or each.log is None or member.id != each.log.member_id:
                return False
            if member.role is Role.NEWCOMER or each.touched:
                return False
        return True

    def stopped(self, machine: Machine, reason: str) -> bool:
        """Whether a node stopped itself because it is no member any more; then it is not started again."""
        if machine.address not in self.removed or not ("was removed" in reason or "not a member any more" in reason):
            return False
        if machine.part:
            machine.world.note(f"{machine.address} is no member any more")
            machine.part = False
            machine.world.soon(machine.kill)
            for guest in list(machine.guests):
                machine.world.soon(lambda guest=guest: machine.kill_guest(guest))  # type: ignore[misc]
        return True

    @property
    def complete(self) -> bool:
        """The leader's members are the machines that take part, and none of them is on its way."""
        leader = self._simulation.leader()
        if leader is None:
            return False
        members = leader.replica.members
        there = {machine.address for machine in self._simulation.there}
        return members.by_address.keys() == there and not any(m.role is Role.NEWCOMER for m in members)
