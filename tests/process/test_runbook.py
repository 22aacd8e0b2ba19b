"""docs/runbook.md from top to bottom, by its own commands, while web servers write: nothing is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_ports

from .cluster import ROOT, SECRET, TESTPROJECT, wait_until
from .runbook import (
    PAGE,
    PATIENCE,
    SETTINGS,
    Crew,
    Machine,
    Runbook,
    Written,
    next_version,
    pauses,
    rows_in,
    shutdown,
)
from .starter import Starter

NEW_SECRET = "another secret for the tests, as long"
ALL_MOVE = "RAFTSQLITE_SOAK_SECONDS" in os.environ
"""Whether every member moves to a new address, not only one: ``make runbook``."""


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """The page, no machines yet, and two versions of the package. All processes end with it, their logs are shown."""
    (tmp_path / "srv").mkdir()
    folder = tmp_path / "next"
    starters = [Starter([ROOT, TESTPROJECT], SETTINGS, tmp_path)]
    starters.append(Starter([next_version(folder), ROOT, TESTPROJECT], SETTINGS, tmp_path))
    made = Crew(Runbook(PAGE.read_text()), tmp_path, *starters)
    try:
        yield made
    finally:
        shutdown(made.machines)
        for starter in starters:
            starter.close()
        for machine in made.machines:
            print(machine.tail())


def in_turn(machines: Iterable[Machine]) -> Iterator[Machine]:
    """One after the other, the leader last."""
    left = list(machines)
    while left:
        leader = wait_until("a leader", lambda: (left[0].status() or {}).get("leader"), PATIENCE, every=0.2)
        left.sort(key=lambda machine: machine.address == leader)
        yield left.pop(0)


class Writes:
    """What the web servers of all machines wrote, and what may be missing of it."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.undone: set[str] = set()
        """What was acknowledged and then undone on purpose."""

    def all(self) -> list[Written]:
        """Those of a web server are in their order."""
        return [write for machine in self._crew.machines for write in machine.written()]

    def acknowledged(self) -> set[str]:
        return {write.text for write in self.all() if write.ended is not None}

    def wait_for_more(self) -> None:
        """Until each web server that runs has had a write acknowledged that began now."""
        now = time.monotonic()
        for machine in self._crew.machines:
            if "shop-web" in machine.running:
                wait_until(
                    f"{machine} writes",
                    lambda machine=machine: any(w.began > now and w.ended for w in machine.written()),
                    PATIENCE,
                )

    def check(self, machine: Machine) -> set[str]:
        """Nothing that was acknowledged is missing, nothing is there twice or out of nothing; what there is."""
        acknowledged = self.acknowledged()
        machine.manage("raft", "verify")  # all have applied what came before, and have the same
        found = rows_in(machine.file)
        rows = set(found)
        assert len(found) == len(rows), "a write is there twice"
        assert rows <= {write.text for write in self.all()}
        assert acknowledged - self.undone <= rows, sorted(acknowledged - self.undone - rows)
        return rows

    def by_server(self) -> Iterator[tuple[str, list[Written]]]:
        """Each web server's acknowledged writes, in order."""
        writes = [write for write in self.all() if write.ended is not None]
        for name, of_one in groupby(writes, lambda write: write.text.split()[0]):
            yield name, list(of_one)


