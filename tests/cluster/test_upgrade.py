"""Members of different versions in one group: upgraded one by one under writes, and refused where that cannot be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import (
    CommitOutcomeUnknown,
    HostLost,
    LeaseTimeout,
    NotSupportedError,
    OperationalError,
    Unavailable,
)
from django_raftsqlite.management.verification import outcome_of
from django_raftsqlite.node import host
from tests.support.nodes import Group, eventually, read, write

OLD, NEW = (1, 1), (1, 2)
DEADLINE = 60.0


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Group]:
    """Three nodes of the first protocol version."""
    made = Group(tmp_path, 3, protocols=OLD, durable=False)
    try:
        made.start()
        made.leader()
        write(
            made.nodes[0], "CREATE TABLE t(id INTEGER PRIMARY KEY, author INT, number INT, UNIQUE (author, number))"
        )
        yield made
    finally:
        made.close()


def become(made: Group, number: int, protocols: tuple[int, int]) -> None:
    """Stop a node, and start it with another version of the program."""
    made.nodes[number].close()
    made.configs[number] = replace(made.configs[number], protocols=protocols)
    made.restart(number)


def protocol(made: Group, number: int) -> dict[str, Any]:
    told: dict[str, Any] = made.nodes[number].status()["protocol"]
    return told


def distances(made: Group, number: int) -> list[float]:
    """The round trips that a node knows."""
    members = made.nodes[number].status()["members"]
    return [member["round_trip"] for member in members if member["round_trip"] is not None]


def uses(made: Group, version: int) -> bool:
    return all(protocol(made, number)["used"] == version for number in range(3))


class Writer:
    """Writes numbers through whichever node there is at its place, in autocommit and in transactions."""

    def __init__(self, made: Group, number: int) -> None:
        self._made = made
        self._number = number
        self._stop = threading.Event()
        self.acknowledged: set[int] = set()
        self.uncertain: set[int] = set()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            attempt = 0
            while not self._stop.is_set():
                attempt += 1
                self._write(attempt)
        except BaseException as error:
            self.error = error

    def _write(self, number: int) -> None:
        node = self._made.nodes[self._number]
        try:
            write(node, "INSERT INTO t(author, number) VALUES (?, ?)", self._number, number, timeout=5)
        except CommitOutcomeUnknown:
            self.uncertain.add(number)
        except (Unavailable, LeaseTimeout, HostLost):
            pass
        except OperationalError:
            if not node.closed:
                raise
            time.sleep(0.01)
        else:
            self.acknowledged.add(number)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def check_written(made: Group, writers: list[Writer]) -> None:
    """Nothing that was acknowledged is lost, nothing is there twice or was refused."""
    for number, writer in enumerate(writers):
        rows = [each for (each,) in read(made.nodes[0], "SELECT number FROM t WHERE author = ?", number)]
        assert len(rows) == len(set(rows))
        assert writer.acknowledged <= set(rows) <= writer.acknowledged | writer.uncertain
    print({number: len(writer.acknowledged) for number, writer in enumerate(writers)}, "writes acknowledged")


def test_a_group_is_upgraded_one_node_at_a_time_under_writes(trio: Group) -> None:
    """Nothing is lost or doubled; what is new is refused, with a reason, until the last node is upgraded."""
    writers = [Writer(trio, number) for number in range(3)]
    try:
        leader = trio.leader()
        # A follower, the other follower, the leader: the leadership is handed over to an upgraded node.
        order = [number for number in range(3) if number != leader] + [leader]
        for done, number in enumerate(order):
            become(trio, number, NEW)
            before = [len(writer.acknowledged) for writer in writers]
            eventually(
                lambda before=before: all(len(w.acknowledged) > n for w, n in zip(writers, before, strict=True)),
                f"all nodes write when {done + 1} are upgraded",
                DEADLINE,
            )
            if done < 2:
                old = [trio.peers[each] for each in order[done + 1 :]]
                waits_for = sorted(f"{each} speaks 1 at most" for each in old)
                eventually(
                    lambda n=number, waits_for=waits_for: protocol(trio, n)["waits_for"] == waits_for,
                    "it is told for whom the next protocol waits",
                    DEADLINE,
                )
                with pytest.raises(NotSupportedError, match=r"until all its members speak 2: .* speaks 1 at most"):
                    trio.nodes[number].backend().verify(timeout=10)
                assert uses(trio, 1)
                assert not distances(trio, number)
        eventually(lambda: uses(trio, 2), "the group uses the new protocol", DEADLINE)
        verification = trio.nodes[0].backend().verify(timeout=20)
        eventually(lambda: all(len(distances(trio, number)) == 2 for number in range(3)), "they measure", DEADLINE)
    finally:
        for writer in writers:
            writer.stop()
    trio.settle()

    def verified() -> bool:
        found = outcome_of(verification, trio.nodes[0].status()["members"])
        return found.complete and found.status == 0

    eventually(verified, "the contents are the same", DEADLINE)
    check_written(trio, writers)


def test_a_node_that_was_downgraded_too_late_does_not_start_and_says_why(trio: Group) -> None:
    for number in range(3):
        become(trio, number, NEW)
    eventually(lambda: uses(trio, 2), "the group uses the new protocol", DEADLINE)
    with pytest.raises(
        OperationalError, match=r"uses protocol 2, and this version .* speaks 1 at most: it cannot be d"
    ):
        become(trio, 0, OLD)
    write(trio.nodes[1], "INSERT INTO t(author, number) VALUES (1, 1)")
    become(trio, 0, NEW)
    trio.settle()


def test_an_old_node_with_an_empty_disk_is_kept_out_of_a_group_that_went_on(
    trio: Group, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Both sides say which one to upgrade; the group goes on without it."""
    for number in range(3):
        become(trio, number, NEW)
    eventually(lambda: uses(trio, 2), "the group uses the new protocol", DEADLINE)
    trio.nodes[2].close()
    trio.configs[2] = replace(trio.configs[2], name=tmp_path / "empty.sqlite3", protocols=OLD)
    logging.getLogger("django_raftsqlite").addHandler(caplog.handler)
    try:
        trio.restart(2)
        text = f"upgrade '{trio.peers[2]}' first: it speaks protocol 1, and '"
        for beginning in ("Refused a connection from", "No session with"):
            eventually(
                lambda beginning=beginning: [
                    each for each in caplog.messages if each.startswith(beginning) and text in each
                ],
                f"it is said why, with {beginning!r}",
                DEADLINE,
            )
    finally:
        logging.getLogger("django_raftsqlite").removeHandler(caplog.handler)
    write(trio.nodes[0], "INSERT INTO t(author, number) VALUES (1, 1)")
    reachable = {each["address"]: each["reachable"] for each in trio.nodes[2].status()["members"]}
    assert reachable == {trio.peers[0]: False, trio.peers[1]: False, trio.peers[2]: True}


