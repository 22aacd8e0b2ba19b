"""What must be so when all faults are over, and what is found then that chance has hidden."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from django_raftsqlite.dbapi.connection import Connection

from .clients import SPARE
from .machine import OLD
from .world import Violation

if TYPE_CHECKING:
    from .simulation import Simulation

VERIFIED = 20.0
HEALED = 40.0


class Aftermath:
    """The end of a run: each step raises Violation where the group is not what it must be."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def run(self) -> None:
        """All faults end; the group must be whole again within bounds, and agree."""
        simulation = self._simulation
        world = simulation.world
        world.note("all faults end")
        simulation.faults.end()
        for machine in simulation.there:
            if machine.process is None:
                machine.boot()
        world.run(world.now + 1.0)
        simulation.winding_down = True
        simulation.wait(lambda: not simulation.busy, HEALED, "every client has its answer")
        simulation.wait(lambda: not simulation.restores.under_way, HEALED, "every restore has its answer")
        simulation.wait(simulation.settled, HEALED, "all nodes have applied the same")
        if simulation.scenario.upgrade:
            self._upgrade()
        if simulation.scenario.damaged:
            self._damage()
        if simulation.scenario.damaged or simulation.checks.healed or simulation.scenario.upgrade:
            self._verify()
        found: list[Any] = []
        for machine in simulation.there:

            def read(connection: Connection) -> None:
                cursor = connection.cursor()
                rows = cursor.execute("SELECT op, k, n FROM done ORDER BY rowid").fetchall()
                spare = cursor.execute("SELECT text FROM spare").fetchall()
                found.append((rows, dict(cursor.execute("SELECT k, n FROM counter").fetchall()), spare))

            simulation.task(machine, read, "the tables are read", 5.0)
        for each in found[1:]:
            if each != found[0]:
                raise Violation("the tables differ between nodes")
        rows, counters, spare = found[0]
        if spare != [(SPARE,)]:
            raise Violation(f"what another program wrote spread to all nodes: {spare}")
        simulation.restores.check([row for row in rows if row[0] >= 0])
        simulation.history.check(rows, counters, simulation.restores.erased)
        if simulation.scenario.archive:
            # A slow storage, and a few entries in each segment.
            simulation.wait(self._archived, 10 * HEALED, "all that was committed is archived")
            simulation.settling = True
            simulation.storage.check()

    def _archived(self) -> bool:
        leader = self._simulation.leader()
        if leader is None or leader.host is None or leader.host._archiver is None:
            return False
        archived = leader.host._archiver.archived
        # The last look at it is this leader's, so what it says is so.
        return leader.host._archiver._sure and archived is not None and archived >= leader.replica.commit_index

    def _upgrade(self) -> None:
        """The last machines are upgraded, one by one; then, and not before, the group uses the new protocol."""
        simulation = self._simulation
        simulation.checks.spared = None  # leaders are stopped, too
        for machine in simulation.there:
            if machine.old:
                found = {each.host._protocol.used for each in simulation.there if each.host is not None}
                if found != {1}:
                    raise Violation(f"the group uses protocol {found} while {machine.address} speaks {OLD}")
                machine.kill()
                machine.upgrade()
                machine.boot()
                simulation.wait(simulation.settled, HEALED, f"{machine.address} is back with the new version")

        def used() -> bool:
            hosts = [machine.host for machine in simulation.there]
            return all(host is not None and host._protocol.used == 2 for host in hosts)

        simulation.wait(used, HEALED, "the group uses the new protocol")
        simulation.wait(simulation.settled, HEALED, "all nodes have applied the same with the new protocol")

    def _damage(self) -> None:
        """A byte of a follower's table changes on its disk, and nothing else tells of it: not even a time."""
        simulation = self._simulation
        leader = simulation.leader()
        if leader is None or len(leader.replica.members.voters) < 3:
            return  # of two nobody can tell which is wrong
        if any(machine.touched for machine in simulation.there):
            return  # nor of three, of which two are
        for machine in simulation.there:
            path = machine.disk.folder / "db.sqlite3"
            at = path.read_bytes().find(SPARE.encode())
            if at < 0 or machine is simulation.leader():
                continue
            _overwrite(path, at, b"W")
            with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
                if connection.execute("SELECT text FROM spare").get != SPARE:
                    machine.touched = "touched"
                    simulation.world.note(f"-- a byte of {machine.address}'s table changes")
                    return
            _overwrite(path, at, SPARE[:1].encode())  # the page is in the WAL, too

    def _verify(self) -> None:
        """All members have the same content, row by row, or are found not to have, and healed."""
        simulation = self._simulation
        damaged = [machine for machine in simulation.there if machine.touched]
        healed = simulation.checks.healed
        self._verified()
        wanted = healed + len(damaged)
        simulation.wait(lambda: simulation.checks.healed == wanted, HEALED, "what is damaged is found and healed")
        simulation.wait(simulation.settled, HEALED, "all nodes have applied the same again")
        if damaged:
            self._verified()
        hosts = [machine.host for machine in simulation.there if machine.host is not None]
        latest = {host.config.address: host._verification.latest for host in hosts}
        if len({told["digest"] for told in latest.values() if told is not None}) != 1 or None in latest.values():
            raise Violation(f"the content differs after it was healed: {latest}")

    def _verified(self) -> None:
        """What `raft verify` does: an entry in the log, at which every member hashes its content."""
        simulation = self._simulation
        leader = simulation.leader()
        assert leader is not None and leader.process is not None and leader.host is not None
        host, told = leader.host, []

        def verify() -> None:
            told.append(bytes.fromhex(host.verify(timeout=VERIFIED)))

        simulation.world.spawn(leader.process, verify, "verify")

        def over() -> bool:
            if not told:
                return False
            for machine in simulation.there:
                if machine.host is None:
                    return False
                latest = machine.host._verification.latest
                done = latest is not None and latest["id"] == told[0] and (latest["digest"] or latest["problem"])
                if not done and machine.touched is None:
                    return False
            return True

        simulation.wait(over, HEALED, "all members have verified their content")


def _overwrite(path: Path, at: int, content: bytes) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
