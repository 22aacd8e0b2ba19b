"""Real nodes whose content comes to differ: found, told, kept from serving, and healed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import Unavailable
from django_raftsqlite.management.verification import outcome_of
from django_raftsqlite.node.latch import Latch
from django_raftsqlite.node.snapshot_source import SnapshotSource
from django_raftsqlite.node.suspicion import Difference
from tests.support.nodes import Group, eventually, group, read, write


class Observed(list[Difference]):
    """An observer that remembers the differences that it is told of."""

    def __call__(self, event: object) -> None:
        if isinstance(event, Difference):
            self.append(event)


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture(params=["resync", "stop"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def durable(request: pytest.FixtureRequest) -> bool:
    """What a clean stop leaves is kept by nodes that outlast their process only."""
    return "stopped" in request.node.name


@pytest.fixture
def trio(tmp_path: Path, observed: Observed, mode: str, durable: bool) -> Iterator[Group]:
    with group(tmp_path, 3, durable=durable, on_divergence=mode, observers=(observed,)) as made:
        fill(made)
        yield made


def fill(made: Group) -> None:
    made.leader()
    write(made.nodes[0], "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)")
    for number in range(20):
        write(made.nodes[0], "INSERT INTO t(a, b) VALUES (?, ?)", number, "x" * 100)
    made.quiet()


def foreign(path: Path, sql: str) -> None:
    """What another program does to the file, with another SQLite library."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10);"
        "c.execute(sys.argv[2]); c.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(path), sql], check=True, timeout=30)


def suspects(made: Group) -> dict[int, str]:
    return {
        number: node.status()["suspect"]
        for number, node in enumerate(made.nodes)
        if not node.closed and node.status()["suspect"]
    }


def check_healed(made: Group, number: int, mode: str, observed: Observed) -> None:
    """The node serves again, or stays suspect and refuses, while the others go on."""
    node, address = made.nodes[number], made.peers[number]
    difference = eventually(lambda: [each for each in observed if each.suspect], "the observers are told")[0]
    assert (difference.node, difference.member) == (address, address)
    other = made.nodes[(number + 1) % 3]
    write(other, "INSERT INTO t(a) VALUES ('after')")
    if mode == "resync":
        eventually(lambda: node.status()["suspect"] is None, "it is sound again")
        made.settle()
        write(node, "INSERT INTO t(a) VALUES ('mine')")
        made.settle()
        content = [read(each, "SELECT * FROM t ORDER BY id") for each in made.nodes]
        assert content[0] == content[1] == content[2]
        assert read(node, "PRAGMA integrity_check") == [("ok",)]
        assert [row[1] for row in content[0]][-2:] == ["after", "mine"]
        return
    check_refuses(made, number)


def check_refuses(made: Group, number: int) -> None:
    node = made.nodes[number]
    for use in (
        lambda: read(node, "SELECT 1"),
        lambda: write(node, "INSERT INTO t(a) VALUES (0)"),
        lambda: node.read_barrier(timeout=5),
        lambda: node.begin({}, reason="test", timeout=5),
    ):
        with pytest.raises(Unavailable, match="suspect") as raised:
            use()
        assert raised.value.reason == "suspect"
    made.leader()
    status = node.status()
    assert status["role"] == "follower" and status["suspect"]
    assert status["leader"] not in (None, status["node"])
    other = made.nodes[made.leader()]
    eventually(lambda: node.status()["last_index"] == other.status()["last_index"], "it goes on storing the log")


# What another program does to the file of a running node


def test_a_write_by_another_program_makes_the_node_suspect_without_another_write(
    trio: Group, observed: Observed, mode: str
) -> None:
    victim = trio.follower()
    foreign(trio.configs[victim].name, "UPDATE t SET a = 'foreign' WHERE id = 3")
    eventually(lambda: observed, "it is found although nothing is written")
    assert "something else wrote" in observed[0].reason
    check_healed(trio, victim, mode, observed)
    assert (3, "foreign", "x" * 100) not in read(trio.nodes[(victim + 1) % 3], "SELECT * FROM t")


