"""Nodes that join, are removed and come back without their disks, with real threads, sockets and files."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import OperationalError, Unavailable
from django_raftsqlite.node import roster
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.recovery import plan_recovery
from tests.support.nodes import Group, eventually, group, statement
from tests.support.ports import free_ports


def newcomer(trio: Group, **settings: Any) -> int:
    """Start a node that asks the last member to be admitted; its number."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    config = replace(
        trio.configs[0],
        name=trio.configs[0].name.with_name(f"n{len(trio.nodes)}.sqlite3"),
        address=address,
        peers=(),
        join=(trio.peers[-1],),
        **settings,
    )
    trio.peers += (address,)
    trio.configs.append(config)
    trio.nodes.append(ProcessNode(config))
    trio.nodes[-1].backend()
    return len(trio.nodes) - 1


def write(trio: Group, number: int, value: int) -> None:
    trio.nodes[number].submit(statement("INSERT INTO t VALUES (?)", value), {}, solo=False, timeout=10)


def roles(trio: Group, number: int = 0) -> dict[str, str]:
    return {member["address"]: member["role"] for member in trio.nodes[number].status()["members"]}


def count(trio: Group, number: int) -> int:
    trio.nodes[number].read_barrier(timeout=10)
    readers = trio.nodes[number].readers
    reader = readers.acquire()
    try:
        return int(reader.execute("SELECT count(*) FROM t").fetchall()[0][0])
    finally:
        readers.release(reader)


@pytest.fixture
def trio(tmp_path: Path) -> Any:
    with group(tmp_path, 3) as trio:
        trio.leader()
        trio.nodes[0].submit(statement("CREATE TABLE t (n)"), {}, solo=False, timeout=10)
        yield trio


def is_voter(trio: Group, number: int) -> bool:
    return roles(trio).get(trio.peers[number]) in {"leader", "follower"}


def test_a_node_joins_becomes_a_voter_and_is_removed(trio: Group) -> None:
    for value in range(20):
        write(trio, 0, value)
    joined = newcomer(trio)
    eventually(lambda: is_voter(trio, joined), "the newcomer votes")
    write(trio, joined, 20)
    assert count(trio, joined) == 21

    def noted() -> bool:
        known = roster.read(trio.configs[joined].folder)
        return known is not None and known.voters == set(trio.peers)

    eventually(noted, "the members are noted for who may not open the log")
    said = trio.nodes[0].backend().change_members("remove", trio.peers[joined], learner=False, timeout=10)
    assert said == f"{trio.peers[joined]} is not a member any more"
    gone = eventually(lambda: trio.nodes[joined].status()["reason"], "the removed node says why it stopped")
    assert "was removed from the group" in gone or "not a member any more" in gone
    with pytest.raises(Unavailable, match="stopped itself"):
        write(trio, joined, 21)
    trio.nodes[joined].close()
    again = trio.restart(joined)
    assert "member" in eventually(lambda: again.status()["reason"], "it remembers")


def test_a_newcomer_gets_a_copy_of_what_the_log_no_longer_has(tmp_path: Path) -> None:
    with group(tmp_path, 1, log_entries=10) as one:
        one.leader()
        one.nodes[0].submit(statement("CREATE TABLE t (n)"), {}, solo=False, timeout=10)
        for value in range(100):
            write(one, 0, value)
        eventually(lambda: one.nodes[0].status()["log"]["first_index"] > 50, "the log is cut")
        joined = newcomer(one)
        eventually(lambda: is_voter(one, joined), "the newcomer votes")
        assert count(one, joined) == 100
        assert one.settle()["digest"]


def test_a_group_that_took_a_database_over_gives_all_of_it_to_who_joins(tmp_path: Path) -> None:
    """The log alone does not have it."""
    plain = NodeConfig(name=tmp_path / "n0.sqlite3", address="localhost", peers=("localhost",))
    with sqlite3.connect(plain.name) as connection:
        connection.execute("CREATE TABLE t (n)")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(50)])
    connection.close()
    alone = ProcessNode(plain)
    alone.backend()
    alone.submit(statement("INSERT INTO t VALUES (50)"), {}, solo=False, timeout=10)
    alone.close()
    # Later it gets an address that others can reach.
    with group(tmp_path, 1) as one:
        write(one, 0, 51)
        joined = newcomer(one)
        eventually(lambda: is_voter(one, joined), "the newcomer votes")
        assert count(one, joined) == 52
        one.settle()


