"""Random schedules of faults: Raft's safety holds at every step, and the group recovers when the faults end.

``RAFTSQLITE_SCHEDULES=N`` runs N seeds, ``RAFTSQLITE_FIRST_SEED=N`` begins at another one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from django_raftsqlite.raft import consensus
from tests.support.simulation import Simulation

SEEDS = int(os.environ.get("RAFTSQLITE_SCHEDULES", "24"))
FIRST = int(os.environ.get("RAFTSQLITE_FIRST_SEED", "0"))
CHAOS_SECONDS = 8.0


class Schedule:
    """One seed's faults and requests, drawn while the simulation runs."""

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.simulation = simulation
        self.random = random.Random(seed)
        self.count = 0
        self.proposed: dict[tuple[int, int], bytes] = {}
        self.reads = 0
        self.snapshots = 0
        slow, fast = (0.005, 0.06), (0.0005, 0.003)
        simulation.delay = slow if self.random.random() < 0.3 else fast
        self.size = self.random.choice([20, 2000])
        self.actions: list[tuple[int, Callable[[str], None]]] = [
            (60, self.propose),
            (15, self.read),
            (4, self.cut),
            (3, self.isolate),
            (4, simulation_heal(simulation)),
            (3, self.reset),
            (3, self.crash),
            (2, self.blink),
            (2, self.die_in_the_middle),
            (2, self.break_disk),
            (8, self.restart),
            (2, self.transfer),
            (3, self.stall),
            (3, self.apply_slowly),
            (3, self.keep_state),
            (2, self.change_host),
            (4, self.compact),
            (6, self.send_snapshots),
            (1, self.send_any_snapshot),
            (3, self.hear_who_is_willing),
        ]

    def step(self) -> None:
        weights = [weight for weight, _ in self.actions]
        (action,) = self.random.choices([action for _, action in self.actions], weights)
        action(self.random.choice(self.simulation.addresses))
        self.simulation.run(self.random.expovariate(1 / 0.03))

    def propose(self, address: str) -> None:
        """To whoever believes to lead, also to one that was deposed and does not know it."""
        leading = [a for a, m in self.simulation.members.items() if m.replica and m.replica.is_leader]
        if not leading:
            return
        for _ in range(self.random.choice([1, 1, 5])):
            self.count += 1
            payload = b"%d " % self.count + b"x" * self.random.randrange(self.size)
            position = self.simulation.propose(payload, self.random.choice(leading))
            if position is not None:
                self.proposed[position[1], position[0]] = payload

    def read(self, address: str) -> None:
        """A read sees everything that any member had committed when it began."""
        address = self.simulation.leader() or address
        newest = max(self.simulation.committed, default=0)

        def done(index: int | None) -> None:
            if index is not None:
                self.reads += 1
                assert index >= newest, f"seed {self.simulation.seed}: read at {index}, {newest} was committed before"

        self.simulation.act(address, lambda replica: replica.read_index(done))

    def cut(self, address: str) -> None:
        self.simulation.cut(*self.random.sample(self.simulation.addresses, 2))

    def isolate(self, address: str) -> None:
        self.simulation.isolate(self.simulation.leader() or address)

    def reset(self, address: str) -> None:
        self.simulation.reset(*self.random.sample(self.simulation.addresses, 2))

    def crash(self, address: str) -> None:
        if self.simulation.members[address].running:
            self.simulation.crash(address)

    def blink(self, address: str) -> None:
        """Crash and come back before anybody noticed."""
        if self.simulation.members[address].running:
            self.simulation.crash(address)
            self.simulation.run(self.random.uniform(0, 0.01))
            self.simulation.restart(address)

    def die_in_the_middle(self, address: str) -> None:
        if self.simulation.members[address].running:
            self.simulation.members[address].dies_in = self.random.randrange(6)

    def break_disk(self, address: str) -> None:
        self.simulation.members[address].log.broken = self.random.choice(["before the write", "after the write"])

    def restart(self, address: str) -> None:
        for down in [a for a, m in self.simulation.members.items() if not m.running]:
            self.simulation.restart(down)

    def transfer(self, address: str) -> None:
        self.simulation.act(address, lambda replica: replica.transfer_leadership())

    def stall(self, address: str) -> None:
        self.simulation.members[address].stalled_until = self.simulation.now + self.random.uniform(0, 1.5)

    def apply_slowly(self, address: str) -> None:
        member = self.simulation.members[address]
        member.has_room = not member.has_room

    def keep_state(self, address: str) -> None:
        member = self.simulation.members[address]
        member.kept = len(member.state)

    def compact(self, address: str) -> None:
        """All that is applied is on the disk from here on, and the log begins there."""
        self.keep_state(address)
        self.simulation.compact(address)

    def send_snapshots(self, address: str) -> None:
        """To all members that need one, from whoever believes to lead."""
        for member in list(self.simulation.members.values()):
            if member.replica is not None:
                for peer in member.replica.view.behind:
                    self.snapshots += self.simulation.snapshot(member.address, peer)

    def send_any_snapshot(self, address: str) -> None:
        """Also to one that does not need it, or has asked an earlier leader for it."""
        self.snapshots += self.simulation.snapshot(*self.random.sample(self.simulation.addresses, 2))

    def change_host(self, address: str) -> None:
        """From its next start on another process hosts it, which may be one that leaves leading to others."""
        member = self.simulation.members[address]
        member.config = replace(member.config, reluctant=self.random.random() < 0.5)

    def hear_who_is_willing(self, address: str) -> None:
        """What members say of themselves may be outdated when it is heard."""
        addresses = self.simulation.addresses
        willing = frozenset(self.random.sample(addresses, self.random.randrange(len(addresses)))) - {address}
        self.simulation.act(address, lambda replica: replica.prefer(willing))

    def recover(self) -> None:
        """All faults end: the group elects a leader, commits, and all members have the same state."""
        simulation = self.simulation
        for member in simulation.members.values():
            member.log.broken = member.dies_in = None
            member.has_room = True
        self.restart("")
        simulation.heal()
        simulation.run(2.0)
        simulation.elect()
        position = simulation.propose(b"the end")
        assert position is not None

        def everywhere() -> bool:
            self.send_snapshots("")
            self.restart("")
            return all(len(m.state) >= position[0] for m in simulation.members.values())

        simulation.run_until(everywhere)
        states = [member.state[: position[0]] for member in simulation.members.values()]
        assert all(state == states[0] for state in states), f"seed {simulation.seed}"
        for (term, index), payload in self.proposed.items():
            if simulation.committed.get(index, (None,))[0] == term:
                assert simulation.committed[index] == (term, payload), f"seed {simulation.seed}, entry {index}"


def simulation_heal(simulation: Simulation) -> Callable[[str], None]:
    return lambda address: simulation.heal()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_safety_holds_under_random_faults_and_the_group_recovers(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raft paper figure 3, and: what is committed is on a majority's disks, a confirmed read is never stale."""
    print(f"seed {seed}")
    addresses = "abcde" if seed % 3 == 2 else "abc"
    if seed % 2:
        monkeypatch.setattr(consensus, "BATCH_BYTES", 2000)
        monkeypatch.setattr(consensus, "WINDOW_BYTES", 5000)
        monkeypatch.setattr(consensus, "APPLY_PER_TICK", 3)
    with Simulation(addresses, tmp_path, seed=seed, tail_entries=4 if seed % 2 else 16384) as simulation:
        schedule = Schedule(simulation, seed)
        simulation.elect()
        end = simulation.now + CHAOS_SECONDS
        while simulation.now < end:
            schedule.step()
        schedule.recover()
        assert schedule.proposed, "the schedule tested nothing"
        print(f"{schedule.count} proposed, {schedule.snapshots} snapshots")
