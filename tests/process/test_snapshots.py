"""A node that was away for long goes on from a copy of the leader's database, whatever dies or breaks meanwhile."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from django_raftsqlite.node.snapshot_source import KEPT

from .chaos import Chaos
from .cluster import Cluster, ClusterNode, check_files, wait_until
from .conftest import NewCluster
from .proxy import Network

MIB = 1024 * 1024
BALLAST = 12 * MIB
"""Size of the database, in bytes."""
RATE = 6 * MIB
WINDOW = 2 * MIB
"""What may be under way when a link breaks."""


def start(new_cluster: NewCluster, network: Network, **options: Any) -> Cluster:
    """A cluster that keeps a short log, with a large table."""
    cluster = new_cluster(log_entries=100, snapshot_rate=RATE, election_timeout=3, **options)
    network.install(cluster)
    cluster.start()
    cluster[0].call("sql", query="CREATE TABLE ballast (id INTEGER PRIMARY KEY, data BLOB)")
    for _ in range(BALLAST // MIB):
        cluster[0].call("sql", query="INSERT INTO ballast (data) VALUES (randomblob(1048576))")
    cluster.converge()
    return cluster


DROPPED_WITHIN = 1.5 * KEPT
"""Seconds. A copy that nobody asks for any more is kept for a while, and what follows it in the log."""


def send_away(cluster: Cluster, network: Network, node: ClusterNode) -> None:
    """Cut a node off until the others no longer hold what it lacks."""
    for other in cluster:
        if other is not node:
            network.hold(other.address, node.address)
            network.hold(node.address, other.address)
            network.cut(other.address, node.address)
    applied = status(node)["applied_index"]
    others = [other for other in cluster if other is not node]

    def dropped() -> bool:
        return all(status(other)["log"]["first_index"] > applied + 1 for other in others)

    writer = others[0]
    deadline = time.monotonic() + DROPPED_WITHIN
    while not dropped():
        assert time.monotonic() < deadline, [status(other)["log"] for other in others]
        for _ in range(20):
            writer.call("sql", query="UPDATE ballast SET id = id WHERE id = 1")


def bring_back(cluster: Cluster, network: Network, node: ClusterNode) -> None:
    """Mend its links; what was kept back on them is lost."""
    for other in cluster:
        if other is not node:
            network.cut(other.address, node.address)
            network.release(other.address, node.address)
            network.release(node.address, other.address)


def status(node: ClusterNode) -> dict[str, Any]:
    return wait_until(f"{node} answers", node.status)


def receiving(node: ClusterNode) -> dict[str, Any]:
    """What the node says of the snapshot that is on its way to it."""
    told = node.status()
    return (told["snapshots"]["receiving"] if told else None) or {"bytes": 0, "phase": "none"}


def caught_up(cluster: Cluster, node: ClusterNode) -> bool:
    told, leader = node.status(), cluster.leader()
    there = leader.status() if leader else None
    return bool(told and there and told["applied_index"] >= there["log"]["first_index"])


@pytest.mark.timeout(600)
def test_a_node_that_was_away_catches_up_while_others_write_and_its_readers_notice_nothing(
    new_cluster: NewCluster, network: Network, rng: random.Random
) -> None:
    """No election, no error, never an older state; in the hosting process and in an attached one, whose transactions
    keep the state they began with."""
    cluster = start(new_cluster, network)
    victim = rng.choice(cluster.followers())
    kinds = {"insert": tuple(0 if node is victim else 1 for node in cluster)}
    kinds["watch"] = tuple(2 if node is victim else 0 for node in cluster)
    chaos = Chaos(cluster, rng, kinds, guests=True)
    chaos.start()
    send_away(cluster, network, victim)
    leader = cluster.wait_leader()
    term = status(leader)["term"]
    bring_back(cluster, network, victim)
    wait_until("the copy is on its way", lambda: receiving(victim)["bytes"] or caught_up(cluster, victim), 30)
    wait_until("it has caught up", lambda: caught_up(cluster, victim), 60)
    told = status(victim)["snapshots"]
    time.sleep(1.0)  # of undisturbed load on top
    chaos.stop()
    state = cluster.converge()
    record = chaos.record()
    print(f"{told}; {len(record.yes['insert'])} inserts, {record.checked} checks, at the end {state}")
    assert not record.wrong, record.wrong[:10]
    assert told["received_bytes"] >= BALLAST
    assert (status(leader)["term"], cluster.leader()) == (term, leader)
    assert record.checked > 100
    record.check_rows("insert", victim.call("texts"))
    check_files(cluster.nodes)


@pytest.mark.timeout(600)
def test_a_write_whose_entry_was_jumped_over_ends_as_done_and_is_there_once(
    new_cluster: NewCluster, network: Network, rng: random.Random
) -> None:
    """Its node never applies the entry, but the copy has kept the outcome: of a statement, and of a COMMIT."""
    cluster = start(new_cluster, network, timeout=90)
    victim = rng.choice(cluster.followers())
    leader = cluster.wait_leader()
    assert victim.worker is not None
    victim.worker.call("begin", "one")
    victim.worker.call("create", "one", text="a transaction")
    for node in cluster:
        if node is not victim:
            network.hold(node.address, victim.address)  # it is heard, and hears nothing
    together = victim.worker.send("commit", "one")
    wait_until("it is committed", lambda: leader.call("count", text="a transaction"), 20)
    alone = victim.worker.send("create", "two", text="a statement")  # on its way now, or later
    assert not together.done() and not alone.done()
    send_away(cluster, network, victim)
    bring_back(cluster, network, victim)
    wait_until("it hears its leader", lambda: status(victim)["leader_reachable"] and status(victim)["leader"], 20)
    late = victim.worker.send("create", "three", text="before the copy was made")
    for future in (together, alone, late):
        future.result(45)
    cluster.converge()
    assert status(victim)["snapshots"]["received_bytes"] >= BALLAST
    for text in ("a statement", "a transaction", "before the copy was made"):
        assert [node.call("count", text=text) for node in cluster] == [1, 1, 1]
    check_files(cluster.nodes)


@pytest.mark.timeout(600)
def test_a_link_that_breaks_does_not_begin_the_copy_anew(
    new_cluster: NewCluster, network: Network, rng: random.Random
) -> None:
    """What has arrived is not sent again."""
    cluster = start(new_cluster, network)
    victim = rng.choice(cluster.followers())
    send_away(cluster, network, victim)
    leader = cluster.wait_leader()
    bring_back(cluster, network, victim)
    breaks = 0
    for part in range(1, 5):

        def arrived(part: int = part) -> bool:
            return receiving(victim)["bytes"] >= part * BALLAST // 6 or caught_up(cluster, victim)

        wait_until("more of it arrives", arrived, 30)
        if caught_up(cluster, victim):
            break  # the rest came between two looks
        network.cut(leader.address, victim.address)
        breaks += 1
    assert breaks
    wait_until("it has caught up", lambda: caught_up(cluster, victim), 60)
    cluster.converge()
    sent = status(leader)["snapshots"]["sent_bytes"]
    got = status(victim)["snapshots"]["received_bytes"]
    print(f"{breaks} breaks, {sent} bytes sent, {got} received, of {victim.name.stat().st_size}")
    assert BALLAST <= got <= victim.name.stat().st_size + MIB
    assert sent <= got + breaks * WINDOW
    check_files(cluster.nodes)


@pytest.mark.timeout(1200)
def test_kill_9_of_either_end_at_any_moment_leaves_the_old_state_or_the_new(
    new_cluster: NewCluster, network: Network, rng: random.Random, soak_seconds: float
) -> None:
    """While the copy is made, sent, checked and installed: nothing is lost or doubled, and the node gets there."""
    cluster = start(new_cluster, network)
    chaos = Chaos(cluster, rng, {"insert": (1, 1, 1)})
    chaos.start()
    moments: list[str] = []
    end = time.monotonic() + soak_seconds
    while time.monotonic() < end or len(moments) < 2:
        victim = rng.choice(cluster.followers())
        send_away(cluster, network, victim)
        bring_back(cluster, network, victim)
        phase = rng.choice(["opening", "receiving", "checking", "installing"])
        wanted = rng.uniform(0.0, 1.0) * BALLAST

        def reached(victim: ClusterNode = victim, phase: str = phase, wanted: float = wanted) -> bool:
            now = receiving(victim)
            return caught_up(cluster, victim) or (now["phase"] == phase and now["bytes"] >= min(wanted, now["bytes"]))

        wait_until(f"{victim} is {phase}", reached, 60)
        source = cluster.leader()
        killed = source if source is not None and rng.random() < 0.4 else victim
        moments.append(f"{'target' if killed is victim else 'source'} {receiving(victim)['phase']}")
        killed.kill()
        killed.start()
        chaos.load(killed)
        wait_until("it has caught up", lambda victim=victim: caught_up(cluster, victim), 60)
        for node in cluster:
            told = status(node)
            assert told["role"] != "failed", told["reason"]
    chaos.stop()
    state = cluster.converge()
    record = chaos.record()
    print(f"killed: {moments}; {dict(record.reasons)}; at the end {state}")
    assert not record.wrong, record.wrong[:10]
    for node in cluster:
        record.check_rows("insert", node.call("texts"))
    check_files(cluster.nodes)
    for node in cluster:
        assert not list((node.folder / "db.sqlite3.raft").glob("snapshot-*.part")), "copies that were taken over go"
