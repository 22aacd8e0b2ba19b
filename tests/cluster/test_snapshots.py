"""Real nodes: the log stays short, and who lacks what it no longer holds gets a copy of the database."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import apsw
import pytest

from django_raftsqlite.exceptions import OperationalError, Unavailable
from django_raftsqlite.node import applier
from django_raftsqlite.node.snapshot_source import SnapshotSource
from django_raftsqlite.sqlite import machine
from django_raftsqlite.sqlite.copying import NoSpace
from tests.support.nodes import Group, eventually, group, read, write

SMALL: dict[str, Any] = {"log_entries": 50, "durable": False}


def test_the_log_of_a_node_stays_short_and_the_node_starts_from_what_is_left(tmp_path: Path) -> None:
    """status tells its size; what was written is there after the restart, and goes on."""
    with group(tmp_path, 1, log_entries=50, durable=True) as nodes:
        write(nodes.nodes[0], "CREATE TABLE t(a)")
        for number in range(200):
            write(nodes.nodes[0], "INSERT INTO t VALUES (?)", number)
        log = eventually(
            lambda: found if (found := nodes.nodes[0].status()["log"])["entries"] <= 70 else None, "it is cut"
        )
        assert log["first_index"] > 130
        assert log["bytes"] > 0
        nodes.nodes[0].close()
        node = nodes.restart(0)
        write(node, "INSERT INTO t VALUES (200)")
        status = node.status()
        assert (status["version"], status["reason"]) == (202, None)
        assert status["log"]["first_index"] >= log["first_index"]


def test_a_snapshot_by_wish_cuts_the_log_of_one_node_and_costs_no_member_in_reach_a_copy(tmp_path: Path) -> None:
    with group(tmp_path, 3, durable=False) as nodes:
        write(nodes.nodes[0], "CREATE TABLE t(a)")
        for number in range(30):
            write(nodes.nodes[0], "INSERT INTO t VALUES (?)", number)
        nodes.settle()
        leader = nodes.nodes[nodes.leader()]
        before = leader.status()["log"]
        assert before["first_index"] == 1
        said = leader.backend().snapshot(timeout=30)
        assert re.fullmatch(
            rf"{leader.config.address}: the database is on the disk up to log index \d+, and stands for .*", said
        )

        def cut() -> bool:  # what the others were last heard to have is kept, which may be less than they have
            leader.backend().snapshot(timeout=30)
            return bool(leader.status()["log"]["first_index"] > 20)

        eventually(cut, "it is cut")
        assert leader.status()["log"]["entries"] < before["entries"]
        for number in range(3):
            write(nodes.nodes[number], "INSERT INTO t VALUES (?)", 100 + number)
        nodes.settle()
        assert [read(node, "SELECT count(*) FROM t") for node in nodes.nodes] == [[(33,)]] * 3
        others = [node for node in nodes.nodes if node is not leader]
        assert [node.status()["log"]["first_index"] for node in others] == [1, 1]
        assert [node.status()["snapshots"]["received_bytes"] for node in nodes.nodes] == [0, 0, 0]


def test_a_node_that_failed_or_is_suspect_takes_no_snapshot(tmp_path: Path) -> None:
    with group(tmp_path, 3, durable=False, on_divergence="stop") as nodes:
        write(nodes.nodes[0], "CREATE TABLE t(a)")
        host = nodes.host(nodes.follower())
        host._distrust("it differs")
        with pytest.raises(Unavailable, match="it differs"):
            host.snapshot(timeout=30)
        host._fail("no disk")
        with pytest.raises(Unavailable, match=r"no snapshot was taken: .*no disk"):
            host.snapshot(timeout=30)


def test_before_the_log_is_cut_the_wal_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passive checkpoint need not sync anything, and what is in neither the log nor the WAL is lost for ever."""
    synced: list[int] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "n0.sqlite3-wal":
            synced.append(machine_of.applied_index)
        fsync(descriptor)

    with group(tmp_path, 1, log_entries=50) as nodes:
        machine_of: machine.StateMachine = nodes.host(0)._applier._machine
        monkeypatch.setattr(os, "fsync", watch)
        write(nodes.nodes[0], "CREATE TABLE t(a)")
        for number in range(100):
            write(nodes.nodes[0], "INSERT INTO t VALUES (?)", number)
        first = eventually(
            lambda: found if (found := nodes.nodes[0].status()["log"]["first_index"]) > 1 else None, "it is cut"
        )
        assert synced and first <= max(synced)