@pytest.mark.timeout(600)
def test_the_runbook_from_top_to_bottom_loses_nothing_while_writers_write(crew: Crew) -> None:
    """All commands come from the page. The nodes are upgraded to another version of the package, with a protocol of
    its own."""
    book, machines, writes = crew.book, crew.machines, Writes(crew)
    addresses = iter([f"127.0.0.1:{port}" for port in free_ports(20)])
    founders = [next(addresses) for _ in range(3)]
    crew.stands_for.update({f"10.0.0.{number}:7100": address for number, address in enumerate(founders, 1)})
    crew.stands_for.update({"10.0.0.1": "127.0.0.1", "/srv/backups": str(crew.folder / "srv")})
    old = certify(crew, "authority")
    group: dict[str, Any] = {"secret": SECRET, "tls": old, "archive": {"storage": "backups", "interval": 0.5}}

    crew.begin("Install")
    for address in founders:
        machine = crew.machine(address, peers=founders, **group)
        crew.do(book.take("Install", 0), machine)
    first, second, _ = machines
    crew.do(book.take("Install", 1), first)
    for machine in machines:
        crew.do(book.take("Install", 2), machine)
    writes.wait_for_more()
    crew.do(book.take("What is going on"), first)

    for _ in range(2):
        crew.begin("Add a machine")
        crew.stands_for["10.0.0.4:7100"] = address = next(addresses)
        new = crew.machine(address, join=founders[:1], **group)
        crew.do(book.take("Add a machine"), first, on_the_new_machine=new)

    crew.begin("A machine is dead")
    second.kill()
    crew.stands_for["10.0.0.5:7100"] = address = next(addresses)
    new = crew.machine(address, join=founders[:1], **group)
    crew.do(book.take("A machine is dead"), first, on_the_new_machine=new)

    for leaving in [each for each in machines if each is not second][: None if ALL_MOVE else 1]:
        crew.begin("Move to a new address")
        crew.stands_for["10.0.0.1:7100"] = leaving.address
        crew.stands_for["10.0.1.1:7100"] = address = next(addresses)
        staying = next(each for each in reversed(machines) if each.running and each is not leaving)
        new = crew.machine(address, join=[staying.address], **group)
        crew.do(book.take("Move to a new address"), staying, on_the_new_machine=new, on_the_old_machine=leaving)

    members = [machine for machine in machines if machine.running]
    assert len(members) == 5
    crew.begin("Upgrade")
    crew.do(book.take("Upgrade", 0), members[0])
    used = protocol_of(members[0])["used"]
    for machine in in_turn(members):
        assert protocol_of(members[0])["used"] == used
        crew.do(book.take("Upgrade", 1), machine)
    wait_until("the group uses the new protocol", lambda: protocol_of(members[0])["used"] == used + 1, PATIENCE)
    crew.do(book.take("Upgrade", 2), members[0])

    crew.begin("Replace certificates and secrets")
    new_ones = certify(crew, "new-authority")
    both = {"authority": [old["authority"], new_ones["authority"]]}
    for change in (
        {"secret": [SECRET, NEW_SECRET], "tls": {**old, **both}},
        {"secret": [SECRET, NEW_SECRET], "tls": {**new_ones, **both}},
        {"secret": NEW_SECRET, "tls": new_ones},
    ):
        group |= change
        for machine in in_turn(members):
            machine.options.update(change)
            crew.do(book.take("Replace certificates and secrets", 1), machine)
    writes.wait_for_more()
    writes.check(members[1])

    crew.begin("Restore")
    first = time.monotonic()
    members[0].manage("raft", "backup", "--storage", "backups")  # what the timer does every night
    saved = Restored(first, time.monotonic())
    lines = book.take("Restore", 0)
    until = next(number for number, line in enumerate(lines, 1) if "restore" in line.words)
    with restoring(writes, saved):
        crew.do(lines[:until], members[2])
    crew.do(lines[until:], members[2])
    check_restored(writes, members[1], saved)

    crew.begin("Restore, to a moment")
    before, moment, after = time.monotonic(), datetime.now(UTC), time.monotonic()
    crew.stands_for["2026-11-20T14:03:00Z"] = moment.isoformat(timespec="milliseconds")
    saved = Restored(before - 0.005, after + 0.005)
    writes.wait_for_more()
    index = max(status["commit_index"] for machine in members if (status := machine.status()) is not None)
    wait_until(f"the log is archived up to {index}", lambda: archived(members, index), PATIENCE, every=0.2)
    with restoring(writes, saved):
        crew.do(book.take("Restore", 1), members[3])
    check_restored(writes, members[4], saved)

    crew.do(book.take("A node is suspect"), members[0])  # how it becomes so, and heals, is test_divergence's matter

    crew.begin("No quorum")
    saved, other = members[3:]
    for machine in members[:3]:
        machine.kill()
    told = {}
    for machine in (saved, other):
        crew.do(book.take("No quorum", 0), machine, expected=None)
        status = machine.status()
        assert status is not None
        told[machine] = status["last_index"], status["version"]
    saved, other = sorted(told, key=lambda machine: told[machine], reverse=True)
    other.kill()
    crew.stands_for["10.0.0.6:7100"] = saved.address
    crew.stands_for["10.0.0.7:7100"] = other.address
    crew.stands_for["10.0.0.8:7100"] = address = next(addresses)
    crew.do(book.take("No quorum", 1), saved)
    lines = book.take("No quorum", 2)
    for each in (other.address, address):
        crew.do(lines[:1], crew.machine(each, join=[saved.address], **group))
    crew.do(lines[1:], saved)
    writes.wait_for_more()
    check_recovered(writes, saved)

    crew.begin("All is lost")
    shutdown(machines)
    newest = newest_backup(crew.folder)
    peers = [next(addresses) for _ in range(3)]
    lines = book.take("All is lost")
    made = [crew.machine(each, peers=peers, **group) for each in peers]
    for machine in made:
        crew.do(lines[:1], machine)
    crew.do(lines[1:], made[0])
    assert rows_in(made[1].file) == rows_in(newest)
    crew.end()

    assert not book.left, "lines of the page that were not carried out"
    report(crew, writes)


