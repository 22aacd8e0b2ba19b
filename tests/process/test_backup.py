"""kill -9 in the middle of a backup, of an upload to the archive, and of a restore: nothing half looks whole."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.backups.keeping import fetch, find_backups
from django_raftsqlite.backups.moments import Log
from django_raftsqlite.backups.places import Folder

from .chaos import Chaos
from .cluster import TESTPROJECT, Cluster, ClusterNode, check_files, node_environment, wait_until
from .conftest import NewCluster

MIB = 1024 * 1024
BALLAST = 8


def command(node: ClusterNode, kept: Path, *arguments: str) -> subprocess.Popen[str]:
    """``manage.py raft ...`` beside the process that hosts the node."""
    return subprocess.Popen(
        [sys.executable, "manage.py", "raft", *arguments],
        cwd=TESTPROJECT,
        env=node_environment(node.settings, {"TESTPROJECT_BACKUPS": str(kept)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen[str], timeout: float = 60.0) -> tuple[int, str]:
    """Its exit status and what it printed."""
    try:
        text = process.communicate(timeout=timeout)[0]
    finally:
        process.kill()
    return process.returncode, text


def fill(cluster: Cluster) -> None:
    cluster[0].call("sql", query="CREATE TABLE ballast (id INTEGER PRIMARY KEY, data BLOB)")
    for _ in range(BALLAST):
        cluster[0].call("sql", query="INSERT INTO ballast (data) VALUES (randomblob(1048576))")
    cluster.converge()


def copying(node: ClusterNode, process: subprocess.Popen[str]) -> bool:
    """Whether the command's copy is being made, or was made since the last look."""
    return any((node.folder / "db.sqlite3.raft").glob("backup-*/copy.sqlite3")) or process.poll() is not None


def rows(node: ClusterNode, query: str) -> list[list[Any]]:
    found: list[list[Any]] = node.call("sql", query=query)
    return found


@pytest.mark.timeout(300)
def test_a_backup_is_complete_or_none_whoever_is_killed_meanwhile(cluster: Cluster, tmp_path: Path) -> None:
    """The host of the node, which leads, or the command itself; the group serves on."""
    fill(cluster)
    outcomes = []
    for victim in ("host", "command"):
        leader = cluster.wait_leader()
        kept = tmp_path / victim
        kept.mkdir()
        process = command(leader, kept, "backup", str(kept))
        wait_until("the copy is being made", functools.partial(copying, leader, process))
        if victim == "host":
            leader.kill()
        else:
            process.kill()
        status, text = done(process)
        outcomes.append((victim, status))
        found = find_backups(Folder(kept))
        complete = [each.manifest for each in found if each.manifest is not None]
        if status == 0:
            (manifest,) = complete
            fetch(Folder(kept), manifest, tmp_path / f"fetched-{victim}")
        else:
            assert complete == [], text
        if victim == "host":
            leader.start()
        cluster.wait_leader()
        cluster[0].call("sql", query="UPDATE ballast SET id = id WHERE id = 1")
        status, text = done(command(leader, kept, "backup", str(kept)))
        assert status == 0, text
    print(outcomes)
    check_files(cluster.nodes)


def archive(node: ClusterNode) -> dict[str, Any]:
    """What the node says of it, as far as it answers."""
    return (node.status() or {}).get("archive") or {}


