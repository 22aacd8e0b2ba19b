"""Members come and go under write load, by the commands, between real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.ports import free_ports

from .cluster import (
    ROOT,
    TESTPROJECT,
    Cluster,
    ClusterNode,
    ProcessEnded,
    RemoteError,
    check_files,
    converge,
    node_environment,
    wait_until,
)
from .conftest import NewCluster


def raft(node: ClusterNode, *arguments: str, status: int = 0) -> str:
    """``manage.py raft`` beside a node's processes; what it prints."""
    done = subprocess.run(
        [sys.executable, str(TESTPROJECT / "manage.py"), "raft", *arguments],
        cwd=ROOT,
        env=node_environment(node.settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return done.stdout + done.stderr


class Writers:
    """A writer on each of the first nodes: what was acknowledged, and the longest time without any of that."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.unknown: set[str] = set()
        self.longest = 0.0
        self._last = time.monotonic()
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, node: ClusterNode) -> None:
        thread = threading.Thread(target=self._run, args=(node,))
        self._threads.append(thread)
        thread.start()

    def _run(self, node: ClusterNode) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            text = f"{node.index} {number}"
            try:
                node.call("create", session="writer", text=text)
            except (RemoteError, ProcessEnded) as error:
                if isinstance(error, RemoteError) and error.kind in {"Unavailable", "LeaseTimeout"}:
                    continue
                self.unknown.add(text)
                if isinstance(error, ProcessEnded) or "stopped itself" in str(error):
                    return
                continue
            with self._mutex:
                now = time.monotonic()
                self.longest, self._last = max(self.longest, now - self._last), now
                self.acknowledged.append(text)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def writing(*nodes: ClusterNode) -> Iterator[Writers]:
    writers = Writers()
    for node in nodes:
        writers.start(node)
    try:
        yield writers
    finally:
        writers.stop()


def join(cluster: Cluster, **options: object) -> ClusterNode:
    """One more machine, which asks the first member to be admitted."""
    (port,) = free_ports(1)
    index = len(cluster.nodes)
    node = cluster.node_class(index, cluster.folder / f"node{index}", f"127.0.0.1:{port}", [], options)
    del node.settings["OPTIONS"]["peers"]
    node.settings["OPTIONS"]["join"] = [cluster[0].address]
    cluster.nodes.append(node)
    node.start()
    return node


def roles(node: ClusterNode) -> dict[str, str]:
    return {member["address"]: member["role"] for member in (node.status() or {"members": []})["members"]}


@pytest.mark.timeout(300)
def test_three_members_become_five_and_three_others_under_writes(new_cluster: NewCluster) -> None:
    """The two that joined stay with one of the first, and the leader is among those that go."""
    cluster = new_cluster()
    cluster.start()
    stay = cluster[0]
    with writing(*cluster.nodes[:2]) as writers:
        for _ in range(2):
            node = join(cluster)
            wait_until(
                "the newcomer votes", lambda node=node: roles(stay).get(node.address) in {"leader", "follower"}
            )
        raft(stay, "transfer", cluster[2].address)
        wait_until("it leads", lambda: cluster.agreed_leader() is cluster[2])
        gone = [cluster[2], cluster[1]]
        for node in gone:
            told = raft(stay, "remove", node.address)
            assert f"{node.address} is not a member any more" in told
            said = wait_until("it says why it stopped", lambda node=node: (node.status() or {}).get("reason"))
            assert "removed from the group" in said or "not a member any more" in said
        before = len(writers.acknowledged)
        wait_until("the three go on", lambda: len(writers.acknowledged) > before + 20)
    left = [stay, *cluster.nodes[3:]]
    wait_until("these three are the members", lambda: set(roles(stay)) == {node.address for node in left})
    print(
        f"{len(writers.acknowledged)} writes, {len(writers.unknown)} unknown, longest pause {writers.longest:.2f} s"
    )
    assert writers.longest < 15
    for node in gone:
        node.kill()
    converge(left)
    acknowledged = sorted(writers.acknowledged)
    for node in left:
        texts = node.call("texts")
        known = set(texts) - writers.unknown
        assert known <= set(acknowledged), "what was refused is nowhere"
        assert sorted(text for text in texts if text not in writers.unknown) == acknowledged, "each is there once"
    check_files(left)
    # Its process ends by itself, where it does nothing but host the node.
    gone[0].worker = None
    assert "stopped itself" in raft(gone[0], "node", status=1)


@pytest.mark.timeout(300)
def test_a_node_that_is_left_begins_a_new_group_when_it_is_told_twice(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    cluster.start(migrate=False)
    assert "is a learner" in raft(cluster[0], "add", "127.0.0.1:1", "--learner")
    for node in cluster:
        node.stop()
    told = raft(cluster[0], "recover", "--members", cluster[0].address, status=1)
    assert "LOST" in told and "nothing was done" in told
    assert "begins a new group" in raft(cluster[0], "recover", "--members", cluster[0].address, "--yes")
    cluster[0].start()
    wait_until("it leads alone", lambda: roles(cluster[0]) == {cluster[0].address: "leader"})
