"""The archive of a real group, and the states of moments that it gives back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.backups.keeping import find_backups
from django_raftsqlite.backups.moments import Log, NoMoment, Reached, Target, prune_archive, replay
from django_raftsqlite.backups.places import Folder
from django_raftsqlite.backups.restoring import RestoreFailed, from_moment
from django_raftsqlite.backups.taking import take_backup
from django_raftsqlite.node.api import ArchiveConfig
from django_raftsqlite.node.registry import close_node
from tests.support.nodes import Group, eventually, group, read, write

MOMENTS = 20


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "kept")


@pytest.fixture
def trio(tmp_path: Path, place: Folder) -> Iterator[Group]:
    archive = ArchiveConfig(lambda: place, 0.1, 10**6)
    with group(tmp_path, 3, durable=False, log_entries=60, archive=archive) as made:
        made.leader()
        write(made.nodes[0], "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        begun(made)
        yield made


def begun(trio: Group) -> dict[str, Any]:
    """Wait until the log has its archive on all nodes; what the leader says of it."""

    def there() -> dict[str, Any] | None:
        told = [node.status()["archive"] for node in trio.open_nodes()]
        return told[trio.leader()] if all(one["name"] for one in told) else None

    found: dict[str, Any] = eventually(there, "the archive is begun")
    return found


def archived(trio: Group) -> int:
    """Wait until all that is committed now is archived; its index."""
    index: int = trio.settle()["applied_index"]

    def there() -> bool:
        told = trio.nodes[trio.leader()].status()["archive"]
        return told["index"] is not None and told["index"] >= index

    eventually(there, f"the log is archived up to {index}")
    return index


def back_up(trio: Group, number: int, place: Folder) -> Any:
    """Take a backup on a node, through the process's own share of it."""
    config = trio.configs[number]
    try:
        return take_backup("default", config, place)
    finally:
        close_node(config.name)


def state_at(trio: Group, place: Folder, target: Target, path: Path) -> Reached:
    path.unlink(missing_ok=True)
    for left in path.parent.glob(f"{path.name}-*"):
        left.unlink()
    return replay(trio.configs[0], (place, place), target, path)


def content(path: Path) -> list[tuple[Any, ...]]:
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute("SELECT id, x FROM t ORDER BY id").fetchall()
    finally:
        connection.close()


