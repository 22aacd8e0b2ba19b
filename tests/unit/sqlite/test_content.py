"""The hash over a database's content: the same for the same content however it came about, another for any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from django_raftsqlite.node.worker import Stopped
from django_raftsqlite.sqlite import content
from django_raftsqlite.sqlite.content import Content
from django_raftsqlite.sqlite.entry import Item, ItemKind

from .replay import Replica

Make = Callable[..., Replica]

SCHEMA = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)",
    "CREATE INDEX by_a ON t(a)",
    "CREATE TABLE plain(a)",
    "CREATE TABLE keyed(k TEXT, n INTEGER, v, PRIMARY KEY (n DESC, k)) WITHOUT ROWID",
    "CREATE TABLE named(rowid, _rowid_, oid)",
    "CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, a)",
    'CREATE TABLE "a ""quoted"" name"("a ""column""")',
    "CREATE VIRTUAL TABLE words USING fts5(text)",
    "CREATE VIEW seen AS SELECT a FROM t",
)
ROWS = (
    "INSERT INTO t(a, b) VALUES (1, 1.5), ('text', x'00ff'), (NULL, 9007199254740993), ('ä', -1)",
    "INSERT INTO plain VALUES (1), (2), (CAST(x'ff61' AS TEXT))",
    "INSERT INTO keyed VALUES ('a', 1, 'x'), ('b', 1, 'y'), ('a', 2, 'z')",
    "INSERT INTO named VALUES (1, 2, 3), (0, 0, 0)",
    "INSERT INTO counted(a) VALUES (1), (2)",
    """INSERT INTO "a ""quoted"" name" VALUES (randomblob(100000))""",
    "INSERT INTO words VALUES ('some words'), ('more words')",
)


def found(replica: Replica) -> Content:
    connection = replica.machine.pin()
    try:
        return content.hash_content(connection, lambda: None)
    finally:
        content.close(connection)


@pytest.fixture
def replica(make_replica: Make) -> Replica:
    made = make_replica(*SCHEMA)
    for sql in ROWS:
        made.done(sql)
    return made


def test_the_same_entries_give_the_same_content(make_replica: Make) -> None:
    first, second = make_replica(*SCHEMA), make_replica(*SCHEMA)
    entries = [first.next(sql) for sql in ROWS]
    for transaction in entries:
        first.apply(transaction)
    second.apply(*entries)
    # As many entries of the log, so that what the state says of itself is the same.
    while second.machine.applied_index < first.machine.applied_index:
        second.apply()
    before, after = found(first), found(second)
    assert before == after
    assert before.size > 100_000
    assert before.problem is None


def test_how_it_lies_in_the_file_does_not_matter(replica: Replica) -> None:
    before = found(replica)
    raw = apsw.Connection(str(replica.path))
    raw.execute("PRAGMA page_size = 8192")
    raw.execute("VACUUM")
    raw.execute("INSERT INTO words(words) VALUES ('optimize')")
    raw.execute("REINDEX")
    raw.close()
    assert found(replica) == before


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE t SET b = 1 WHERE id = 1",  # 1.5
        "UPDATE t SET a = '1' WHERE id = 1",  # 1
        "UPDATE t SET b = 9007199254740992 WHERE id = 3",
        "UPDATE t SET a = x'74657874' WHERE id = 2",  # the same bytes, as a BLOB
        "UPDATE t SET id = 7 WHERE id = 4",
        "UPDATE plain SET rowid = 9 WHERE a = 2",
        "UPDATE plain SET a = CAST(x'fe61' AS TEXT) WHERE rowid = 3",
        "UPDATE keyed SET v = NULL WHERE n = 2",
        "UPDATE named SET oid = 4 WHERE rowid = 1",
        "UPDATE sqlite_sequence SET seq = 3",
        "DELETE FROM words WHERE rowid = 2",
        "CREATE INDEX by_b ON t(b)",
        "DROP VIEW seen",
        "PRAGMA user_version = 2",
        "UPDATE _raftsqlite_state SET time = time + 1",
        "DELETE FROM _raftsqlite_outcome",
        "UPDATE _raftsqlite_origin SET low_water = 2",
    ],
)
def test_any_difference_is_found(replica: Replica, sql: str) -> None:
    before = found(replica)
    raw = apsw.Connection(str(replica.path))
    raw.execute(sql)
    assert raw.changes() or not sql.startswith(("UPDATE", "DELETE")), "the test changed nothing"
    raw.close()
    after = found(replica)
    assert after.digest != before.digest
    assert after.problem is None


def damage(path: Path, before: bytes, after: bytes) -> None:
    raw = apsw.Connection(str(path))
    raw.execute("SELECT 1 FROM sqlite_schema").fetchall()  # so that it knows of the WAL
    raw.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    raw.close()
    data = path.read_bytes()
    assert before in data
    path.write_bytes(data.replace(before, after))


def test_an_index_that_does_not_fit_its_table_is_found(make_replica: Make) -> None:
    """Queries by it give wrong answers, although every row is right."""
    replica = make_replica("CREATE TABLE t(id INTEGER PRIMARY KEY, pad, a)", "CREATE INDEX by_a ON t(a, pad)")
    replica.done("INSERT INTO t(pad, a) VALUES ('in both', 'a word')")
    before = found(replica)
    assert before.problem is None
    # In the index the two are the other way round.
    damage(replica.path, b"a wordin both", b"a vordin both")
    after = found(replica)
    assert after.digest != before.digest
    assert after.problem is not None and after.problem.startswith("integrity check: ")


def test_a_file_that_cannot_be_read_is_a_problem_and_no_exception(replica: Replica) -> None:
    for _ in range(8):
        replica.done("INSERT INTO plain VALUES (zeroblob(3000) || x'77')")
    sound = found(replica)
    raw = apsw.Connection(str(replica.path))
    root: Any = raw.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'keyed'").fetchall()
    raw.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    raw.close()
    data = bytearray(replica.path.read_bytes())
    data[(root[0][0] - 1) * 4096] = 0x77  # no such kind of page
    replica.path.write_bytes(data)
    after = found(replica)
    assert after.problem is not None and "malformed" in after.problem
    assert after.digest != sound.digest


def test_what_is_committed_meanwhile_is_not_part_of_it(replica: Replica) -> None:
    before = found(replica)
    connection = replica.machine.pin()
    replica.done("DELETE FROM t")
    try:
        assert content.hash_content(connection, lambda: None) == before
    finally:
        content.close(connection)
    assert found(replica).digest != before.digest


@pytest.mark.parametrize("after", [0, 1, 5])
def test_it_can_be_ended_at_any_time(replica: Replica, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_STEPS", 10)
    looks = 0

    def go_on() -> None:
        nonlocal looks
        looks += 1
        if looks > after:
            raise Stopped

    connection = replica.machine.pin()
    with pytest.raises(Stopped):
        content.hash_content(connection, go_on)
    content.close(connection)


def test_an_entry_orders_a_verification_of_the_state_after_it(replica: Replica) -> None:
    """It changes the running digest like any other item, and nothing else."""
    version, digest = replica.machine.base, replica.machine.digest
    replica.apply(Item(ItemKind.VERIFY, b"v" * 16), replica.next("INSERT INTO plain VALUES ('in the same entry')"))
    assert replica.machine.verifications == [b"v" * 16]
    assert replica.machine.digest != digest and replica.machine.base != version
    replica.done("INSERT INTO plain VALUES (3)")
    assert replica.machine.verifications == []