@dataclass
class Restored:
    """A restore, in seconds of the monotonic clock: the state of a moment between ``first`` and ``last`` was put in
    the place of that of a moment between ``began`` and ``ended``."""

    first: float
    last: float
    began: float = 0.0
    ended: float = 0.0


@contextmanager
def restoring(writes: Writes, restored: Restored) -> Iterator[None]:
    """There are writes before it, which it undoes, and after it."""
    writes.wait_for_more()
    restored.began = time.monotonic()
    yield
    restored.ended = time.monotonic()
    writes.wait_for_more()


def check_restored(writes: Writes, machine: Machine, restored: Restored) -> None:
    """Of each web server's acknowledged writes, first some are there, then some are undone, then all are there: those
    between the two moments, and no others."""
    servers = list(writes.by_server())
    machine.manage("raft", "verify")
    rows = set(rows_in(machine.file))
    undone = set()
    for name, of_one in servers:
        known = [each for each in of_one if each.text not in writes.undone]
        there = [each.text in rows for each in known]
        changes = [key for key, _ in groupby(there)]
        assert changes in ([], [True], [True, False], [True, False, True], [False], [False, True]), (name, there)
        for write, is_there in zip(known, there, strict=True):
            assert write.ended is not None
            if is_there:
                assert write.began < restored.last or write.ended > restored.began, f"{write} is not undone"
            else:
                assert write.ended > restored.first, f"{write} was acknowledged before {restored}, and is lost"
                assert write.began < restored.ended, f"{write} began after {restored}, and is lost"
                undone.add(write.text)
    assert undone, "the restore has undone nothing"
    print(f"the restore has undone {len(undone)} writes that came after what was restored")
    writes.undone |= undone
    writes.check(machine)


def archived(members: Sequence[Machine], index: int) -> bool:
    """Whether the archive has all up to a log index."""
    told = [status["archive"]["index"] for machine in members if (status := machine.status()) is not None]
    return any(each is not None and each >= index for each in told)


def check_recovered(writes: Writes, saved: Machine) -> None:
    """The one machine that was left has all that it had acknowledged itself; what others had acknowledged may be
    missing from some write on."""
    servers = list(writes.by_server())
    saved.manage("raft", "verify")
    rows = set(rows_in(saved.file))
    gone: set[str] = set()
    for name, of_one in servers:
        missing = [each.text not in rows and each.text not in writes.undone for each in of_one]
        assert missing == sorted(missing), (name, missing)
        assert name.split(".")[0] != str(saved.index) or not any(missing)
        gone |= {each.text for each, is_missing in zip(of_one, missing, strict=True) if is_missing}
    print(f"{len(gone)} writes had not reached the machine that was left")
    writes.undone |= gone
    writes.check(saved)


def report(crew: Crew, writes: Writes) -> None:
    """What is to be known of it."""
    for step in pauses(crew.steps, crew.machines):
        assert step.writes or step.name == "All is lost"
        waited = (
            f"longest pause {step.pause:.2f} s, slowest write {step.slowest:.2f} s"
            if step.writes
            else "no web server"
        )
        print(f"{step.name:<33} {step.seconds:5.1f} s, {step.writes:4} writes, {waited}")
    print(f"{len(writes.acknowledged())} writes acknowledged, {len(writes.undone)} undone on purpose, 0 lost")


def certify(crew: Crew, name: str) -> dict[str, str]:
    """An authority of its own, and a certificate for this machine, as the page says: what ``tls`` takes."""
    folder = crew.folder / name
    crew.stands_for["new-authority"] = str(folder)
    crew.do(crew.book.take("Replace certificates and secrets", 0), crew.desk)
    return {
        "certificate": str(folder / "127.0.0.1.pem"),
        "key": str(folder / "127.0.0.1.key"),
        "authority": str(folder / "authority.pem"),
    }


def newest_backup(folder: Path) -> Path:
    """The one that ``raft restore`` takes."""
    return max((folder / "backups").rglob("*.sqlite3"), key=lambda path: path.stat().st_mtime_ns)


def protocol_of(machine: Machine) -> dict[str, Any]:
    """What its status says of the protocol."""
    status = wait_until(f"{machine} answers", machine.status, PATIENCE)
    told: dict[str, Any] = status["protocol"]
    return told
