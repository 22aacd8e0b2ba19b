"""What nodes of a real group count, and what they tell of each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.node.events import LeaderChanged, MemberChanged, NodeReady
from django_raftsqlite.node.process import ProcessNode
from tests.support.nodes import Group, eventually, group, read, write


class Observed(list[object]):
    def __call__(self, event: object) -> None:
        self.append(event)


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
def trio(tmp_path: Path, observed: Observed) -> Iterator[Group]:
    with group(tmp_path, 3, durable=False, lease_timeout=None, observers=(observed,)) as made:
        write(made.nodes[made.leader()], "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)")
        made.settle()
        yield made


def test_a_node_counts_what_its_processes_do_and_what_it_applies(trio: Group) -> None:
    leader = trio.nodes[trio.leader()]
    before = leader.figures()
    for number in range(5):
        write(leader, "INSERT INTO t VALUES (?, 'x')", number)
    leader.read_barrier(timeout=10.0)
    after = leader.figures()
    assert after["writes"]["done"] - before["writes"]["done"] == 5
    for name in ("commit", "batch"):
        assert _count(after, name) - _count(before, name) == 5, name
    for name in ("apply", "batch_bytes", "fsync"):  # the group has entries of its own, too
        assert _count(after, name) - _count(before, name) >= 5, name
    assert _count(after, "read_barrier") > _count(before, "read_barrier")
    assert after["counters"]["elections"] >= 1


def test_a_write_that_fails_is_counted_as_what_it_was(trio: Group) -> None:
    node = trio.nodes[trio.follower()]
    write(node, "INSERT INTO t VALUES (1, 'x')")
    before = node.figures()["writes"]
    with pytest.raises(Exception, match="UNIQUE"):
        write(node, "INSERT INTO t VALUES (1, 'x')")
    after = node.figures()["writes"]
    assert (after["error"] - before["error"], after["done"] - before["done"]) == (1, 0)


def test_waiting_for_the_lease_is_measured_and_who_waits_is_told(trio: Group) -> None:
    node = trio.nodes[trio.leader()]
    first = node.begin({}, reason="UPDATE first", timeout=10.0)
    from threading import Thread

    second: list[Any] = []
    thread = Thread(target=lambda: second.append(node.begin({}, reason="UPDATE second", timeout=20.0)))
    thread.start()
    try:
        queue = eventually(lambda: node.status()["queue"], "who waits is told")
        assert len(queue) == 1
        assert "UPDATE second" in queue[0]
        assert "UPDATE first" in node.status()["lease"]
        waited = _count(node.figures(), "lease_wait")
    finally:
        first.rollback()
        thread.join(30)
    second[0].rollback()
    assert _count(node.figures(), "lease_wait") == waited + 1


def test_an_attached_process_shows_the_figures_of_the_host_and_adds_its_own(trio: Group) -> None:
    number = trio.leader()
    host = trio.nodes[number]
    guest = ProcessNode(replace(trio.configs[number], host=False))
    try:
        write(guest, "INSERT INTO t VALUES (1, 'x')")
        assert read(guest, "SELECT a FROM t") == [("x",)]
        guest.note("rebases")
        guest.note("conflicts")
        told = guest.figures()
        assert told["counters"]["rebases"] == told["counters"]["conflicts"] == 1
        assert told["writes"] == host.figures()["writes"]
        guest.note("rebases")
    finally:
        guest.close()
    assert host.figures()["counters"]["rebases"] == 2, "what was noted last is told at the end"


def test_members_tell_each_other_how_far_they_are_and_how_much_room_they_have(trio: Group) -> None:
    node = trio.nodes[0]

    def known() -> list[dict[str, Any]]:
        members = node.status()["members"]
        others = [member for member in members if member["address"] != node.config.address]
        wanted = ("round_trip", "clock_offset", "sqlite")
        return others if all(member[key] is not None for member in others for key in wanted) else []

    for member in eventually(known, "the others are measured"):
        assert 0.0 <= member["round_trip"] < 5.0
        assert abs(member["clock_offset"]) < 5.0, "they share a clock"
        assert member["space"]["database"] > 0
        assert member["space"]["free"] > 0
        assert member["log_bytes"] > 0


def test_each_node_tells_of_its_leader_and_that_it_is_ready(trio: Group, observed: Observed) -> None:
    def told(kind: type) -> set[str]:
        return {event.node for event in observed if isinstance(event, kind)}  # type: ignore[attr-defined]

    eventually(lambda: told(LeaderChanged) == told(NodeReady) == set(trio.peers), "all of them tell")
    assert all(node.status()["ready"] for node in trio.nodes)
    former = trio.peers[trio.leader()]
    before = len(observed)
    trio.nodes[trio.leader()].close()
    eventually(
        lambda: [e for e in observed[before:] if isinstance(e, LeaderChanged) and e.previous == former],
        "another leader is told of",
    )


def test_each_node_tells_of_a_change_of_the_members(trio: Group, observed: Observed) -> None:
    trio.quiet()

    def told(change: str) -> set[str]:
        found = [event for event in observed if isinstance(event, MemberChanged)]
        return {event.node for event in found if (event.member, event.change) == ("localhost:1", change)}

    for verb, change in (("add", "added"), ("remove", "removed")):
        trio.nodes[trio.follower()].backend().change_members(verb, "localhost:1", learner=True, timeout=20)
        eventually(lambda change=change: told(change) == set(trio.peers), f"all of them tell that it was {change}")


def _count(figures: dict[str, Any], name: str) -> int:
    return sum(figures["histograms"][name]["counts"])
