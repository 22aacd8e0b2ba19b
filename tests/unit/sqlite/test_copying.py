"""A copy of a database in use, and what a node does with the copy of another."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from django_raftsqlite.sqlite import copying
from django_raftsqlite.sqlite.copying import NoSpace, copy_database, inspect_copy
from django_raftsqlite.sqlite.entry import (
    Entry,
    Item,
    ItemKind,
    RequestId,
    Statement,
    Status,
    Transaction,
    encode_entry,
    encode_transaction,
)
from django_raftsqlite.sqlite.errors import ForeignWrite, NodeFault
from django_raftsqlite.sqlite.machine import StateMachine
from django_raftsqlite.sqlite.readers import ReaderPool

ORIGIN = b"o" * 16


class Node:
    """A state machine fed by hand; term 3."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machine = StateMachine(path, ())
        self.readers = ReaderPool(path, ())
        self.sequence = 0
        if self.machine.applied_index == 0:
            self._apply(Item(ItemKind.OPEN_ORIGIN, ORIGIN))

    def _apply(self, item: Item) -> Any:
        return self.machine.apply(self.machine.applied_index + 1, 3, encode_entry(Entry(1000, (item,))))

    def write(self, sql: str, *parameters: Any) -> None:
        self.sequence += 1
        transaction = Transaction(RequestId(ORIGIN, self.sequence), 1, (Statement(sql, parameters, 1000, 1),))
        ((_, outcome),) = self._apply(Item(ItemKind.TRANSACTION, encode_transaction(transaction)))
        assert outcome.status is Status.DONE, outcome

    def fill(self, rows: int, size: int = 1000) -> None:
        self.write(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ?) "
            "INSERT INTO t(a) SELECT zeroblob(?) FROM c",
            rows,
            size,
        )

    def read(self, sql: str) -> list[tuple[Any, ...]]:
        reader = self.readers.acquire()
        try:
            return list(reader.execute(sql))
        finally:
            self.readers.release(reader)

    def copy(self, target: Path, go_on: Callable[[], object] = lambda: None) -> copying.Copied:
        return copy_database(self.path, target, 0o600, go_on)

    def close(self) -> None:
        self.readers.close()
        self.machine.close()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    made = [Node(tmp_path / "a.sqlite3"), Node(tmp_path / "b.sqlite3")]
    made[0].write("CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
    made[0].fill(2000)
    yield made
    for node in made:
        node.close()


def nothing() -> None:
    pass


def test_a_copy_is_made_while_others_write_and_is_of_one_moment(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit between two of its steps neither shows in it nor makes it begin anew."""
    monkeypatch.setattr(copying, "PAGES_AT_ONCE", 10)
    a, steps = nodes[0], []
    before = a.machine.applied_index

    def write() -> None:
        steps.append(a.machine.applied_index)
        a.write("INSERT INTO t(a) VALUES (1)")

    found = a.copy(tmp_path / "copy", write)
    pages = found.size // found.layout.page_size
    assert len(steps) == -(-pages // 10) > 20
    assert (found.index, found.term, found.layout.page_size) == (before, 3, 4096)
    assert inspect_copy(tmp_path / "copy") == found
    check = copying.open_copy(tmp_path / "copy")
    assert check.execute("SELECT count(*), sum(a = 1) FROM t").fetchall() == [(2000, 0)]
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy"]


def test_a_copy_that_is_ended_leaves_nothing(nodes: list[Node], tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def end() -> None:
        raise Ended

    with pytest.raises(Ended):
        nodes[0].copy(tmp_path / "copy", end)
    assert list(tmp_path.glob("copy*")) == []


def test_no_copy_is_begun_that_does_not_fit_on_the_disk(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10 << 20}))
    with pytest.raises(NoSpace, match="10 MiB are free"):
        nodes[0].copy(tmp_path / "copy")
    assert list(tmp_path.glob("copy*")) == []


def test_a_node_takes_over_all_that_a_copy_holds_and_goes_on_from_there(nodes: list[Node], tmp_path: Path) -> None:
    """Digest and outcomes, too; what the old file held is gone. The same entries give the same then."""
    a, b = nodes
    b.write("CREATE TABLE other(x)")
    b.write("INSERT INTO other VALUES (1)")
    a.write("ANALYZE")
    a.write("CREATE INDEX i ON t(a)")
    a.copy(tmp_path / "copy")
    b.machine.install(tmp_path / "copy", nothing)
    b.sequence = a.sequence
    for node in nodes:
        node.write("INSERT INTO t(a) VALUES (7)")
        node.fill(10)
    assert b.read("SELECT count(*) FROM t") == [(2011,)]
    for name in ("base", "digest", "applied_index", "applied_term", "lineage"):
        assert getattr(a.machine, name) == getattr(b.machine, name)
    assert b.machine.outcome(RequestId(ORIGIN, 2)) == a.machine.outcome(RequestId(ORIGIN, 2)) is not None
    with pytest.raises(apsw.SQLError, match="no such table: other"):
        b.read("SELECT * FROM other")
    assert b.read("PRAGMA integrity_check") == [("ok",)]
    b.close()
    again = Node(b.path)
    assert again.machine.digest == a.machine.digest
    again.close()


def test_who_reads_while_a_copy_is_taken_over_sees_the_old_state_and_then_the_new(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never an error, nor a mixture: a transaction keeps its snapshot, the next one has the new state."""
    monkeypatch.setattr("django_raftsqlite.sqlite.machine.PAGES_AT_ONCE", 20)
    a, b = nodes
    b.write("CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
    b.write("INSERT INTO t(a) VALUES (5)")
    a.write("INSERT INTO t(a) VALUES (5)")
    a.copy(tmp_path / "copy")
    old = b.readers.acquire()
    old.execute("BEGIN")
    assert old.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    seen: list[Any] = []
    ended = threading.Event()

    def poll() -> None:
        try:
            while not ended.is_set():
                seen.append(b.read("SELECT count(*), sum(length(a)) FROM t")[0])
            seen.append(b.read("SELECT count(*), sum(length(a)) FROM t")[0])
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    b.machine.install(tmp_path / "copy", nothing)
    ended.set()
    thread.join()
    assert seen[-1] == (2001, 2_000_001)
    changes = [value for before, value in zip([None, *seen], seen, strict=False) if value != before]
    assert changes in ([(1, 1), (2001, 2_000_001)], [(2001, 2_000_001)])
    assert old.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    b.readers.release(old)


def test_a_take_over_that_is_ended_leaves_the_old_state(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write lock is free again, and the node goes on."""
    monkeypatch.setattr("django_raftsqlite.sqlite.machine.PAGES_AT_ONCE", 20)
    a, b = nodes
    b.write("CREATE TABLE mine(x)")
    index = b.machine.applied_index
    a.copy(tmp_path / "copy")
    calls: list[int] = []

    def end() -> None:
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        b.machine.install(tmp_path / "copy", end)
    assert b.machine.applied_index == index
    b.write("INSERT INTO mine VALUES (1)")
    assert b.read("SELECT * FROM mine") == [(1,)]


def test_a_copy_that_is_not_newer_or_of_another_layout_is_not_taken(nodes: list[Node], tmp_path: Path) -> None:
    """Readers would see an older state, or SQLite would refuse it half way."""
    b = nodes[1]
    b.write("CREATE TABLE mine(x)")
    b.copy(tmp_path / "old")
    b.write("INSERT INTO mine VALUES (1)")
    with pytest.raises(NodeFault, match="cannot replace"):
        b.machine.install(tmp_path / "old", nothing)
    other = tmp_path / "other.sqlite3"
    connection = apsw.Connection(str(other))
    for sql in ("PRAGMA page_size = 8192", "VACUUM"):
        connection.execute(sql).fetchall()
    connection.close()
    c = Node(other)
    for number in range(20):
        c.write(f"CREATE TABLE t{number}(x)")
    assert c.copy(tmp_path / "large").layout.page_size == 8192
    c.close()
    with pytest.raises(NodeFault, match="8192"):
        b.machine.install(tmp_path / "large", nothing)
    b.write("INSERT INTO mine VALUES (2)")


def test_a_copy_is_not_taken_into_a_file_that_something_else_wrote_to(nodes: list[Node], tmp_path: Path) -> None:
    a, b = nodes
    a.copy(tmp_path / "copy")
    foreign = apsw.Connection(str(b.path))
    foreign.execute("CREATE TABLE foreign_table(x)")
    foreign.close()
    with pytest.raises(ForeignWrite):
        b.machine.install(tmp_path / "copy", nothing)


def test_a_node_plans_by_the_statistics_of_the_copy_it_took(nodes: list[Node], tmp_path: Path) -> None:
    """As one that starts now does: a plan may choose which rows a statement changes."""
    a, b = nodes
    schema = ("CREATE TABLE p(x, y)", "CREATE INDEX px ON p(x)", "CREATE INDEX py ON p(y)")
    few_x = "INSERT INTO p SELECT value % 2, value FROM json_each('[' || substr(replace(hex(zeroblob(500)), '00', "
    few_x += "',1'), 2) || ']')"
    for node, swapped in ((a, False), (b, True)):
        for sql in schema:
            node.write(sql)
        node.write(few_x)
        node.write("UPDATE p SET x = rowid % 2, y = rowid" if swapped else "UPDATE p SET x = rowid, y = rowid % 2")
        node.write("ANALYZE")
    query = "EXPLAIN QUERY PLAN SELECT * FROM p WHERE x = 1 AND y = 1"

    def plan(node: Node) -> str:
        return str(node.machine._connection.execute(query).fetchall())

    assert "px" in plan(a) and "py" in plan(b)
    a.write("INSERT INTO t(a) VALUES (1)")
    while a.machine.applied_index <= b.machine.applied_index:
        a.write("INSERT INTO t(a) VALUES (1)")
    a.copy(tmp_path / "copy")
    b.machine.install(tmp_path / "copy", nothing)
    assert plan(b) == plan(a)


def test_a_disk_that_does_not_take_the_copy_is_told(
    nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows then what is on the disk: the log must not be cut."""
    a, b = nodes
    a.copy(tmp_path / "copy")

    def fail(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("django_raftsqlite.sqlite.machine.sync", fail)
    with pytest.raises(OSError, match="Input/output"):
        b.machine.install(tmp_path / "copy", nothing)
