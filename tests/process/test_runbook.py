"""docs/runbook.md from top to bottom, by its own commands, while a writer writes: only a restore undoes anything."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .cluster import SECRET, TESTPROJECT, ClusterNode, RemoteError, Worker, free_ports, node_environment, wait_until

NEW_SECRET = "another secret for the tests, as long"
PATIENCE = 60.0
VOTING = {"leader", "follower", "candidate"}


class Machine(ClusterNode):
    """A member that is run as the runbook says: ``manage.py raft node``."""

    def __init__(self, folder: Path, index: int, address: str, options: dict[str, Any]) -> None:
        super().__init__(index, folder / f"machine{index}", address, [address], {})
        self.settings["OPTIONS"] = {"node": address, "timeout": 20, **options}
        self.environment = {"TESTPROJECT_BACKUPS": str(folder / "backups")}
        self._service: subprocess.Popen[bytes] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """``OPTIONS``, to be edited as a person would."""
        options: dict[str, Any] = self.settings["OPTIONS"]
        return options

    def start_service(self) -> None:
        """``systemctl start``: returns at once."""
        assert self._service is None
        with self.log.open("ab") as output:
            self._service = subprocess.Popen(
                [sys.executable, str(TESTPROJECT / "manage.py"), "raft", "node"],
                env=node_environment(self.settings, self.environment),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop_service(self, *, kill: bool = False) -> None:
        """``systemctl stop``; or the machine is dead."""
        service, self._service = self._service, None
        if service is None:
            return
        service.kill() if kill else service.terminate()
        try:
            status = service.wait(30)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()
            raise
        assert kill or status == 0, self.tail()

    def manage(self, *words: str) -> str:
        """A command that must succeed; what it prints."""
        done = subprocess.run(
            [sys.executable, str(TESTPROJECT / "manage.py"), *words],
            cwd=self.folder,
            env=node_environment(self.settings, self.environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr, self.tail())
        return done.stdout

    def wait_sound(self, voters: int) -> None:
        """Until its status says what the runbook waits for: a leader, so many voters, all reachable, lag 0."""

        def sound() -> bool:
            status = self.status()
            if status is None or not status["leader"] or not status["leader_reachable"]:
                return False
            if status["commit_index"] - status["applied_index"] > 20:
                return False
            of_members = status["members"]
            return len(of_members) == voters and all(each["role"] in VOTING for each in of_members)

        wait_until(f"{self} sees {voters} voters", sound, PATIENCE)


class Writer:
    """Writes all the time beside one machine's node; what was acknowledged, and the longest time without that."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.acknowledged: list[str] = []
        self.longest = 0.0
        self._worker = worker
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number, last = 0, time.monotonic()
        while not self._stop.is_set():
            number += 1
            try:
                self._worker.call("create", text=f"{self._name} {number}", wait=PATIENCE)
            except RemoteError:
                continue
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            self.acknowledged.append(f"{self._name} {number}")

    def wait_for_more(self) -> None:
        """Until a write that began now was acknowledged."""
        before = len(self.acknowledged)
        wait_until("two more writes", lambda: len(self.acknowledged) > before + 1, PATIENCE)

    def stop(self) -> None:
        """Return when nothing is under way."""
        self._stop.set()
        self._thread.join()


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Filled by the test; all processes end with it, and their logs are shown."""
    made: list[Machine] = []
    yield made
    for machine in made:
        machine.stop_service(kill=True)
        machine.destroy()
        print(machine.tail())


def one_after_the_other(machines: Sequence[Machine], **options: Any) -> None:
    """New settings, or a new version: each is stopped and started, the leader last."""
    status = machines[0].status()
    assert status is not None
    for machine in sorted(machines, key=lambda each: each.address == status["leader"]):
        machine.options.update(options)
        if machine.address == (machine.status() or {})["leader"]:
            machine.manage("raft", "transfer")
        machine.stop_service()
        machine.start_service()
        machine.wait_sound(len(machines))


def rows_of(machine: Machine) -> set[str]:
    worker = machine.attach(host=False)
    try:
        return set(worker.call("texts"))
    finally:
        worker.stop()


@pytest.mark.timeout(600)
def test_the_runbook_from_top_to_bottom_loses_nothing_while_a_writer_writes(
    tmp_path: Path, machines: list[Machine]
) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(6)]
    founders = {"peers": addresses[:3], "secret": SECRET, "tls": certify(tmp_path / "authority")}
    later = {"join": addresses[:1], "secret": SECRET, "tls": founders["tls"]}

    # Install.
    for index in range(3):
        machines.append(Machine(tmp_path, index, addresses[index], dict(founders)))
        machines[index].manage("check", "--database", "default")
        machines[index].start_service()
    first = machines[0]
    for machine in machines:
        machine.wait_sound(3)
    first.manage("migrate", "--verbosity", "0")
    first.manage("raft", "verify")

    writer = Writer(first.attach(host=False), "first")
    try:
        # Add a machine, twice.
        for index in (3, 4):
            machines.append(Machine(tmp_path, index, addresses[index], dict(later)))
            first.manage("raft", "add", addresses[index])
            machines[index].start_service()
            wait_until("a voter", lambda at=addresses[index]: is_voter(first, at), PATIENCE)
        first.wait_sound(5)

        # A machine is dead.
        machines[1].stop_service(kill=True)
        machines.append(Machine(tmp_path, 5, addresses[5], dict(later)))
        first.manage("raft", "add", addresses[5])
        machines[5].start_service()
        wait_until("a voter", lambda: is_voter(first, addresses[5]), PATIENCE)
        first.manage("raft", "remove", addresses[1])
        alive = [machine for machine in machines if machine is not machines[1]]
        first.wait_sound(5)
        first.manage("raft", "verify")

        # Certificates and secret are replaced: both, then the new ones; an upgrade goes the same way.
        old, new = founders["tls"], certify(tmp_path / "new-authority")
        both = {"authority": [old["authority"], new["authority"]]}
        one_after_the_other(alive, secret=[SECRET, NEW_SECRET], tls={**old, **both})
        one_after_the_other(alive, secret=[SECRET, NEW_SECRET], tls={**new, **both})
        one_after_the_other(alive, secret=NEW_SECRET, tls=new)
        writer.wait_for_more()
    finally:
        writer.stop()
    assert set(writer.acknowledged) <= rows_of(first)

    before, without_restore = set(writer.acknowledged), writer.longest
    assert len(before) > 100

    # Restore, under another writer: what it wrote after the backup is gone, what came before or after is there.
    first.manage("raft", "backup", "--storage", "backups")
    writer = Writer(alive[2].attach(host=False), "second")
    try:
        writer.wait_for_more()
        first.manage("raft", "restore", "--storage", "backups", "--yes")
        restored = len(writer.acknowledged) + 1  # the one that was under way may have come before
        writer.wait_for_more()
        writer.wait_for_more()
    finally:
        writer.stop()
    assert "default" in first.manage("raft", "backups", "--storage", "backups")
    first.manage("raft", "verify")
    kept = rows_of(first)
    assert before <= kept
    assert "second 1" in writer.acknowledged
    assert "second 1" not in kept
    assert set(writer.acknowledged[restored:]) <= kept
    print(
        f"{len(before)} and {len(writer.acknowledged)} writes; the longest pause was {without_restore:.2f} s, "
        f"{writer.longest:.2f} s with the restore; none was lost"
    )


def certify(folder: Path) -> dict[str, str]:
    """An authority of its own, and a certificate for this machine: what ``tls`` takes."""
    for words in (("init",), ("issue", "127.0.0.1")):
        subprocess.run(
            [sys.executable, str(TESTPROJECT / "manage.py"), "raft", "cert", *words, "--dir", str(folder)],
            env=node_environment({"NAME": str(folder.parent / "none.sqlite3")}),
            check=True,
            capture_output=True,
            timeout=60,
        )
    return {
        "certificate": str(folder / "127.0.0.1.pem"),
        "key": str(folder / "127.0.0.1.key"),
        "authority": str(folder / "authority.pem"),
    }


def is_voter(machine: Machine, address: str) -> bool:
    members = json.loads(machine.manage("raft", "status", "--format", "json"))["members"]
    return any(each["address"] == address and each["role"] in VOTING for each in members)