def test_a_node_that_was_away_for_long_goes_on_from_a_copy(tmp_path: Path) -> None:
    """All that was written meanwhile is there, and what is written during and after it; outcomes are kept, too."""
    with group(tmp_path, 3, **SMALL) as nodes:
        write(nodes.nodes[0], "CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
        away = nodes.follower()
        nodes.settle()
        nodes.nodes[away].close()
        leader = nodes.nodes[nodes.leader()]
        for _ in range(150):
            write(leader, "INSERT INTO t(a) VALUES (zeroblob(10000))")
        there = nodes.open_nodes()  # either of them may lead when it is back
        eventually(lambda: all(each.status()["log"]["first_index"] > 60 for each in there), "their logs are cut")
        node = nodes.restart(away)
        for number in range(20):
            write(leader, "INSERT INTO t(a) VALUES (?)", number)
        nodes.settle()
        status = node.status()
        assert status["snapshots"]["received_bytes"] > 1_500_000
        assert status["log"]["first_index"] > 100
        write(node, "INSERT INTO t(a) VALUES ('mine')")
        assert read(node, "SELECT count(*) FROM t") == [(171,)]
        assert read(node, "PRAGMA integrity_check") == [("ok",)]
        nodes.settle()


def away_and_behind(nodes: Group, size: int = 10_000, away: int | None = None) -> int:
    """Close a node until the others no longer hold what it lacks; its number. A follower, unless one is named."""
    write(nodes.nodes[0], "CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
    away = nodes.follower() if away is None else away
    nodes.quiet()
    nodes.nodes[away].close()
    leader = nodes.nodes[nodes.leader()]
    for _ in range(150):
        write(leader, "INSERT INTO t(a) VALUES (zeroblob(?))", size)
    there = nodes.open_nodes()  # whichever of them leads when it is back
    eventually(lambda: all(node.status()["log"]["first_index"] > 60 for node in there), "their logs are cut")
    return away


def test_a_leader_that_needs_who_lacks_what_was_cut_gives_it_a_copy_first(tmp_path: Path) -> None:
    """Of three, one is dead and one was away: until the latter has the copy, no entry of the new leader's term can be
    committed, so the copy must not wait for that."""
    with group(tmp_path, 3, **SMALL) as nodes:
        away = away_and_behind(nodes)
        dead, other = (number for number in range(3) if number != away)
        nodes.settle()
        nodes.nodes[dead].close()
        nodes.nodes[other].close()
        nodes.restart(other)
        node = nodes.restart(away)
        write(nodes.nodes[other], "INSERT INTO t(a) VALUES ('again')", timeout=20.0)
        nodes.settle()
        assert node.status()["snapshots"]["received_bytes"] > 1_000_000
        assert read(node, "SELECT count(*) FROM t") == [(151,)]


def test_who_writes_while_a_majority_waits_for_a_copy_is_told_which_member_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the leader's node and on another one; and it is over when the member has the copy."""
    with group(tmp_path, 3, **SMALL) as nodes:
        away = away_and_behind(nodes)
        dead, other = (number for number in range(3) if number != away)
        nodes.settle()
        nodes.nodes[dead].close()
        monkeypatch.setattr(SnapshotSource, "on_want", lambda *_: None)
        node = nodes.restart(away)
        eventually(lambda: nodes.nodes[other].status()["snapshots"]["behind"] == [nodes.peers[away]], "it is behind")
        for number in (other, away):
            with pytest.raises(OperationalError) as refused:
                write(nodes.nodes[number], "INSERT INTO t(a) VALUES ('in vain')", timeout=1.0)
            assert f"before {nodes.peers[away]} has a copy of the database" in str(refused.value), number
        monkeypatch.undo()
        write(nodes.nodes[other], "INSERT INTO t(a) VALUES ('again')", timeout=20.0)
        nodes.settle()
        assert read(node, "SELECT count(*) FROM t WHERE a = 'again'") == [(1,)]


def test_the_wal_that_a_copy_filled_is_emptied(tmp_path: Path) -> None:
    """All of the database goes through it, and it must not stay that large."""
    with group(tmp_path, 3, **SMALL, wal_limit=2**20) as nodes:
        node = nodes.restart(away_and_behind(nodes, size=50_000))
        nodes.settle()
        assert node.status()["snapshots"]["received_bytes"] > 7_000_000
        eventually(lambda: node.status()["wal_bytes"] <= 2**20, "the WAL is small again")


def test_a_node_that_cannot_take_a_copy_over_says_why_and_goes_on_serving_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told and tried again, without an end of the process or of the node."""
    with group(tmp_path, 3, **SMALL) as nodes:
        away = away_and_behind(nodes)

        def refuse(*_: object) -> None:
            raise NoSpace("7 MiB are needed")

        monkeypatch.setattr(machine, "need_space", refuse)
        node = nodes.restart(away)
        eventually(lambda: "7 MiB" in (node.status()["snapshots"]["problem"] or ""), "it says why")
        assert read(node, "SELECT count(*) FROM t") == [(0,)]
        assert node.status()["role"] == "follower"
        monkeypatch.undo()
        nodes.settle()
        assert read(node, "SELECT count(*) FROM t") == [(150,)]
        assert node.status()["snapshots"]["received_bytes"] < 2_500_000, "what was received was still there"


def test_a_copy_that_is_not_what_was_announced_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place in the log is in the copy itself, and where the two differ nobody knows which log goes on from it."""
    offer = SnapshotSource._offer
    with group(tmp_path, 3, **SMALL) as nodes:
        away = away_and_behind(nodes)
        monkeypatch.setattr(SnapshotSource, "_offer", lambda self, copy: {**offer(self, copy), "index": 10_000})
        node = nodes.restart(away)
        eventually(lambda: "not of 10000" in (node.status()["snapshots"]["problem"] or ""), "it says why")
        assert node.status()["version"] == 1
        monkeypatch.undo()
        nodes.settle()
        assert read(node, "SELECT count(*) FROM t") == [(150,)]


def test_a_node_goes_on_without_its_upkeep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong there costs neither heartbeats nor writes, and is told once."""

    def fail(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    def told() -> list[str | None]:
        # The node of the Django tests, which lives as long as this process, says the same in a thread of its own.
        said = [record for record in list(caplog.records) if "not kept short any more" in record.getMessage()]
        return [record.threadName for record in said if str(tmp_path) in str(record.threadName)]

    with group(tmp_path, 3, **SMALL) as nodes:
        monkeypatch.setattr(SnapshotSource, "tick", fail)
        eventually(lambda: len(told()) >= 3, "each of them tells it")
        term = nodes.nodes[nodes.leader()].status()["term"]
        write(nodes.nodes[0], "CREATE TABLE t(a)")
        for number in range(50):
            write(nodes.nodes[number % 3], "INSERT INTO t VALUES (?)", number)
        nodes.settle()
        assert nodes.nodes[0].status()["term"] == term
        assert len(told()) == len(set(told())) == 3


def test_a_node_that_cannot_know_what_is_on_its_disk_is_failed_and_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It serves what it has, refuses writes, and keeps its lock."""
    with group(tmp_path, 3, **SMALL) as nodes:
        away = away_and_behind(nodes)

        def install(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(machine.StateMachine, "install", install)
        node = nodes.restart(away)
        eventually(lambda: node.status()["role"] == "failed", "it is failed")
        assert "Input/output error" in node.status()["reason"]
        assert read(node, "SELECT count(*) FROM t") == [(0,)]
        with pytest.raises(Unavailable, match="Input/output error"):
            write(node, "INSERT INTO t(a) VALUES (1)")
        monkeypatch.undo()
        node.close()
        nodes.restart(away)
        nodes.settle()


def test_a_node_whose_file_has_pages_of_another_size_gets_the_groups(tmp_path: Path) -> None:
    """SQLite takes no pages of another size into a file in use: so it is replaced as a whole, and serves nothing
    until then."""
    with contextlib.closing(apsw.Connection(str(tmp_path / "n2.sqlite3"))) as connection:
        connection.pragma("page_size", 8192)
        connection.execute("CREATE TABLE gone(x)").fetchall()
        connection.execute("DROP TABLE gone").fetchall()
    with group(tmp_path, 3, **SMALL) as nodes:
        assert read(nodes.nodes[2], "PRAGMA page_size") == [(8192,)]
        away_and_behind(nodes, away=2)
        node = nodes.restart(2)
        eventually(lambda: node.status()["snapshots"]["received_bytes"], "a copy is on its way")
        eventually(lambda: node.status()["suspect"] is None, "it serves again")
        nodes.settle()
        assert read(node, "SELECT count(*) FROM t") == [(150,)]
        assert read(node, "PRAGMA page_size") == [(4096,)]


def test_what_another_program_wrote_to_the_leaders_file_never_gets_into_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it did so a moment before, and nobody has noticed: the copy would carry it to a sound member."""
    with group(tmp_path, 3, **SMALL) as nodes:
        away = away_and_behind(nodes)
        leader = nodes.leader()
        monkeypatch.setattr(applier, "CHECK_EVERY", 3600.0)
        # It waits for the next entry, or to be asked, from now on.
        write(nodes.nodes[leader], "INSERT INTO t(a) VALUES (1)")
        nodes.settle()
        connection = apsw.Connection(str(nodes.nodes[leader].config.name))
        connection.execute("UPDATE t SET a = 'foreign' WHERE id = 1")
        assert nodes.nodes[leader].status()["suspect"] is None
        node = nodes.restart(away)

        def spread() -> bool:
            return read(node, "SELECT count(*) FROM t WHERE a = 'foreign'") == [(1,)]

        eventually(lambda: nodes.nodes[leader].status()["suspect"] or spread(), "who was asked for a copy looks")
        assert not spread(), "what the other program wrote is on another member"
        connection.close()
        nodes.settle()
        assert [read(each, "SELECT count(*) FROM t WHERE a = 'foreign'") for each in nodes.nodes] == [[(0,)]] * 3
        assert node.status()["snapshots"]["received_bytes"] > 1_000_000