def test_a_learner_reads_forwards_writes_and_does_not_vote(trio: Group) -> None:
    joined = newcomer(trio, learner=True)
    eventually(lambda: roles(trio).get(trio.peers[joined]) == "learner", "it is a learner")
    write(trio, joined, 1)
    assert count(trio, joined) == 1
    assert trio.nodes[joined].status()["role"] == "learner"
    with pytest.raises(OperationalError, match="is not a voter, and cannot lead"):
        trio.nodes[0].backend().change_members("transfer", trio.peers[joined], learner=False, timeout=5)


def test_leadership_goes_where_it_is_sent_also_under_writes(trio: Group) -> None:
    for value in range(4):
        to = trio.follower()
        write(trio, to, value)
        said = trio.nodes[0].backend().change_members("transfer", trio.peers[to], learner=False, timeout=10)
        assert said == f"{trio.peers[to]} leads the group"
        assert trio.leader() == to
    before = trio.leader()
    trio.nodes[before].backend().change_members("transfer", "", learner=False, timeout=10)
    assert trio.leader() != before


@pytest.mark.parametrize("file_is_left", [False, True])
def test_a_member_whose_folder_is_lost_is_admitted_again_by_itself(trio: Group, file_is_left: bool) -> None:
    """Without its log the database file is of no use, whatever it holds."""
    for value in range(10):
        write(trio, 0, value)
    trio.settle()
    eventually(lambda: "unknown" not in roles(trio).values() and len(roles(trio)) == 3, "all are known")
    lost = trio.follower()
    trio.nodes[lost].close()
    shutil.rmtree(trio.configs[lost].folder)
    for path in trio.configs[lost].name.parent.glob(trio.configs[lost].name.name + "*"):
        if not file_is_left:
            path.unlink()
    trio.restart(lost)
    eventually(lambda: roles(trio, lost).get(trio.peers[lost]) in {"leader", "follower"}, "it votes again")
    eventually(lambda: trio.nodes[lost].status()["suspect"] is None, "its file is a sound member's")
    write(trio, lost, 10)
    assert count(trio, lost) == 11
    trio.settle()


def test_what_is_not_possible_is_refused_with_its_reason(trio: Group) -> None:
    with pytest.raises(OperationalError, match=r"127\.0\.0\.1:1 is not a member; the members are"):
        trio.nodes[0].backend().change_members("remove", "127.0.0.1:1", learner=False, timeout=5)
    with pytest.raises(OperationalError, match="is a voter already"):
        trio.nodes[0].backend().change_members("add", trio.peers[1], learner=True, timeout=5)
    said = trio.nodes[trio.follower()].backend().change_members("add", "127.0.0.1:1", learner=True, timeout=5)
    assert said == "127.0.0.1:1 is a learner"
    assert trio.nodes[0].backend().change_members("add", "127.0.0.1:1", learner=True, timeout=5) == said


def stop(trio: Group, number: int) -> None:
    trio.nodes[number].close()


def test_one_node_that_is_left_begins_a_new_group_with_what_it_has(trio: Group) -> None:
    """Those of the old group are strangers to it; with empty folders they join, and everybody has the same."""
    for value in range(10):
        write(trio, 0, value)
    trio.settle()
    lineage = trio.nodes[0].status()["lineage"]
    config = trio.configs[0]
    with pytest.raises(OperationalError, match="stop it first"):
        plan_recovery(config, trio.peers)
    for number in range(3):
        stop(trio, number)
    with pytest.raises(OperationalError, match="not among the members"):
        plan_recovery(config, trio.peers[1:])
    plan = plan_recovery(config, trio.peers[:2])
    assert "LOST" in plan.text and trio.peers[2] in plan.text
    plan.carry_out()
    trio.restart(0)
    write(trio, 0, 10)
    status = trio.nodes[0].status()
    assert status["role"] == "leader" and status["lineage"] != lineage
    assert roles(trio) == {trio.peers[0]: "leader", trio.peers[1]: "newcomer"}
    # One comes back as it was, by itself: nothing passes between the two groups.
    trio.restart(2)
    old = trio.nodes[2]
    with pytest.raises(Unavailable, match="no quorum"):
        old.submit(statement("INSERT INTO t VALUES (99)"), {}, solo=False, timeout=2)
    stop(trio, 2)
    for number in (1, 2):
        shutil.rmtree(trio.configs[number].folder)
        for path in trio.configs[number].name.parent.glob(trio.configs[number].name.name + "*"):
            path.unlink()
        trio.configs[number] = replace(trio.configs[number], peers=(), join=(trio.peers[0],))
        trio.restart(number)
        eventually(lambda number=number: is_voter(trio, number), "it votes in the new group")
    write(trio, 2, 11)
    assert [count(trio, number) for number in range(3)] == [12, 12, 12]
    trio.settle()
