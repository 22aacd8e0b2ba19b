"""A node that stands still, or that some do not hear, is not a dead one: nothing is lost or doubled by it either."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .chaos import Chaos
from .cluster import Cluster, ClusterNode, check_files, wait_until
from .conftest import NewCluster
from .namespaces import Namespaces
from .proxy import Network
from .test_leader_loss import write_until_accepted
from .test_transfers import ACCOUNTS, expected_balances


@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_doubled_while_nodes_stand_still_or_do_not_hear_each_other(
    new_cluster: NewCluster, partitions: Network | Namespaces, rng: random.Random, soak_seconds: float
) -> None:
    """Deposed leaders acknowledge nothing, requests are sent again and applied once, totals never change."""
    cluster = new_cluster(hosts=partitions.hosts)
    partitions.install(cluster)
    cluster.start()
    cluster[0].call("open_accounts", number=ACCOUNTS)
    cluster.converge()
    chaos = Chaos(cluster, rng, {"transfer": (1, 1, 1), "insert": (1, 1, 1), "bump": (1, 1, 1), "audit": (1, 1, 1)})
    chaos.start()
    chaos.disturb_at_random(partitions, soak_seconds)
    chaos.stop()
    cluster.converge()

    record = chaos.record()
    print(f"{dict(chaos.disturbed)}; {record.checked} checks; {dict(record.reasons)}")
    print("outcome unknown:", record.unknown)
    assert not record.wrong, record.wrong[:10]
    for node in cluster:
        texts = node.call("texts")
        transfers = [text for text in texts if text.startswith("transfer ")]
        record.check_rows("transfer", transfers)
        record.check_rows("insert", [text for text in texts if not text.startswith("transfer ")])
        balances = node.call("balances")
        record.check_counter("bump a", balances["counter a"])
        record.check_counter("bump b", balances["counter b"])
        expected = expected_balances(node.call("accounts"), transfers)
        assert {name: balances[name] for name in expected} == expected
    check_files(cluster.nodes)


Link = tuple[ClusterNode, ClusterNode]


def links(fault: str, leader: ClusterNode, others: list[ClusterNode]) -> list[Link]:
    """The directions that the fault cuts."""
    out = [(leader, other) for other in others]
    back = [(other, leader) for other in others]
    follower, third = others
    return {
        "the leader alone": out + back,
        "a follower alone": [(follower, leader), (leader, follower), (follower, third), (third, follower)],
        "nobody hears the leader": out,
        "the leader hears nobody": back,
        "the leader and a follower": [(leader, follower), (follower, leader)],
        "the leader stands still": [],
        "everybody alone": out + back + [(follower, third), (third, follower)],
    }[fault]


FAULTS = {
    "the leader alone": (1, 2),
    "a follower alone": (0, 2),
    "nobody hears the leader": (1, 2),
    "the leader hears nobody": (1, 2),
    "the leader and a follower": (2,),
    "the leader stands still": (1, 2),
    "everybody alone": (0, 1, 2),
}
"""And who must write on: the leader (0), a follower (1), the other one (2). After the last fault, when it is over."""


@pytest.mark.timeout(300)
def test_writes_are_back_soon_after_a_majority_is_connected(
    new_cluster: NewCluster, partitions: Network | Namespaces
) -> None:
    """Whoever is cut off from whom, and in whichever direction; each write is there once in the end."""
    cluster = new_cluster(hosts=partitions.hosts)
    partitions.install(cluster)
    cluster.start()
    took: dict[str, float] = {}
    for fault, writers in FAULTS.items():
        took[fault] = disturbed(cluster, partitions, fault, writers)
        cluster.converge()
    print("writes are back after: " + ", ".join(f"{fault} {seconds:.2f} s" for fault, seconds in took.items()))
    for node in cluster:
        texts = node.call("texts")
        for fault, writers in FAULTS.items():
            for number in writers:
                # What was told to be unknown was written again.
                assert f"{fault} {number}" in texts
    check_files(cluster.nodes)


def disturbed(cluster: Cluster, network: Network | Namespaces, fault: str, writers: tuple[int, ...]) -> float:
    """Seconds until all ``writers`` have written, from when a majority was connected."""
    leader = cluster.wait_leader()
    members = [leader, *(node for node in cluster if node is not leader)]
    held = links(fault, leader, members[1:])
    assert leader.worker is not None
    if fault == "the leader stands still":
        leader.worker.pause()
    for source, target in held:
        network.hold(source.address, target.address)

    def release() -> None:
        for source, target in held:
            network.release(source.address, target.address)
        if fault == "the leader stands still":
            assert leader.worker is not None
            leader.worker.signal(signal.SIGCONT)

    apart = fault == "everybody alone"
    if apart:
        cluster_is_headless(cluster)
        release()
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda number: write_until_accepted(members[number], f"{fault} {number}"), writers))
        return time.monotonic() - began
    finally:
        if not apart:
            release()


def cluster_is_headless(cluster: Cluster) -> None:
    """No node leads, and none knows of a leader that it reaches."""

    def headless() -> bool:
        return not any((status := node.status()) and status["role"] == "leader" for node in cluster)

    wait_until("nobody leads", headless, 30)
