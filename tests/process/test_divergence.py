"""Damage and other programs against the files of real nodes: found by every process, and healed under load."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .chaos import Chaos
from .cluster import ROOT, TESTPROJECT, ClusterNode, RemoteError, node_environment, wait_until
from .conftest import NewCluster


def raft(node: ClusterNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``manage.py raft`` beside a node's processes."""
    return subprocess.run(
        [sys.executable, str(TESTPROJECT / "manage.py"), "raft", *arguments],
        cwd=ROOT,
        env=node_environment(node.settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def verified(node: ClusterNode) -> subprocess.CompletedProcess[str]:
    """A verification which all members answered."""

    def complete() -> subprocess.CompletedProcess[str] | None:
        done = raft(node, "verify")
        return None if done.returncode == 2 else done  # one was out of reach for a moment

    return wait_until("all members answer", complete, 90)


def sqlite(path: Path, sql: str) -> None:
    """Another program, with another SQLite library."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=10); c.execute(sys.argv[2]); c.commit()"
    subprocess.run([sys.executable, "-c", code, str(path), sql], check=True, timeout=30)


def flip(path: Path, text: bytes) -> None:
    """Damage a byte of a row in the file, and leave no trace in its size and time."""
    status = path.stat()
    data = path.read_bytes()
    place = data.index(text)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def told(node: ClusterNode, key: str) -> Any:
    status = node.status()
    return None if status is None else status[key]


def start(node: ClusterNode) -> None:
    """Start a node, which may refuse to serve."""
    node.start(wait=False).wait_ready()


def wait_sound(node: ClusterNode) -> None:
    def sound() -> bool:
        status = node.status()
        return status is not None and status["suspect"] is None

    wait_until(f"{node} is sound", sound)


@pytest.mark.timeout(240)
def test_a_damaged_byte_is_found_by_raft_verify_and_heals_while_the_others_write(
    new_cluster: NewCluster, rng: random.Random
) -> None:
    cluster = new_cluster()
    cluster.start()
    cluster[0].call("create", text="a row that will be damaged")
    cluster.converge()
    victim = cluster.followers()[0]
    assert victim.stop() == 0
    # What is in the WAL is put into the file, as a checkpoint does, and the node's own note of its file is renewed.
    sqlite(victim.name, "PRAGMA wal_checkpoint(TRUNCATE)")
    (victim.folder / "db.sqlite3.raft" / "stopped.json").unlink()
    Path(f"{victim.name}-wal").touch()
    flip(victim.name, b"a row that will be damaged")
    victim.start()
    cluster.converge()
    rows = victim.call("sql", query="SELECT text FROM ledger_event NOT INDEXED")
    assert ["a row that will be damaged"] not in rows, "it is damaged, and nobody knows"
    assert told(victim, "suspect") is None
    chaos = Chaos(cluster, rng, {"insert": (1, 1, 1)})
    chaos.start()
    other = next(node for node in cluster if node is not victim)
    began = time.monotonic()
    found = verified(other)
    print(f"verified in {time.monotonic() - began:.1f} s:", found.stdout)
    assert found.returncode == 1, found.stdout + found.stderr
    lines = {line.split()[0]: line for line in found.stdout.splitlines() if line}
    assert "DIFFERENT" in lines[victim.address]
    assert all("equal" in lines[node.address] for node in cluster if node is not victim)
    wait_until("it was suspect", lambda: "is suspect" in victim.log.read_text())
    wait_sound(victim)
    print(f"healed {time.monotonic() - began:.1f} s after the command began")
    again = verified(victim)
    assert again.returncode == 0, again.stdout + again.stderr
    chaos.stop()
    cluster.converge()
    record = chaos.record()
    assert not record.wrong, record.wrong
    for node in cluster:
        assert node.call("count", text="a row that will be damaged") == 1
        record.check_rows("insert", [text for text in node.call("texts") if "damaged" not in text])
    assert verified(other).returncode == 0


@pytest.mark.timeout(180)
def test_every_process_of_a_node_refuses_while_it_is_suspect_and_sees_the_sound_file_afterwards(
    new_cluster: NewCluster,
) -> None:
    """Also one that did nothing meanwhile, whose connections are to a file that is not there any more."""
    cluster = new_cluster()
    cluster.start()
    for number in range(10):
        cluster[0].call("create", text=f"row {number}")
    cluster.converge()
    victim = cluster.followers()[0]
    busy, idle = victim.attach(), victim.attach()
    for worker in (busy, idle):
        assert worker.call("count", text="row 3") == 1
    seen: list[object] = []
    stop = threading.Event()

    def reading() -> None:
        while not stop.is_set():
            try:
                seen.append(busy.call("count", text="row 3"))
            except RemoteError as error:
                seen.append(error.reason)

    thread = threading.Thread(target=reading)
    thread.start()
    try:
        sqlite(victim.name, "UPDATE ledger_event SET text = 'foreign' WHERE text = 'row 3'")
        wait_until("it is found", lambda: "is suspect" in victim.log.read_text())
        wait_sound(victim)
        cluster[0].call("create", text="afterwards")
        cluster.converge()
    finally:
        stop.set()
        thread.join()
    print({answer: seen.count(answer) for answer in set(seen)})
    assert set(seen) <= {0, 1, "suspect"}
    assert seen[-1] == 1
    first, last = (seen.index(0), len(seen) - 1 - seen[::-1].index(0)) if 0 in seen else (0, 0)
    assert "suspect" not in seen[first:last], "once it is known, nobody reads what was written to the file"
    for worker in (busy, idle):
        assert worker.call("count", text="row 3") == 1
        assert worker.call("count", text="foreign") == 0
        assert worker.call("count", text="afterwards") == 1
        worker.call("create", text="a write of an attached process")


@pytest.mark.timeout(240)
def test_a_node_that_is_killed_while_it_heals_heals_after_its_next_start(
    new_cluster: NewCluster, rng: random.Random
) -> None:
    cluster = new_cluster(snapshot_rate=256 * 1024)
    cluster.start()
    for _ in range(20):
        cluster[0].call("create", text="x" * 50_000)
    cluster.converge()
    for _ in range(4):
        victim = rng.choice(list(cluster))
        sqlite(victim.name, "DELETE FROM ledger_event")
        wait_until("it is found", lambda victim=victim: told(victim, "suspect"))
        time.sleep(rng.uniform(0, 5))
        victim.kill()
        start(victim)
        wait_sound(victim)
        cluster.converge()
        assert victim.call("count", text="x" * 50_000) == 20
        assert verified(victim).returncode == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("sql", ["DELETE FROM ledger_event", "SELECT * FROM ledger_event"])
def test_another_program_that_had_the_file_of_a_killed_node_open_is_found_at_its_start(
    new_cluster: NewCluster, sql: str
) -> None:
    """It may have written: it took the WAL away, as the last one does that closes a database."""
    cluster = new_cluster()
    cluster.start()
    cluster[0].call("create", text="a row")
    cluster.converge()
    victim = cluster.followers()[0]
    victim.kill()
    sqlite(victim.name, sql)
    start(victim)
    wait_until("it is found", lambda: "is suspect" in victim.log.read_text())
    wait_sound(victim)
    cluster.converge()
    assert victim.call("count", text="a row") == 1


@pytest.mark.timeout(120)
def test_a_node_that_was_killed_and_left_alone_is_sound(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    cluster.start()
    for number in range(5):
        cluster[0].call("create", text=f"row {number}")
        victim = cluster[number % 3]
        victim.kill()
        victim.start()
        cluster.converge()
        assert "is suspect" not in victim.log.read_text()
