"""The group goes on without its leader; a node that comes back catches up by itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from .cluster import TESTPROJECT, Cluster, ClusterNode, check_files, node_environment, until_accepted, wait_until

DEADLINE = 30.0
"""Seconds; how long it took is printed."""
ROUNDS = 3


def write_until_accepted(node: ClusterNode, text: str) -> float:
    """Seconds until the node acknowledged a write."""
    began = time.monotonic()
    refusals = "Unavailable", "CommitOutcomeUnknown", "TransactionConflict", "LeaseTimeout"
    write = partial(node.call, "create", text=text)
    until_accepted(f"{node} accepts a write", write, *refusals, timeout=DEADLINE)
    return time.monotonic() - began


@pytest.mark.timeout(300)
def test_the_others_write_again_soon_after_kill_9_of_the_leader(cluster: Cluster) -> None:
    """An election takes place, and every survivor finds the new leader by itself."""
    for number in range(ROUNDS):
        leader = cluster.wait_leader()
        survivors = [node for node in cluster if node is not leader]
        leader.kill()
        took: dict[str, float] = {}

        def measure(node: ClusterNode, number: int = number, took: dict[str, float] = took) -> None:
            took[node.address] = write_until_accepted(node, f"round {number} on node {node.index}")

        threads = [threading.Thread(target=measure, args=(node,)) for node in survivors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(took) == {node.address for node in survivors}, "a survivor took no write within the deadline"
        print(f"kill -9 of the leader: writes again after {max(took.values()):.2f} s")

        leader.start()
        state = cluster.converge()
        assert leader.call("count", text=f"round {number} on node {survivors[0].index}") == 1, state
    check_files(cluster.nodes)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stopped_leader_hands_over_and_exits_with_0(cluster: Cluster, number: int) -> None:
    """`manage.py raft node`: a clean stop moves leadership first, so that nobody waits for an election timeout."""
    chosen = cluster.wait_leader()
    chosen.kill()
    cluster.wait_leader()
    with subprocess.Popen(
        [sys.executable, str(TESTPROJECT / "manage.py"), "raft", "node"],
        cwd=TESTPROJECT,
        env=node_environment(chosen.settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            wait_until("`raft node` hosts its node", chosen.status, 30)
            # Whoever else leads is killed, until the node of `raft node` does.
            for _ in range(10):
                cluster.converge()
                leader = wait_until("a leader", cluster.agreed_leader, 30)
                if leader is chosen:
                    break
                leader.kill()
                wait_until("another leader", partial(cluster.another_leads, leader), 30)
                leader.start()
            else:
                pytest.fail(f"{chosen} never led")
            cluster.converge()
            process.send_signal(number)
            began = time.monotonic()
            survivor = next(node for node in cluster if node is not chosen)
            write_until_accepted(survivor, "after the handover")
            print(f"clean stop of the leader: writes again after {time.monotonic() - began:.2f} s")
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, output
    assert "Traceback" not in output, output
    assert chosen.status() is None
    chosen.start()
    cluster.converge()
    assert chosen.call("count", text="after the handover") == 1
    check_files(cluster.nodes)