def test_an_upgrade_of_sqlite_goes_through_the_nodes_one_by_one_too(
    trio: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes with another SQLite than the others wait until they are more than half, and take over then."""
    release = "3.1"
    facts = host.handshake_facts
    monkeypatch.setattr(host, "handshake_facts", lambda registrars: {**facts(registrars), "sqlite": release})
    for number in range(3):
        become(trio, number, OLD)
    trio.leader()
    writers = [Writer(trio, number) for number in range(3)]
    try:
        leader = trio.leader()
        order = [number for number in range(3) if number != leader] + [leader]
        release = "3.2"
        for done, number in enumerate(order, 1):
            become(trio, number, OLD)
            serving, waiting = (order[done:], order[:done]) if done == 1 else (order[:done], order[done:])
            before = {each: len(writers[each].acknowledged) for each in serving}
            eventually(
                lambda before=before: all(len(writers[each].acknowledged) > n for each, n in before.items()),
                f"{len(serving)} nodes write when {done} are upgraded",
                DEADLINE,
            )
            for each in waiting:
                told = trio.nodes[each].status()["members"]
                assert {member["address"] for member in told if member["reachable"]} == {trio.peers[each]}
    finally:
        for writer in writers:
            writer.stop()
    trio.settle()
    check_written(trio, writers)