@pytest.mark.timeout(600)
def test_the_archive_has_every_entry_whichever_leader_is_killed_in_its_upload(
    new_cluster: NewCluster, tmp_path: Path, rng: random.Random
) -> None:
    """And what it leads to, from the backup on, is what the group holds."""
    kept = tmp_path / "kept"
    cluster = new_cluster(archive={"storage": "backups", "interval": 0.1})
    for node in cluster:
        node.environment["TESTPROJECT_BACKUPS"] = str(kept)
    cluster.start()
    cluster[0].call("open_accounts", number=2)
    begun = wait_until("the archive is begun", lambda: archive(cluster[0]).get("begun"))
    status, text = done(command(cluster[1], kept, "backup", "--storage", "backups"))
    assert status == 0, text
    chaos = Chaos(cluster, rng, {"insert": (2, 2, 2)})
    chaos.start()
    for _ in range(3):
        leader = cluster.wait_leader()
        uploading = functools.partial(shipped, leader, rng.randrange(1, 4))
        wait_until("the leader is uploading", uploading)
        time.sleep(rng.uniform(0, 0.1))
        leader.kill()
        leader.start()
        chaos.load(leader)
    chaos.stop()
    state = cluster.converge()

    def archived() -> dict[str, Any] | None:
        leader = cluster.leader()
        told = ((leader and leader.status()) or {}).get("archive")
        return told if told and told["index"] is not None and told["index"] >= state["applied_index"] else None

    told = wait_until("all is archived", archived)
    log = Log(Folder(kept / "raftsqlite" / "default"), told["name"], [])
    indexes = [index for index, _, _ in log.entries(begun)]
    assert indexes == list(range(begun, indexes[-1] + 1))
    assert indexes[-1] >= state["applied_index"]
    print(f"three leaders killed; {len(indexes)} entries in {len(log.segments())} segments")
    texts = [sorted(node.call("texts")) for node in cluster]
    cluster[0].call("sql", query="DELETE FROM ledger_event")
    arguments = ("restore", "--to-index", str(state["applied_index"]), "--storage", "backups", "--yes")
    status, text = done(command(cluster[2], kept, *arguments))
    assert status == 0, text
    assert cluster.converge()["lineage"] != state["lineage"]
    assert [sorted(node.call("texts")) for node in cluster] == texts
    check_files(cluster.nodes)


@pytest.mark.timeout(600)
def test_a_restore_is_whole_or_nothing_whoever_is_killed_meanwhile(
    cluster: Cluster, tmp_path: Path, rng: random.Random
) -> None:
    """The leader, all nodes, or the command, at a random moment: all members hold the one content or the other."""
    fill(cluster)
    status, text = done(command(cluster[0], tmp_path, "backup", str(tmp_path / "one")))
    assert status == 0, text
    outcomes = []
    took = 2.0
    for victim in ("nobody", "leader", "command", "all"):
        cluster[0].call("sql", query="DELETE FROM ballast WHERE id > 1")
        before = cluster.converge()
        leader = cluster.wait_leader()
        author = next(node for node in cluster if node is not leader)
        process = command(author, tmp_path, "restore", str(tmp_path / "one"), "--yes", "--timeout", "30")
        sent = functools.partial(prepared, author, process)
        wait_until("it is about to be sent", sent)
        began = time.monotonic()
        if victim != "nobody":
            time.sleep(rng.uniform(0, took))
        if victim == "command":
            process.kill()
        killed = {"nobody": [], "command": [], "leader": [leader], "all": list(cluster)}[victim]
        for node in killed:
            node.kill()
        for node in killed:
            node.start(wait=False)
        for node in killed:
            node.wait_open()
        status, text = done(process, 120)
        if victim == "nobody":
            took = time.monotonic() - began
        cluster.wait_leader()
        cluster[0].call("sql", query="CREATE TABLE IF NOT EXISTS still_writable (a)")
        after = cluster.converge()
        counts = {len(rows(node, "SELECT id FROM ballast")) for node in cluster}
        restored = after["lineage"] != before["lineage"]
        assert counts == {BALLAST if restored else 1}, (victim, text)
        assert restored or status != 0, text
        outcomes.append((victim, status, "restored" if restored else "as before"))
    check_files(cluster.nodes)
    print(f"a restore took {took:.1f} s; {outcomes}")
    assert outcomes[0][1:] == (0, "restored")


def shipped(leader: ClusterNode, count: int) -> bool:
    """Whether this process has shipped so many segments since it leads, so that it is about to ship the next one."""
    told = leader.status()
    return bool(told and (told["archive"]["segments"] >= count or told["role"] != "leader"))


def prepared(node: ClusterNode, process: subprocess.Popen[str]) -> bool:
    there = any((node.folder / "db.sqlite3.raft").glob("backup-*/prepared.sqlite3"))
    return there or process.poll() is not None