def test_the_leader_whose_file_another_program_wrote_to_gives_way(trio: Group, observed: Observed, mode: str) -> None:
    victim = trio.leader()
    foreign(trio.configs[victim].name, "DELETE FROM t")
    check_healed(trio, victim, mode, observed)
    if mode == "stop":
        assert trio.leader() != victim


def remove(path: Path) -> None:
    path.unlink()


def move_back_and_forth(path: Path) -> None:
    """A copy by another name, put in its place: another inode with the same bytes."""
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def remove_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def vacuum(path: Path) -> None:
    foreign(path, "VACUUM")


def garbage(path: Path) -> None:
    """Another file moved there."""
    made = path.with_suffix(".other")
    made.write_bytes(os.urandom(100_000))
    made.replace(path)


@pytest.mark.parametrize("mode", ["resync"], indirect=True)
@pytest.mark.parametrize("harm", [remove, move_back_and_forth, remove_wal, vacuum, garbage])
def test_what_another_program_does_to_the_files_is_found_and_healed(
    trio: Group, observed: Observed, mode: str, harm: Callable[[Path], None]
) -> None:
    victim = trio.follower()
    harm(trio.configs[victim].name)
    check_healed(trio, victim, mode, observed)


@pytest.mark.parametrize("mode", ["resync"], indirect=True)
def test_an_older_copy_over_the_running_nodes_file_is_found_and_healed(
    trio: Group, observed: Observed, mode: str
) -> None:
    victim = trio.follower()
    path = trio.configs[victim].name
    backup = path.with_suffix(".backup")
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", code, str(path), str(backup)], check=True, timeout=30)
    for number in range(5):
        write(trio.nodes[trio.leader()], "INSERT INTO t(a) VALUES (?)", number)
    subprocess.run(["cp", str(backup), str(path)], check=True)
    check_healed(trio, victim, mode, observed)


# While it was stopped


@pytest.mark.parametrize("harm", ["write", "older", "garbage", "gone", "empty"])
def test_what_was_done_to_the_file_of_a_stopped_node_is_found_at_its_start(
    trio: Group, observed: Observed, mode: str, harm: str
) -> None:
    victim = trio.follower()
    path = trio.configs[victim].name
    backup = path.with_suffix(".backup")
    trio.nodes[victim].close()
    shutil.copy(path, backup)
    trio.restart(victim)
    write(trio.nodes[victim], "INSERT INTO t(a) VALUES ('newer')")
    trio.settle()
    trio.nodes[victim].close()
    match harm:
        case "write":
            foreign(path, "DELETE FROM t")
        case "older":
            shutil.copy(backup, path)
        case "garbage":
            path.write_bytes(os.urandom(50_000))
        case "gone":
            path.unlink()
        case "empty":
            foreign(path, "DROP TABLE t")
            foreign(path, "DROP TABLE _raftsqlite_state")
    trio.restart(victim)
    check_healed(trio, victim, mode, observed)


def test_a_suspect_node_is_suspect_after_its_restart_and_kill(tmp_path: Path, observed: Observed) -> None:
    """Whatever found it need not find it again."""
    with group(tmp_path, 3, on_divergence="stop", observers=(observed,), durable=False) as trio:
        fill(trio)
        victim = trio.follower()
        foreign(trio.configs[victim].name, "UPDATE t SET a = 'foreign' WHERE id = 3")
        eventually(lambda: observed, "it is found")
        for _ in range(2):
            trio.nodes[victim].close()
            write(trio.nodes[trio.leader()], "INSERT INTO t(a) VALUES ('meanwhile')")
            trio.restart(victim)
            eventually(lambda: trio.nodes[victim].status()["leader"], "it follows")
            check_refuses(trio, victim)


# Digests


def diverge(made: Group, number: int) -> None:
    """Change the node's content as a fault of its replay would: nothing but the digest can tell."""
    applier = made.host(number)._applier
    machine: Any = applier._machine
    with applier._lane.apply():
        machine._connection.execute("UPDATE t SET a = 'another' WHERE id = 5")


