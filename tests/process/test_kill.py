"""What was acknowledged survives kill -9 of any node, and of all nodes at once."""

from __future__ import annotations

import random

import pytest

from .chaos import Chaos
from .cluster import Cluster, check_files


@pytest.mark.timeout(1200)
def test_acknowledged_writes_are_there_exactly_once_on_every_node(
    cluster: Cluster, rng: random.Random, soak_seconds: float
) -> None:
    """An acknowledged write is on the disks of a majority, and is applied exactly once whoever died meanwhile;
    one that was refused is nowhere; every node's file is the same, and sound."""
    cluster[0].call("open_accounts", number=2)
    chaos = Chaos(cluster, rng, {"insert": (2, 2, 2), "bump": (1, 1, 0)})
    chaos.start()
    chaos.kill_at_random(soak_seconds)
    chaos.kill_all()
    for node in cluster:
        chaos.load(node)
    chaos.kill_at_random(1)
    chaos.stop()
    state = cluster.converge()

    record = chaos.record()
    print(f"{chaos.kills} kills, {chaos.leaders_killed} of a leader; {dict(record.reasons)}; at the end {state}")
    print("outcome unknown:", record.unknown)
    assert not record.wrong, record.wrong[:10]
    for node in cluster:
        record.check_rows("insert", node.call("texts"))
        balances = node.call("balances")
        record.check_counter("bump a", balances["counter a"])
        record.check_counter("bump b", balances["counter b"])
    check_files(cluster.nodes)

    chaos.kill_all()
    assert cluster.converge()["version"] == state["version"]
    for node in cluster:
        record.check_rows("insert", node.call("texts"))
    check_files(cluster.nodes)