def test_twenty_moments_of_a_history_under_leader_changes(trio: Group, place: Folder, tmp_path: Path) -> None:
    """By index and by time: exactly what was there then, with the digest that the group had.

    Ten of its deletions, each undone and done again on the running group: restored to the index before it, the row is
    there on all nodes, to its index it is not.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model: dict[int, Any] = {}
    history: dict[int, tuple[list[tuple[Any, ...]], str]] = {}
    deleted: dict[int, tuple[Any, ...]] = {}
    changes = 0
    take = {0, 150}
    for number in range(300):
        if number in take:
            back_up(trio, trio.leader(), place)
        if number % 60 == 59:
            leader = trio.leader()
            trio.nodes[leader].close()
            trio.leader()
            trio.restart(leader)
            trio.leader()
            changes += 1
        node, row = trio.nodes[rng.randrange(3)], None
        if model and rng.random() < 0.3:
            gone = rng.choice(list(model))
            write(node, "DELETE FROM t WHERE id = ?", gone)
            row = gone, model.pop(gone)
        else:
            value = rng.randrange(10**6)
            model[write(node, "INSERT INTO t (x) VALUES (?)", value).lastrowid or 0] = value
        status = node.status()
        history[status["applied_index"]] = (sorted(model.items()), status["digest"])
        if row is not None:
            deleted[status["applied_index"]] = row
    last = archived(trio)
    base = find_backups(place)[0].manifest
    assert base is not None
    log = Log(place, base.archive or "", [])
    indexes = [index for index, _, _ in log.entries(base.index)]
    assert indexes == list(range(base.index, indexes[-1] + 1)) and indexes[-1] >= last
    known = [index for index in history if index >= base.index]
    path = tmp_path / "then.sqlite3"
    for index in rng.sample(known, MOMENTS):
        reached = state_at(trio, place, Target(index), path)
        assert (content(path), reached.digest) == history[index], (seed, index)
    for index in rng.sample(known, 3):
        # The time that the leader wrote down, and the moment before it.
        moment = datetime.fromtimestamp(
            next(clock_of(each) for at, _, each in log.entries(index) if at == index) / 1000, UTC
        )
        expected, clock = base.index, 0
        for at, _, payload in log.entries(base.index + 1):
            clock = max(clock, clock_of(payload))
            if clock > moment.timestamp() * 1000:
                break
            expected = at
        reached = state_at(trio, place, Target(time=moment), path)
        assert reached.index == expected >= index, (seed, index)
    print(f"{len(indexes)} entries in {len(log.segments())} segments, {changes} changes of leader")
    # What a node had applied may have been an entry behind the deletion.
    deletions = [at for at, _, payload in log.entries(base.index + 1) if at in deleted and b"DELETE" in payload]
    for index in rng.sample(deletions, MOMENTS // 2):
        after, digest = history[index]
        for moment, rows in ((index - 1, sorted([*after, deleted[index]])), (index, after)):
            config = trio.configs[rng.randrange(3)]
            with from_moment(config, (place, place), Target(moment)) as (ready, reached):
                assert (reached.index, reached.complete) == (moment, True), seed
                assert moment != index or reached.digest == digest, seed
                lineage = ready.restore(30)
            close_node(config.name)
            assert trio.settle()["lineage"] == lineage, "all nodes have equal digests, of the restored content"
            for each in trio.nodes:
                assert read(each, "SELECT id, x FROM t ORDER BY id") == rows, (seed, moment)
    print(f"{MOMENTS} moments restored on all nodes")


def clock_of(payload: bytes) -> int:
    from django_raftsqlite.sqlite.entry import decode_entry

    return decode_entry(payload).clock if payload else 0


def test_a_deleted_row_is_back_on_all_nodes_with_equal_digests(trio: Group, place: Folder) -> None:
    """Restored to the index before it was deleted it is there, to that index it is not; moments before a restore
    can be had after it, too."""
    write(trio.nodes[0], "INSERT INTO t (id, x) VALUES (1, 'known')")
    back_up(trio, trio.follower(), place)
    write(trio.nodes[1], "INSERT INTO t (id, x) VALUES (2, 'later')")
    write(trio.nodes[0], "DELETE FROM t WHERE id = 1")
    deleted = trio.nodes[0].status()["applied_index"]
    write(trio.nodes[2], "INSERT INTO t (id, x) VALUES (3, 'after')")
    after = trio.nodes[2].status()["applied_index"]
    archived(trio)
    for index, rows in (
        (deleted - 1, [(1, "known"), (2, "later")]),
        (deleted, [(2, "later")]),
        (after, [(2, "later"), (3, "after")]),
    ):
        config = trio.configs[trio.follower()]
        with from_moment(config, (place, place), Target(index)) as (ready, reached):
            assert (reached.index, reached.complete) == (index, True)
            lineage = ready.restore(30)
        close_node(config.name)
        status = trio.settle()
        assert status["lineage"] == lineage
        for node in trio.nodes:
            assert read(node, "SELECT id, x FROM t ORDER BY id") == rows
        archived(trio)
    # The log goes on through restores: from the one backup, entry by entry, to what the group holds now.
    last = archived(trio)
    with from_moment(trio.configs[0], (place, place), Target(last)) as (_, reached):
        assert reached.digest == trio.settle()["digest"]
    close_node(trio.configs[0].name)


def test_segments_from_before_the_oldest_backup_can_go(trio: Group, place: Folder, tmp_path: Path) -> None:
    """And nothing that a backup leads on from."""
    assert prune_archive(place, place) == 0
    for number in range(3):
        write(trio.nodes[0], "INSERT INTO t (x) VALUES (?)", number)
        archived(trio)
    manifest = back_up(trio, 0, place)
    write(trio.nodes[0], "INSERT INTO t (x) VALUES (3)")
    index = archived(trio)
    log = Log(place, manifest.archive, [])
    before = log.segments()
    assert prune_archive(place, place) == sum(name.last < manifest.index for name in before) > 0
    assert next(log.entries(manifest.index))[0] == manifest.index
    assert state_at(trio, place, Target(index), tmp_path / "then").index == index


def test_the_end_of_the_archive_is_told(trio: Group, place: Folder, tmp_path: Path) -> None:
    """A moment behind it cannot be complete, an index behind it cannot be had."""
    back_up(trio, 0, place)
    write(trio.nodes[0], "INSERT INTO t (x) VALUES (1)")
    index = archived(trio)
    reached = state_at(trio, place, Target(time=datetime.now(UTC)), tmp_path / "then")
    assert (reached.index >= index, reached.complete) == (True, False)
    with pytest.raises(NoMoment, match="the archive ends at log index"):
        state_at(trio, place, Target(index + 1000), tmp_path / "then")


def test_what_the_archive_lacks_is_told(trio: Group, place: Folder, tmp_path: Path) -> None:
    """A segment that is gone or damaged; a backup that is not of this log; a moment before all backups."""
    with pytest.raises(NoMoment, match="no backup that was taken since"):
        state_at(trio, place, Target(5), tmp_path / "then")
    manifest = back_up(trio, 0, place)
    for number in range(3):
        write(trio.nodes[0], "INSERT INTO t (x) VALUES (?)", number)
        index = archived(trio)
    with pytest.raises(NoMoment, match="no backup from before log index 1:"):
        state_at(trio, place, Target(1), tmp_path / "then")
    with pytest.raises(NoMoment, match="no backup from before 2000"):
        state_at(trio, place, Target(time=datetime(2000, 1, 1, tzinfo=UTC)), tmp_path / "then")
    log = Log(place, manifest.archive, [])
    needed = [name for name in log.segments() if name.last > manifest.index]
    assert len(needed) >= 2
    path = tmp_path / "kept" / needed[0].path(bytes.fromhex(manifest.archive))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(NoMoment, match=r"lacks the log entries .* not written to its end"):
        state_at(trio, place, Target(index), tmp_path / "then")
    path.unlink()
    with pytest.raises(NoMoment, match="lacks the log entries"):
        state_at(trio, place, Target(index), tmp_path / "then")
    path.write_bytes(data)
    assert state_at(trio, place, Target(index), tmp_path / "then").index == index


def test_a_backup_that_the_entries_do_not_lead_to_is_found(trio: Group, place: Folder, tmp_path: Path) -> None:
    """Either it or the archive is of another history."""
    back_up(trio, 0, place)
    write(trio.nodes[0], "INSERT INTO t (x) VALUES (1)")
    second = back_up(trio, 0, place)
    index = archived(trio)
    forged = replace(second, digest="00" * 32)
    (tmp_path / "kept" / f"{second.file}.json").write_bytes(forged.encode())
    first = find_backups(place)[0].manifest
    assert first is not None
    write(trio.nodes[0], "INSERT INTO t (x) VALUES (2)")
    archived(trio)
    from django_raftsqlite.backups import moments

    log = Log(place, second.archive or "", find_backups(place))
    path = tmp_path / "then"
    from django_raftsqlite.backups.keeping import fetch

    fetch(place, first, path)
    with pytest.raises(NoMoment, match="another digest"):
        moments._apply(trio.configs[0], log, first, Target(index), path)


def test_a_storage_that_is_down_stops_nobody_and_the_log_waits_for_it(tmp_path: Path, place: Folder) -> None:
    """What was not archived is not cut, while it is within bounds; then all of it is shipped."""
    down = [True]

    def open_() -> Folder:
        if down[0]:
            raise ConnectionError("the storage is down")
        return place

    archive = ArchiveConfig(open_, 0.1, 10**9)
    with group(tmp_path, 1, durable=False, log_entries=20, archive=archive) as nodes:
        node = nodes.nodes[0]
        write(node, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        for number in range(200):
            write(node, "INSERT INTO t (x) VALUES (?)", number)
        told = eventually(
            lambda: found if (found := node.status()["archive"])["problem"] else None, "the problem is told"
        )
        assert "the storage is down" in told["problem"]
        assert node.status()["log"]["first_index"] <= told["begun"]
        down[0] = False
        index = archived(nodes)
        log = Log(place, node.status()["archive"]["name"], [])
        assert [entry[0] for entry in log.entries(told["begun"])][-1] >= index
        eventually(lambda: node.status()["log"]["first_index"] > 100, "the log is cut")
        assert node.status()["archive"]["problem"] is None


def test_a_restore_without_a_moment_fails_before_anything_changes(trio: Group, place: Folder) -> None:
    """And says why."""
    with pytest.raises(RestoreFailed, match="no backup"), from_moment(trio.configs[0], (place, place), Target(3)):
        pass
    close_node(trio.configs[0].name)
    assert trio.settle()["lineage"] == bytes(16).hex()


def test_a_leader_that_has_just_taken_a_copy_archives_what_others_have(tmp_path: Path, place: Folder) -> None:
    """Its predecessor is gone before it could archive that: the third member still has it, and there is no gap."""
    down = [False]

    class Storage(Folder):
        def write(self, *arguments: Any) -> None:
            if down[0]:
                raise ConnectionError("the storage is down")
            super().write(*arguments)

    archive = ArchiveConfig(lambda: Storage(tmp_path / "kept"), 0.1, 10**9)
    with group(tmp_path, 3, durable=False, log_entries=20, archive=archive) as nodes:
        write(nodes.nodes[0], "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        begun(nodes)
        copier, lost = nodes.follower(), nodes.leader()
        nodes.nodes[copier].close()
        away = nodes.nodes[lost].status()["applied_index"]
        for number in range(60):
            write(nodes.nodes[lost], "INSERT INTO t (x) VALUES (?)", number)
        archived(nodes)
        for node in nodes.open_nodes():
            eventually(lambda node=node: node.status()["log"]["first_index"] > away + 20, "the logs are cut")  # type: ignore[misc]
        if (leads := nodes.leader()) != lost:
            nodes.host(leads).change_members("transfer", nodes.peers[lost], learner=False, timeout=20)
        down[0] = True
        for number in range(20):
            write(nodes.nodes[lost], "INSERT INTO t (x) VALUES (?)", number)
        nodes.restart(copier)
        nodes.settle()
        before = nodes.nodes[lost].status()
        assert nodes.nodes[copier].status()["log"]["first_index"] > before["archive"]["index"] + 10
        nodes.host(lost).change_members("transfer", nodes.peers[copier], learner=False, timeout=20)
        nodes.nodes[lost].close()
        assert nodes.leader() == copier
        down[0] = False
        last = archived(nodes)
        told = nodes.nodes[copier].status()["archive"]
        assert (nodes.leader(), told["gap"]) == (copier, None)
        log = Log(place, told["name"], [])
        indexes = [index for index, _, _ in log.entries(told["begun"])]
        assert indexes == list(range(told["begun"], indexes[-1] + 1)) and indexes[-1] >= last