def test_a_member_whose_digest_differs_from_the_majority_is_suspect(
    trio: Group, observed: Observed, mode: str
) -> None:
    victim = trio.follower()
    diverge(trio, victim)
    assert suspects(trio) == {}
    write(trio.nodes[0], "UPDATE t SET a = 'touched' WHERE id = 5")
    eventually(lambda: observed, "it is found at the next write that touches it")
    assert "differs from that of" in observed[0].reason
    assert observed[0].index is not None
    check_healed(trio, victim, mode, observed)


def test_a_leader_whose_digest_differs_from_the_majority_is_suspect_and_gives_way(
    trio: Group, observed: Observed, mode: str
) -> None:
    victim = trio.leader()
    diverge(trio, victim)
    write(trio.nodes[(victim + 1) % 3], "DELETE FROM t WHERE id = 5")
    check_healed(trio, victim, mode, observed)
    if mode == "stop":
        assert trio.leader() != victim


def test_of_two_members_nobody_can_tell_and_both_say_so(tmp_path: Path, observed: Observed) -> None:
    with group(tmp_path, 2, observers=(observed,), durable=False) as duo:
        fill(duo)
        diverge(duo, duo.follower())
        write(duo.nodes[0], "UPDATE t SET a = 'touched' WHERE id = 5")
        eventually(lambda: len(observed) == 2, "both say so")
        assert {(each.node, each.member, each.suspect) for each in observed} == {
            (*duo.peers, False),
            (*reversed(duo.peers), False),
        }
        for node in duo.nodes:
            write(node, "INSERT INTO t(a) VALUES (1)")
            status = node.status()
            assert status["suspect"] is None
            assert list(status["differs"]) == [peer for peer in duo.peers if peer != status["node"]]


def test_what_is_in_flight_on_a_node_that_becomes_suspect_ends_at_once(trio: Group, mode: str) -> None:
    if mode == "resync":
        return
    victim = trio.follower()
    session = trio.nodes[victim].begin({}, reason="test", timeout=5)
    trio.host(victim)._distrust("a test says so")

    def ended() -> str:
        try:
            session.resume()
        except Exception as error:
            return str(error)
        return ""

    assert "a test says so" in eventually(ended, "the session has ended")
    session.rollback()
    write(trio.nodes[trio.leader()], "INSERT INTO t(a) VALUES ('the lease is free')", timeout=3)


# Verification


def verified(made: Group, number: int, deadline: float = 30.0) -> dict[str, Any]:
    """Have the content verified from that node; what each member that answered found, by its number."""
    verification = made.nodes[number].backend().verify(timeout=10)
    seen: dict[str, Any] = {}

    def complete() -> bool:
        return outcome_of(verification, made.nodes[number].status()["members"], seen).complete

    eventually(complete, "all members have verified", deadline)
    found = outcome_of(verification, made.nodes[number].status()["members"], seen)
    return {"status": found.status, **{each["address"]: each for each in found.told}}


def flip(path: Path, text: bytes) -> None:
    """Damage a byte of a row in the file, and leave no trace in its size and time."""
    status = path.stat()
    data = path.read_bytes()
    place = data.index(text)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("mode", ["resync"], indirect=True)
def test_verification_finds_all_members_equal_while_they_write(trio: Group, observed: Observed) -> None:
    stop = threading.Event()

    def writing() -> None:
        while not stop.is_set():
            write(trio.nodes[0], "INSERT INTO t(a) VALUES (randomblob(100))")

    thread = threading.Thread(target=writing)
    thread.start()
    try:
        for number in range(3):
            found = verified(trio, number)
            members = [found[peer] for peer in trio.peers]
            assert found["status"] == 0, found
            assert len({(each["index"], each["digest"]) for each in members}) == 1
            assert all(each["bytes"] > 2000 and each["problem"] is None for each in members)
    finally:
        stop.set()
        thread.join()
    assert not observed


def stopped_and_damaged(made: Group) -> int:
    """A byte is damaged in a node's table, of which nothing tells when it starts."""
    write(made.nodes[made.leader()], "INSERT INTO t(a) VALUES ('a row that will be damaged')")
    made.settle()
    victim = made.follower()
    machine: Any = made.host(victim)._applier._machine
    with made.host(victim)._applier._lane.apply():
        assert machine.empty_wal(lambda: True)
    made.nodes[victim].close()
    flip(made.configs[victim].name, b"a row that will be damaged")
    node = made.restart(victim)
    made.settle()
    eventually(
        lambda: all(each["reachable"] for other in made.nodes for each in other.status()["members"]),
        "they meet",
    )
    assert node.status()["suspect"] is None
    assert read(node, "SELECT count(*) FROM t WHERE a = 'a row that will be damaged'") == [(0,)]
    return victim


