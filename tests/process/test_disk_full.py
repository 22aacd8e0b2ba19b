"""A disk that refuses the Raft log stops that node's acknowledgements, and nothing else."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.history import check_lists, report

from .chaos import Chaos
from .cluster import Cluster, ClusterNode, RemoteError, check_files, wait_until
from .conftest import NewCluster
from .keys import keys_until
from .test_histories import ACCOUNTS, check_money, looked, print_figures

SIZE = "3m"


class SmallDisk:
    """A tmpfs of a few MiB where a node has its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here (root and CAP_SYS_ADMIN are needed): {done.stderr.strip()}")

    @property
    def filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Take all the space that is left."""
        descriptor = os.open(self.filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while True:
                try:
                    os.write(descriptor, b"x" * 4096)
                except OSError:
                    return
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        """Give it much more space."""
        subprocess.run(["mount", "-o", "remount,size=64m", str(self.folder)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


@pytest.fixture
def prepared(new_cluster: NewCluster) -> Iterator[tuple[Cluster, ClusterNode, SmallDisk]]:
    """A running cluster, one node of it with its log on a small disk, and that disk."""
    cluster = new_cluster()
    victim = cluster[1]
    disk = SmallDisk(victim.name.with_name(victim.name.name + ".raft"))
    try:
        cluster.start()
        yield cluster, victim, disk
        cluster.destroy()
    finally:
        disk.unmount()


@pytest.mark.parametrize("place", ["follower", "leader"])
def test_a_node_whose_log_is_full_stops_and_says_why_while_the_others_go_on(
    prepared: tuple[Cluster, ClusterNode, SmallDisk], place: str
) -> None:
    """What is not on its disk it does not acknowledge; after space is back and a restart it catches up."""
    cluster, victim, disk = prepared
    make(cluster, victim, place)
    others = [node for node in cluster if node is not victim]
    disk.fill()
    texts = [f"{number} " + "x" * 60 for number in range(400)]

    def failed() -> str | None:
        # The group writes on all the while; a leader that stops is replaced, which takes its moment.
        text = texts.pop()
        try:
            others[0].call("create", text=text)
        except RemoteError as error:
            assert error.kind in ("Unavailable", "CommitOutcomeUnknown"), error
        else:
            acknowledged.append(text)
        status = victim.status()
        return status["reason"] if status and status["role"] == "failed" else None

    acknowledged: list[str] = []
    reason = wait_until("the node says that it stopped", failed, 30)
    assert "full" in reason.lower() or "space" in reason.lower(), reason
    assert reason in victim.log.read_text(), "its log says why"
    with pytest.raises(RemoteError, match="stopped itself") as refused:
        victim.call("create", text="on the full node")
    assert (refused.value.kind, refused.value.reason) == ("Unavailable", "failed")
    assert isinstance(victim.call("texts"), list), "local reads go on"

    for number, node in enumerate(others * 5):
        text = f"after the fault {number}"
        wait_until(f"{node} writes", partial(written, node, text, acknowledged), 15)
    assert not {"on the full node"} & set(others[0].call("texts"))

    victim.stop()
    disk.filler.unlink()
    disk.make_room()
    victim.start()
    cluster.converge()
    texts_there = victim.call("texts")
    assert sorted(set(acknowledged)) == sorted(text for text in texts_there if text in set(acknowledged))
    victim.call("create", text="it writes again")
    cluster.converge()
    check_files(cluster.nodes)


def test_a_node_whose_whole_disk_is_full_stops_and_ends_cleanly(new_cluster: NewCluster) -> None:
    """The file and its WAL too: nothing is acknowledged any more, and its process ends without a traceback."""
    node = new_cluster(1)[0]
    disk = SmallDisk(node.folder / "small")
    node.name = disk.folder / "db.sqlite3"
    node.settings["NAME"] = str(node.name)
    acknowledged = 0
    try:
        node.start()
        node.call("migrate", wait=60)
        with pytest.raises(RemoteError) as refused:
            for number in range(10_000):
                node.call("create", text=f"{number} " + "x" * 1000)
                acknowledged += 1
        assert refused.value.kind in ("Unavailable", "CommitOutcomeUnknown"), refused.value
        assert node.stop() == 0
        assert "atexit" not in node.log.read_text()
        disk.make_room()
        node.start()
        assert acknowledged <= len(node.call("texts")) <= acknowledged + 1
        node.call("create", text="it writes again")
        assert node.stop() == 0
    finally:
        node.destroy()
        disk.unmount()


def make(cluster: Cluster, victim: ClusterNode, place: str) -> None:
    """Have ``victim`` lead, or not, by restarting whoever leads instead."""
    for _ in range(20):
        leader = cluster.wait_leader()
        if (leader is victim) == (place == "leader"):
            cluster.converge()
            return
        leader.kill()
        wait_until("another leader", partial(cluster.another_leads, leader), 30)
        leader.start()
        cluster.converge()
    pytest.fail(f"{victim} never became {place}")


def written(node: ClusterNode, text: str, acknowledged: list[str]) -> bool:
    """Write ``text`` unless the node is in between two leaders; a text whose outcome is unknown is not repeated."""
    if node.call("count", text=text, level="local"):
        return True
    try:
        node.call("create", text=text)
    except RemoteError as error:
        assert error.kind in ("Unavailable", "CommitOutcomeUnknown"), error
        return error.kind == "CommitOutcomeUnknown"
    acknowledged.append(text)
    return True


@pytest.mark.timeout(600)
def test_transactions_fit_one_order_while_a_disk_fills_up_and_is_emptied(
    prepared: tuple[Cluster, ClusterNode, SmallDisk], rng: random.Random, soak_seconds: float
) -> None:
    """What each thread of each node was told, also on the node that stops in the midst of it, again and again."""
    cluster, victim, disk = prepared
    keys = keys_until(soak_seconds * 2 + 120)
    cluster[0].call("open_accounts", number=ACCOUNTS)
    cluster[0].call("open_lists", keys=keys)
    cluster.converge()
    chaos = Chaos(cluster, rng, {"recorded": (2, 2, 2)})
    chaos.start()
    end, fills = time.monotonic() + soak_seconds / 3, 0
    while fills == 0 or time.monotonic() < end:
        disk.fill()
        wait_until("the node stops", lambda: (found := victim.status()) and found["role"] == "failed", 60)
        fills += 1
        victim.stop()
        disk.filler.unlink()
        disk.make_room()
        victim.start()
        chaos.load(victim)
        wait_until("it takes part again", lambda: (found := victim.status()) and found["leader"], 60)
        time.sleep(rng.uniform(0.5, 2.0))
    chaos.stop()
    state = cluster.converge()
    history = chaos.history()
    final = [looked(f"final of {worker.pid}", worker, keys) for worker in chaos.processes()]
    print_figures(chaos, history, state)
    print(f"the disk was full {fills} times")
    assert not chaos.record().wrong
    anomalies = check_lists([*history, *final]) + check_money(cluster, history)
    assert not anomalies, report(anomalies)
    check_files(cluster.nodes)
