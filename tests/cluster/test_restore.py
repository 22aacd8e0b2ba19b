"""Restores of a running group of real nodes: whole or not at all, and nothing older is applied onto them."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite import dbapi
from django_raftsqlite.exceptions import OperationalError, TransactionConflict
from django_raftsqlite.sqlite.copying import Layout
from django_raftsqlite.sqlite.restoring import prepare
from tests.support.nodes import Group, eventually, group, read, write

ROWS = 3_000


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A file of about 3 MB, in six parts."""
    with contextlib.closing(sqlite3.connect(tmp_path / "plain")) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        connection.executemany("INSERT INTO t (x) VALUES (randomblob(1000))", [()] * ROWS)
        connection.commit()
    prepare(tmp_path / "plain", tmp_path / "prepared", Layout(4096, "UTF-8"), ())
    return tmp_path / "prepared"


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Group]:
    with group(tmp_path, 3, durable=False, log_entries=50) as made:
        made.leader()
        write(made.nodes[0], "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        made.quiet()
        yield made


def restored(trio: Group, lineage: bytes) -> None:
    """All open nodes have the content, the same lineage, version and digest; and what is written goes on."""
    status = trio.settle()
    assert status["lineage"] == lineage.hex()
    assert status["parted"] == 0
    for node in trio.open_nodes():
        assert read(node, "SELECT count(*) FROM t WHERE length(x) = 1000") == [(ROWS,)]
        assert read(node, "PRAGMA integrity_check") == [("ok",)]
        assert node.status()["suspect"] is node.status()["reason"] is None


def test_all_members_have_the_content_of_the_file(trio: Group, prepared: Path) -> None:
    """Sent through a follower; progress is told."""
    told: list[int] = []
    for _ in range(20):
        write(trio.nodes[0], "INSERT INTO t (x) VALUES ('gone')")
    lineage = trio.nodes[trio.follower()].restore(prepared, timeout=20, told=told.append)
    restored(trio, lineage)
    assert told == sorted(told) and len(told) > 5
    for node in trio.nodes:
        write(node, "INSERT INTO t (x) VALUES ('later')")
    trio.settle()


def test_a_member_that_is_away_gets_it_when_it_is_back(trio: Group, prepared: Path) -> None:
    """By the log, or, when that was cut, by a copy."""
    away = trio.follower()
    trio.nodes[away].close()
    lineage = trio.nodes[trio.leader()].restore(prepared, timeout=20)
    for number in range(120):
        write(trio.nodes[trio.leader()], "INSERT INTO t (x) VALUES (?)", number)
    trio.restart(away)
    restored(trio, lineage)


@pytest.mark.parametrize("parts", [0, 3, 6])
def test_a_leader_that_ends_on_the_way_does_not_keep_it_from_being_whole(
    trio: Group, prepared: Path, parts: int
) -> None:
    """The author sends what is not known to be applied to the next leader, under the same ids."""
    leader = trio.leader()
    author = trio.nodes[trio.follower()]
    ended = threading.Event()
    sent = 0

    def told(_bytes: int) -> None:
        nonlocal sent
        if sent == parts:
            trio.nodes[leader].close()
            ended.set()
        sent += 1

    lineage = author.restore(prepared, timeout=30, told=told)
    if not ended.is_set():
        trio.nodes[leader].close()
    restored(trio, lineage)
    trio.restart(leader)
    restored(trio, lineage)


def test_an_author_that_gives_up_on_the_way_has_changed_nothing(trio: Group, prepared: Path) -> None:
    """The parts it sent go when its origin is closed."""
    write(trio.nodes[0], "INSERT INTO t (x) VALUES ('here')")
    lineage = trio.settle()["lineage"]
    author = trio.follower()

    def told(sent: int) -> None:
        if sent > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trio.nodes[author].restore(prepared, timeout=20, told=told)
    trio.nodes[author].close()
    trio.restart(author)
    write(trio.nodes[author], "INSERT INTO t (x) VALUES ('here')")
    assert trio.settle()["lineage"] == lineage
    for node in trio.nodes:
        assert read(node, "SELECT x FROM t") == [("here",), ("here",)]
        eventually(lambda node=node: node.status()["parted"] == 0, "the parts are gone")


def test_a_transaction_that_was_open_is_a_conflict_even_where_all_looks_the_same(trio: Group, prepared: Path) -> None:
    """What was decided on the former content must not be written onto another."""
    node = trio.nodes[trio.follower()]
    with contextlib.closing(dbapi.connect(node.config, node=node)) as connection:
        reading: Any = connection.cursor()
        reading.execute("BEGIN")
        reading.execute("SELECT 1")
        reading.fetchall()
        node.restore(prepared, timeout=20)
        with pytest.raises(TransactionConflict, match="restored"):
            reading.execute("INSERT INTO t (x) VALUES (1)")
        reading.execute("ROLLBACK")
        reading.execute("BEGIN")
        reading.execute("INSERT INTO t (x) VALUES (1)")
        node_2 = trio.nodes[trio.leader()]
        thread = threading.Thread(target=node_2.restore, args=(prepared,), kwargs={"timeout": 20})
        thread.start()
        # It takes the turn of whoever is idle, and COMMIT finds another lineage.
        eventually(lambda: not thread.is_alive(), "it is restored")
        with pytest.raises(TransactionConflict):
            reading.execute("COMMIT")
    thread.join()
    trio.settle()
    assert read(node, "SELECT count(*) FROM t") == [(ROWS,)]


def test_writers_go_on_and_what_they_were_told_is_true(trio: Group, prepared: Path) -> None:
    """Each write is in the former content, or behind the restore on all nodes; none fails, none is doubled."""
    stop = threading.Event()
    counts: list[int] = []
    errors: list[BaseException] = []

    def write_all_the_time(number: int) -> None:
        done = 0
        try:
            while not stop.is_set():
                write(trio.nodes[number], "INSERT INTO t (x) VALUES (?)", f"w{number}-{done}")
                done += 1
        except BaseException as error:
            errors.append(error)
        counts.append(done)

    threads = [threading.Thread(target=write_all_the_time, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        lineage = trio.nodes[0].restore(prepared, timeout=20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    restored(trio, lineage)
    left = read(trio.nodes[0], "SELECT x, count(*) FROM t WHERE length(x) < 1000 GROUP BY x HAVING count(*) > 1")
    assert left == []
    print(f"{sum(counts)} writes, {read(trio.nodes[0], 'SELECT count(*) FROM t')[0][0] - ROWS} behind the restore")


def test_a_node_that_is_stopped_before_it_applies_it_does_so_when_it_is_back(trio: Group, prepared: Path) -> None:
    """The parts are in its file and the entry in its log."""
    lineage = trio.nodes[0].restore(prepared, timeout=20)
    for number in range(3):
        trio.nodes[number].close()
    for number in range(3):
        trio.restart(number)
    restored(trio, lineage)


def test_what_does_not_fit_is_refused_by_the_group_and_nothing_changes(trio: Group, tmp_path: Path) -> None:
    """The author is told why."""
    (tmp_path / "bad").write_bytes(b"no database" * 1000)
    with pytest.raises(OperationalError, match=r"nothing was restored.*no SQLite database"):
        trio.nodes[0].restore(tmp_path / "bad", timeout=20)
    assert trio.settle()["lineage"] == bytes(16).hex()


def test_a_fresh_group_takes_it_as_the_first_thing(tmp_path: Path, prepared: Path) -> None:
    """New machines after everything was lost; tokens of what was seen before keep nobody waiting."""
    with group(tmp_path, 3, durable=False) as nodes:
        lineage = nodes.nodes[nodes.follower()].restore(prepared, timeout=20)
        restored(nodes, lineage)
        for node in nodes.nodes:
            assert not node.reach(bytes(16), 1, timeout=10)
            assert node.reach(lineage, node.status()["version"], timeout=10)


def test_a_fresh_group_of_one_takes_it(tmp_path: Path, prepared: Path) -> None:
    """With no quorum to ask but itself."""
    with group(tmp_path, 1, durable=True) as nodes:
        lineage = nodes.nodes[0].restore(prepared, timeout=20)
        restored(nodes, lineage)
        nodes.nodes[0].close()
        nodes.restart(0)
        restored(nodes, lineage)