@pytest.mark.parametrize("from_it", [False, True])
def test_a_damaged_byte_in_the_table_of_a_stopped_node_is_found_by_verification(
    trio: Group, observed: Observed, mode: str, from_it: bool
) -> None:
    victim = stopped_and_damaged(trio)
    found = verified(trio, victim if from_it else (victim + 1) % 3)
    assert found["status"] == 1
    answers = {number: found[peer]["answer"] for number, peer in enumerate(trio.peers)}
    assert answers.pop(victim) == "DIFFERENT"
    assert set(answers.values()) == {"equal"}
    eventually(lambda: observed, "it is told")
    assert "row by row" in observed[0].reason
    check_healed(trio, victim, mode, observed)
    if mode == "resync":
        assert verified(trio, victim)["status"] == 0


@pytest.mark.parametrize(
    "sql",
    ["UPDATE t SET a = 'new' WHERE id = 21", "DELETE FROM t WHERE id = 21", "UPDATE t SET id = 99 WHERE id = 21"],
)
def test_a_damaged_byte_in_the_table_of_a_stopped_node_is_found_by_the_next_write_that_touches_it(
    trio: Group, observed: Observed, mode: str, sql: str
) -> None:
    """A digest runs over the old values of what is changed and deleted, too."""
    victim = stopped_and_damaged(trio)
    assert not observed
    write(trio.nodes[(victim + 1) % 3], sql)
    eventually(lambda: observed, "the digest tells")
    assert "differs from that of" in observed[0].reason
    if mode == "resync":
        check_healed(trio, victim, mode, observed)


@pytest.mark.parametrize("mode", ["resync"], indirect=True)
def test_a_member_that_is_away_does_not_answer(trio: Group) -> None:
    away = trio.follower()
    trio.nodes[away].close()
    leader = trio.leader()
    eventually(
        lambda: not all(each["reachable"] for each in trio.nodes[leader].status()["members"]), "it is seen to be away"
    )
    found = verified(trio, leader)
    assert found["status"] == 2
    assert found[trio.peers[away]]["answer"] == "no answer"


def test_a_suspect_node_that_was_restarted_takes_no_copy_that_is_older_than_what_was_read_there(
    tmp_path: Path, observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes have seen that, may have written it, and count on seeing it again."""
    with group(tmp_path, 3, observers=(observed,), durable=False) as trio:
        fill(trio)
        number = trio.follower()
        monkeypatch.setattr(SnapshotSource, "tick", lambda *_: None)  # nobody has a copy yet
        applied = trio.nodes[number].status()["applied_index"]
        foreign(trio.nodes[number].config.name, "UPDATE t SET b = 'foreign'")
        eventually(lambda: suspects(trio), "it is suspect")
        for _ in range(2):
            trio.nodes[number].close()
            trio.restart(number)
            host = trio.host(number)
            assert host.suspect is not None
            told: Latch[Any] = Latch()
            host._driver.call(lambda told=told, host=host: told.set(host._report.progress()["wants"]))
            wanted = told.wait(10)
            assert wanted is not None and wanted >= applied > host._driver.installable_from
        offer = {"type": "node.snapshot_offer", "id": bytes(32), "index": applied - 1, "term": 1, "members": b"0 x"}
        layout = {"size": 1, "page_size": 4096, "encoding": "UTF-8"}
        refused: Latch[Any] = Latch()
        leader = trio.peers[trio.leader()]

        def ask() -> None:
            host._upkeep._target.on_offer(leader, {**offer, **layout}, host._driver.view)
            refused.set(host._upkeep.receiving is None)

        host._driver.call(ask)
        assert refused.wait(10)
        monkeypatch.undo()
        eventually(lambda: not suspects(trio), "it is healed by a newer one")
        trio.settle()
