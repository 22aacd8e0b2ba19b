"""A transaction is a read snapshot until its first write, then a write session; COMMIT sends its net writes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import apsw
import pytest

from django_raftsqlite import dbapi
from django_raftsqlite.dbapi import reading, script
from django_raftsqlite.dbapi.freshness import LOCAL, Freshness
from django_raftsqlite.exceptions import (
    CommitOutcomeUnknown,
    IntegrityError,
    LeaseTimeout,
    NotSupportedError,
    OperationalError,
    TransactionConflict,
    Unavailable,
)
from django_raftsqlite.sqlite.classify import FOR_UPDATE, FOR_UPDATE_NOWAIT
from django_raftsqlite.sqlite.entry import Statement
from tests.support.direct_node import DirectNode

LEADER = Freshness("leader")
Connect = Callable[..., dbapi.Connection]

NUMBERS = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT 1000) SELECT i FROM n"


@pytest.fixture
def db(connection: dbapi.Connection) -> dbapi.Connection:
    connection.executescript(
        f"""
        CREATE TABLE account(id integer PRIMARY KEY, balance integer NOT NULL CHECK (balance >= 0));
        INSERT INTO account VALUES (1, 100), (2, 100);
        CREATE TABLE note(text);
        CREATE TABLE number(i integer PRIMARY KEY);
        INSERT INTO number {NUMBERS};
        CREATE TABLE child(id integer PRIMARY KEY, account integer NOT NULL REFERENCES account(id));
        """
    )
    return connection


def rows(connection: dbapi.Connection, sql: str, parameters: Any = ()) -> list[Any]:
    found: list[Any] = connection.execute(sql, parameters).fetchall()
    return found


def sent(node: DirectNode) -> list[str]:
    """The statements of the transaction that was replicated last."""
    return [statement.sql for statement in node.submitted[-1].statements]


def test_a_transaction_that_only_reads_asks_nobody(db: dbapi.Connection, node: DirectNode) -> None:
    """Reads, savepoints and COMMIT need no lease and send nothing."""
    before = len(node.submitted)
    node.fail_next = AssertionError("the node was asked")
    db.execute("BEGIN")
    db.execute("SAVEPOINT a")
    rows(db, "SELECT * FROM account")
    db.execute("RELEASE a")
    db.execute("COMMIT")
    assert len(node.submitted) == before
    assert not node.leased


def test_reads_of_a_transaction_see_one_state(db: dbapi.Connection, node: DirectNode) -> None:
    """The snapshot is opened by the first read, and stays."""
    db.execute("BEGIN")
    node.foreign("UPDATE account SET balance = 1 WHERE id = 1")
    assert rows(db, "SELECT balance FROM account") == [(1,), (100,)]
    node.foreign("UPDATE account SET balance = 2 WHERE id = 1")
    assert rows(db, "SELECT balance FROM account") == [(1,), (100,)]
    db.execute("COMMIT")
    assert rows(db, "SELECT balance FROM account") == [(2,), (100,)]


def test_a_transaction_sees_its_own_writes(db: dbapi.Connection, connect: Connect) -> None:
    """And nobody else does before COMMIT."""
    other = connect()
    db.execute("BEGIN")
    db.execute("UPDATE account SET balance = balance - 30 WHERE id = 1")
    assert rows(db, "SELECT balance FROM account") == [(70,), (100,)]
    assert rows(other, "SELECT balance FROM account") == [(100,), (100,)]
    db.execute("COMMIT")
    assert rows(other, "SELECT balance FROM account") == [(70,), (100,)]


def test_commit_sends_the_net_writes_with_their_base(db: dbapi.Connection, node: DirectNode) -> None:
    """What ROLLBACK TO undid is not sent, reads and savepoint commands are not sent."""
    db.execute("BEGIN")
    rows(db, "SELECT * FROM account")
    db.execute("INSERT INTO note VALUES ('kept')")
    db.execute("SAVEPOINT a")
    db.execute("INSERT INTO note VALUES ('undone')")
    db.execute("SAVEPOINT b")
    db.execute("INSERT INTO note VALUES ('undone too')")
    db.execute("RELEASE b")
    db.execute("ROLLBACK TO a")
    db.execute("INSERT INTO note VALUES (?)", ("after",))
    base = node.base
    db.execute("COMMIT")
    assert sent(node) == ["INSERT INTO note VALUES ('kept')", "INSERT INTO note VALUES (?)"]
    assert node.submitted[-1].base == base
    assert all(statement.expect is not None for statement in node.submitted[-1].statements)
    assert rows(db, "SELECT text FROM note") == [("kept",), ("after",)]


def test_a_transaction_whose_writes_were_all_undone_sends_nothing(db: dbapi.Connection, node: DirectNode) -> None:
    """It gives the lease back, and no version is made."""
    before = node.base
    db.execute("BEGIN")
    db.execute("SAVEPOINT a")
    db.execute("INSERT INTO note VALUES (1)")
    db.execute("ROLLBACK TO a")
    db.execute("COMMIT")
    assert node.base == before
    assert not node.leased


def test_savepoints_set_before_the_first_write_work_after_it(db: dbapi.Connection, node: DirectNode) -> None:
    """They are virtual at first and made on the session when it opens, nested as they were."""
    db.execute("BEGIN")
    db.execute("SAVEPOINT outer_one")
    rows(db, "SELECT 1")
    db.execute('SAVEPOINT "inner ""one"""')
    db.execute("INSERT INTO note VALUES ('a')")
    db.execute('ROLLBACK TO "INNER ""one"""')
    assert rows(db, "SELECT * FROM note") == []
    db.execute("INSERT INTO note VALUES ('b')")
    db.execute("ROLLBACK TO outer_one")
    assert rows(db, "SELECT * FROM note") == []
    db.execute("INSERT INTO note VALUES ('c')")
    db.execute("RELEASE outer_one")
    db.execute("COMMIT")
    assert sent(node) == ["INSERT INTO note VALUES ('c')"]


def test_a_savepoint_released_before_the_first_write_is_gone(db: dbapi.Connection) -> None:
    db.execute("BEGIN")
    db.execute("SAVEPOINT a")
    db.execute("RELEASE a")
    db.execute("INSERT INTO note VALUES (1)")
    with pytest.raises(OperationalError, match="no such savepoint: a"):
        db.execute("ROLLBACK TO a")


def test_a_commit_elsewhere_that_changes_no_answer_is_no_conflict(db: dbapi.Connection, node: DirectNode) -> None:
    """The base moved, the reads are run again on the new state, and give the same."""
    db.execute("BEGIN")
    assert rows(db, "SELECT balance FROM account WHERE id = ?", (1,)) == [(100,)]
    with pytest.raises(OperationalError, match="no such table"):
        db.execute("SELECT * FROM nowhere")
    node.foreign("INSERT INTO note VALUES ('elsewhere')")
    db.execute("UPDATE account SET balance = balance - 1 WHERE id = 1")
    assert rows(db, "SELECT text FROM note") == [("elsewhere",)]
    db.execute("COMMIT")
    assert rows(db, "SELECT balance FROM account") == [(99,), (100,)]


@pytest.mark.parametrize(
    ("read", "parameters", "change"),
    [
        ("SELECT balance FROM account WHERE id = ?", (1,), "UPDATE account SET balance = 5 WHERE id = 1"),
        ("SELECT balance FROM account WHERE id = :id", {"id": 1}, "UPDATE account SET balance = 5 WHERE id = 1"),
        ("SELECT 1 FROM account WHERE balance = 7", (), "UPDATE account SET balance = 7 WHERE id = 2"),
        ("SELECT count(*) FROM account", (), "INSERT INTO account VALUES (3, 0)"),
        ("SELECT i FROM number", (), "UPDATE number SET i = 5000 WHERE i = 1000"),
        ("SELECT balance FROM account", (), "ALTER TABLE account RENAME COLUMN balance TO amount"),
        ("PRAGMA table_info(note)", (), "ALTER TABLE note ADD COLUMN more"),
        ("SELECT i FROM number WHERE i = 1", (), "DELETE FROM number"),
    ],
)
def test_a_changed_answer_is_a_conflict(
    db: dbapi.Connection, node: DirectNode, read: str, parameters: Any, change: str
) -> None:
    """The first write after a commit that changes what was read fails, names the read, and can be retried."""
    db.execute("BEGIN")
    rows(db, read, parameters)
    rows(db, "SELECT 'not this one'")
    node.foreign(change)
    with pytest.raises(TransactionConflict, match="retried") as raised:
        db.execute("INSERT INTO note VALUES (1)")
    assert repr(read) in str(raised.value)
    assert not node.leased
    db.rollback()
    assert rows(db, "SELECT * FROM note") == []


def test_an_error_that_was_seen_is_part_of_what_was_read(db: dbapi.Connection, node: DirectNode) -> None:
    """A table that was missing and is there now: another answer."""
    db.execute("BEGIN")
    with pytest.raises(OperationalError):
        db.execute("SELECT * FROM later")
    node.foreign("CREATE TABLE later(a)")
    with pytest.raises(TransactionConflict, match="later"):
        db.execute("INSERT INTO note VALUES (1)")


def test_a_read_undone_by_a_savepoint_still_counts(db: dbapi.Connection, node: DirectNode) -> None:
    """The application saw it and may have acted on it, whatever was rolled back since."""
    db.execute("BEGIN")
    db.execute("SAVEPOINT a")
    rows(db, "SELECT balance FROM account")
    db.execute("ROLLBACK TO a")
    db.execute("RELEASE a")
    node.foreign("UPDATE account SET balance = 1")
    with pytest.raises(TransactionConflict):
        db.execute("INSERT INTO note VALUES (1)")


def test_a_transaction_that_read_nothing_never_conflicts(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("BEGIN")
    node.foreign("UPDATE account SET balance = 1")
    db.execute("UPDATE account SET balance = balance + 1")
    db.execute("COMMIT")
    assert rows(db, "SELECT balance FROM account") == [(2,), (2,)]


def test_time_and_randomness_are_the_same_when_read_again(db: dbapi.Connection, node: DirectNode) -> None:
    """Each read has its clock and seed: running it again on a newer state is no false conflict."""
    db.execute("BEGIN")
    rows(db, "SELECT random(), hex(randomblob(8)), strftime('%Y-%m-%d %H:%M:%f', 'now'), julianday('now')")
    first = rows(db, "SELECT random()")
    assert rows(db, "SELECT random()") != first
    node.foreign("INSERT INTO note VALUES (1)")
    db.execute("INSERT INTO note VALUES (2)")
    db.execute("COMMIT")
    assert rows(db, "SELECT count(*) FROM note") == [(2,)]


def test_only_the_rows_that_were_read_are_compared(db: dbapi.Connection, node: DirectNode) -> None:
    """A SELECT closed half read: a change behind what was read of it is no conflict, one before it is."""
    for place, conflict in ((999, False), (2, True)):
        db.execute("BEGIN")
        cursor = db.execute("SELECT i FROM number ORDER BY i")
        cursor.fetchmany(2)
        cursor.close()
        node.foreign("UPDATE number SET i = i + 10000 WHERE i = ?", (place,))
        if conflict:
            with pytest.raises(TransactionConflict):
                db.execute("INSERT INTO note VALUES (1)")
        else:
            db.execute("INSERT INTO note VALUES (1)")
        db.rollback()


def test_a_half_read_select_is_read_to_its_end_before_the_first_write(db: dbapi.Connection) -> None:
    """It gives the rows of its own snapshot, and counts as wholly read."""
    db.execute("BEGIN")
    cursor = db.execute("SELECT i FROM number ORDER BY i")
    assert cursor.fetchone() == (1,)
    db.execute("DELETE FROM number")
    assert rows(db, "SELECT count(*) FROM number") == [(0,)]
    assert [i for (i,) in cursor] == list(range(2, 1001))
    db.execute("COMMIT")


def test_a_half_read_select_is_compared_to_its_end(db: dbapi.Connection, node: DirectNode) -> None:
    """`for o in qs.iterator(): o.save()` conflicts when any of its rows changed, and only then."""
    for sql, conflict in (("INSERT INTO note VALUES (1)", False), ("DELETE FROM number WHERE i = 999", True)):
        db.execute("BEGIN")
        cursor = db.execute("SELECT i FROM number ORDER BY i")
        cursor.fetchone()
        node.foreign(sql)
        if conflict:
            with pytest.raises(TransactionConflict, match="number"):
                db.execute("UPDATE number SET i = i WHERE i = 1")
        else:
            db.execute("UPDATE number SET i = i WHERE i = 1")
        db.rollback()


def test_too_many_rows_to_drain_is_an_error_that_names_the_limit(
    db: dbapi.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded; the transaction goes on and the SELECT can be read on."""
    monkeypatch.setattr(reading, "DRAIN_LIMIT", 300)
    db.execute("BEGIN")
    cursor = db.execute("SELECT i FROM number ORDER BY i")
    assert cursor.fetchone() == (1,)
    with pytest.raises(OperationalError, match="300 rows"):
        db.execute("INSERT INTO note VALUES (1)")
    assert [i for (i,) in cursor] == list(range(2, 1001))
    db.execute("INSERT INTO note VALUES (1)")
    db.execute("COMMIT")


def test_a_script_that_is_too_long_is_a_conflict_only_when_the_state_moved(
    db: dbapi.Connection, node: DirectNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LIMIT", 3000)
    for moved in (False, True):
        db.execute("BEGIN")
        for _ in range(20):
            rows(db, "SELECT 1")
        if moved:
            node.foreign("INSERT INTO note VALUES (1)")
            with pytest.raises(TransactionConflict, match="3000 bytes"):
                db.execute("INSERT INTO note VALUES (2)")
        else:
            db.execute("INSERT INTO note VALUES (2)")
        db.rollback()


def test_large_answers_are_remembered_as_a_digest(db: dbapi.Connection, node: DirectNode) -> None:
    """However it was fetched, the digest is that of the rows."""
    db.execute("BEGIN")
    reader = db.execute("SELECT i FROM number ORDER BY i")
    while reader.fetchmany(7):
        pass
    executor: Any = db._executor
    (read,) = executor.transaction._script._items
    assert read._kept is None
    assert read.count == 1000
    assert read.complete
    node.foreign("INSERT INTO note VALUES (1)")
    db.execute("INSERT INTO note VALUES (2)")
    assert len(rows(db, "SELECT i FROM number")) == 1000
    assert executor.transaction._script._items[-1]._kept is None, "nor are those that came at once"
    db.rollback()


def test_an_integer_is_not_the_same_answer_as_an_equal_float() -> None:
    read = script.Read(Statement("SELECT 1", None, 0, 0))
    read.add([(1,)])
    read.complete = True
    assert read.same_rows([(1,)])
    assert not read.same_rows([(1.0,)])
    assert not read.same_rows([(1,), (1,)])
    assert not read.same_rows([])


def test_for_update_takes_the_lease_and_reads_the_newest_state(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("BEGIN")
    node.foreign("UPDATE account SET balance = 50 WHERE id = 1")
    assert rows(db, f"SELECT balance FROM account WHERE id = 1 {FOR_UPDATE}") == [(50,)]
    assert node.leased
    db.execute("COMMIT")
    assert not node.leased


def test_for_update_after_a_read_that_changed_is_a_conflict(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("BEGIN")
    rows(db, "SELECT balance FROM account WHERE id = 1")
    node.foreign("UPDATE account SET balance = 50 WHERE id = 1")
    with pytest.raises(TransactionConflict):
        db.execute(f"SELECT balance FROM account WHERE id = 1 {FOR_UPDATE}")


def test_a_held_lease_is_database_is_locked(db: dbapi.Connection, connect: Connect, node: DirectNode) -> None:
    """The transaction that did not get it goes on as it was, and may try again."""
    other = connect()
    other.execute("BEGIN IMMEDIATE")
    db.execute("BEGIN")
    assert rows(db, "SELECT count(*) FROM account") == [(2,)]
    for statement in ("INSERT INTO note VALUES (1)", f"SELECT 1 {FOR_UPDATE_NOWAIT}"):
        db.timeout = 0.2
        with pytest.raises(LeaseTimeout, match="database is locked"):
            db.execute(statement)
    db.timeout = 30.0
    assert rows(db, "SELECT count(*) FROM account") == [(2,)]
    other.rollback()
    db.execute("INSERT INTO note VALUES (1)")
    db.execute("COMMIT")


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
def test_begin_immediate_takes_the_lease_at_once(db: dbapi.Connection, node: DirectNode, mode: str) -> None:
    db.execute(f"BEGIN {mode}")
    assert node.leased
    db.execute("ROLLBACK")
    assert not node.leased


def test_begin_immediate_that_fails_leaves_autocommit(db: dbapi.Connection, node: DirectNode) -> None:
    node.fail_next = Unavailable("no leader is known", "no leader")
    with pytest.raises(Unavailable):
        db.execute("BEGIN IMMEDIATE")
    assert not db.in_transaction


@pytest.mark.parametrize("moved", [False, True])
def test_a_transaction_that_lost_its_place_is_run_again_and_goes_on_with_the_same_answers(
    db: dbapi.Connection, node: DirectNode, moved: bool
) -> None:
    """Whether the lease was lost, or only what lay below was applied."""
    db.execute("BEGIN")
    assert rows(db, "SELECT balance FROM account WHERE id = 1") == [(100,)]
    db.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
    node.foreign("INSERT INTO note VALUES ('in between')", moved=moved)
    assert rows(db, "SELECT balance FROM account WHERE id = 1") == [(90,)]
    node.foreign("INSERT INTO note VALUES ('again')", moved=moved)
    db.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
    node.foreign("INSERT INTO note VALUES ('before COMMIT')", moved=moved)
    db.execute("COMMIT")
    assert not node.leased
    assert rows(db, "SELECT balance FROM account WHERE id = 1") == [(80,)]
    assert rows(db, "SELECT count(*) FROM note") == [(3,)]


@pytest.mark.parametrize("moved", [False, True])
def test_a_transaction_that_lost_its_place_is_lost_when_an_answer_is_another_now(
    db: dbapi.Connection, node: DirectNode, moved: bool
) -> None:
    """The error names the statement; every further statement says so, until ROLLBACK ends it."""
    db.execute("BEGIN")
    assert rows(db, "SELECT balance FROM account WHERE id = 1") == [(100,)]
    db.execute("UPDATE account SET balance = 0 WHERE id = 2")
    node.foreign("UPDATE account SET balance = 1 WHERE id = 1", moved=moved)
    with pytest.raises(TransactionConflict, match="SELECT balance FROM account WHERE id = 1"):
        db.execute("INSERT INTO note VALUES (1)")
    for statement in ("SELECT 1", "INSERT INTO note VALUES (1)", "SAVEPOINT a", "COMMIT", "BEGIN"):
        with pytest.raises(TransactionConflict):
            db.execute(statement)
    assert db.in_transaction
    db.execute("ROLLBACK")
    assert not db.in_transaction
    assert not node.leased
    assert rows(db, "SELECT balance FROM account") == [(1,), (100,)]


def test_a_write_that_changes_other_rows_now_is_another_answer(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("BEGIN")
    assert db.execute("UPDATE account SET balance = 0 WHERE balance = 100").rowcount == 2
    node.foreign("UPDATE account SET balance = 50 WHERE id = 1")
    with pytest.raises(TransactionConflict, match="UPDATE account SET balance = 0"):
        db.commit()
    db.rollback()
    assert not db.in_transaction
    assert rows(db, "SELECT balance FROM account") == [(50,), (100,)]


def test_an_error_that_chose_the_branch_is_an_answer_although_its_savepoint_was_rolled_back(
    db: dbapi.Connection, node: DirectNode
) -> None:
    """The shape of get_or_create(): "it exists already" must still be so when the transaction is run again."""
    db.execute("BEGIN")
    db.execute("SAVEPOINT s")
    with pytest.raises(IntegrityError):
        db.execute("INSERT INTO account VALUES (1, 0)")
    db.execute("ROLLBACK TO s")
    db.execute("RELEASE s")
    db.execute("INSERT INTO note VALUES ('already claimed')")
    node.foreign("DELETE FROM account WHERE id = 1")
    with pytest.raises(TransactionConflict, match="INSERT INTO account"):
        db.commit()
    db.rollback()
    assert rows(db, "SELECT count(*) FROM note") == [(0,)]


def test_an_error_that_a_read_on_scratch_gave_is_an_answer(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("INSERT INTO note VALUES ('{')")
    db.execute("BEGIN")
    db.execute("INSERT INTO account VALUES (3, 0)")
    with pytest.raises(OperationalError, match="malformed JSON"):
        db.execute("SELECT json(text) FROM note")
    db.execute("UPDATE account SET balance = 7 WHERE id = 3")
    node.foreign("UPDATE note SET text = '{}'")
    with pytest.raises(TransactionConflict, match="json"):
        db.commit()
    db.rollback()
    assert rows(db, "SELECT count(*) FROM account") == [(2,)]


def test_savepoints_are_where_they_were_after_a_transaction_was_run_again(
    db: dbapi.Connection, node: DirectNode
) -> None:
    db.execute("BEGIN")
    db.execute("SAVEPOINT a")
    db.execute("INSERT INTO note VALUES ('a')")
    db.execute("SAVEPOINT b")
    db.execute("INSERT INTO note VALUES ('b')")
    node.foreign("UPDATE account SET balance = 1 WHERE id = 1")
    db.execute("ROLLBACK TO b")
    node.foreign("UPDATE account SET balance = 2 WHERE id = 1", moved=True)
    assert rows(db, "SELECT * FROM note") == [("a",)]
    db.execute("RELEASE a")
    node.foreign("UPDATE account SET balance = 3 WHERE id = 1")
    db.execute("COMMIT")
    assert rows(db, "SELECT * FROM note") == [("a",)]
    assert rows(db, "SELECT balance FROM account WHERE id = 1") == [(3,)]


def test_an_inner_savepoint_is_undone_also_where_no_reader_is_to_be_had(
    db: dbapi.Connection, node: DirectNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing. Django hides its errors and would end the whole as if all were well."""

    def refuse() -> None:
        raise Unavailable("node n1 is being restored", reason="failed")

    db.execute("BEGIN")
    db.execute("UPDATE account SET balance = 1 WHERE id = 1")
    db.execute("SAVEPOINT inner")
    db.execute("UPDATE account SET balance = 2 WHERE id = 1")
    with monkeypatch.context() as patch:
        patch.setattr(node.readers, "permit", lambda: 1)  # the file was replaced
        patch.setattr(node.readers, "acquire", refuse)
        with pytest.raises(Unavailable):
            db.execute("PRAGMA cache_size")
        db.execute("ROLLBACK TO inner")
        db.execute("RELEASE inner")
    db.execute("COMMIT")
    assert rows(db, "SELECT balance FROM account WHERE id = 1") == [(1,)]


def test_the_same_clock_and_chance_when_run_again(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("BEGIN")
    seen = rows(db, "SELECT random(), julianday('now')")
    db.execute("INSERT INTO note VALUES (random())")
    note = rows(db, "SELECT * FROM note")
    node.foreign("UPDATE account SET balance = 1 WHERE id = 1")
    db.execute("COMMIT")
    assert rows(db, "SELECT * FROM note") == note
    assert seen


def test_a_deferred_foreign_key_stays_deferred_when_run_again(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("PRAGMA defer_foreign_keys = 1")
    db.execute("BEGIN")
    db.execute("INSERT INTO note VALUES (1)")
    node.foreign("UPDATE account SET balance = 1 WHERE id = 1")
    db.execute("COMMIT")
    assert [s.sql for s in node.submitted[-1].statements] == [
        "PRAGMA defer_foreign_keys = 1",
        "INSERT INTO note VALUES (1)",
    ]


def test_a_statement_that_was_interrupted_ends_the_transaction(
    db: dbapi.Connection, node: DirectNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been executed; COMMIT must not send something else than the application saw."""
    db.execute("BEGIN")
    db.execute("UPDATE account SET balance = 0")
    executor: Any = db._executor

    def interrupted(_statement: Statement) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executor.transaction.session, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        db.execute("INSERT INTO note VALUES (1)")
    assert not node.leased
    with pytest.raises(TransactionConflict, match="KeyboardInterrupt"):
        db.execute("COMMIT")
    db.execute("ROLLBACK")
    assert rows(db, "SELECT balance FROM account") == [(100,), (100,)]
    db.execute("INSERT INTO note VALUES (2)")


def test_a_lease_that_does_not_come_back_in_time_ends_the_transaction(
    db: dbapi.Connection, connect: Connect, node: DirectNode
) -> None:
    db.execute("BEGIN")
    db.execute("UPDATE account SET balance = 0")
    node.foreign("INSERT INTO note VALUES ('in between')")
    node.fail_next = LeaseTimeout("database is locked: somebody else")
    with pytest.raises(TransactionConflict, match="somebody else"):
        db.execute("INSERT INTO note VALUES (1)")
    db.rollback()
    assert rows(db, "SELECT balance FROM account") == [(100,), (100,)]


def test_after_an_unknown_outcome_rollback_does_nothing(db: dbapi.Connection, node: DirectNode) -> None:
    """Django calls rollback() after a failed commit: it must not fail, and the connection goes on."""
    db.execute("BEGIN")
    db.execute("UPDATE account SET balance = 0 WHERE id = 1")
    node.fail_next = CommitOutcomeUnknown("it may have been committed")
    with pytest.raises(CommitOutcomeUnknown):
        db.commit()
    assert not db.in_transaction
    db.rollback()
    db.rollback()
    assert not node.leased
    assert rows(db, "SELECT balance FROM account") == [(100,), (100,)]
    db.execute("INSERT INTO note VALUES (1)")


def test_or_rollback_ends_the_transaction_and_frees_the_lease(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("BEGIN")
    db.execute("INSERT INTO note VALUES (1)")
    with pytest.raises(IntegrityError):
        db.execute("INSERT OR ROLLBACK INTO account VALUES (1, 1)")
    assert not db.in_transaction
    assert not node.leased
    assert rows(db, "SELECT * FROM note") == []


def test_a_failed_statement_that_kept_rows_is_sent_too(db: dbapi.Connection, node: DirectNode) -> None:
    """OR FAIL keeps the rows before the one that failed, on every node."""
    db.execute("BEGIN")
    with pytest.raises(IntegrityError):
        db.execute("INSERT OR FAIL INTO account VALUES (10, 1), (1, 1), (11, 1)")
    db.execute("INSERT INTO note VALUES (1)")
    db.execute("COMMIT")
    assert rows(db, "SELECT id FROM account") == [(1,), (2,), (10,)]
    assert len(sent(node)) == 2


def test_a_deferred_foreign_key_leaves_the_transaction_open(db: dbapi.Connection, node: DirectNode) -> None:
    """As on SQLite: COMMIT fails, the transaction can be repaired."""
    db.execute("BEGIN")
    db.execute("PRAGMA defer_foreign_keys = ON")
    db.execute("SAVEPOINT a")
    db.execute("INSERT INTO child VALUES (1, 99)")
    db.execute("ROLLBACK TO a")
    db.execute("INSERT INTO child VALUES (2, 99)")
    with pytest.raises(IntegrityError, match="FOREIGN KEY") as raised:
        db.execute("COMMIT")
    assert raised.value.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY"
    assert db.in_transaction
    db.execute("INSERT INTO account VALUES (99, 0)")
    db.execute("COMMIT")
    assert rows(db, "SELECT id FROM child") == [(2,)]
    assert sent(node)[0] == "PRAGMA defer_foreign_keys = 1"


@pytest.mark.parametrize("early", [True, False])
def test_rollback_to_does_not_undo_a_state_pragma(db: dbapi.Connection, node: DirectNode, early: bool) -> None:
    """It is no write; what comes after it still means what it did."""
    db.execute("BEGIN")
    if not early:
        db.execute("INSERT INTO note VALUES (0)")
    db.execute("SAVEPOINT a")
    db.execute("PRAGMA defer_foreign_keys = ON")
    db.execute("INSERT INTO note VALUES (1)")
    db.execute("ROLLBACK TO a")
    db.execute("INSERT INTO child VALUES (1, 99)")
    db.execute("INSERT INTO account VALUES (99, 0)")
    db.execute("COMMIT")
    assert rows(db, "SELECT id FROM child") == [(1,)]
    assert [sql for sql in sent(node) if "note VALUES (1)" in sql] == []


def test_foreign_keys_off_makes_a_solo_transaction(db: dbapi.Connection, node: DirectNode) -> None:
    """The pragma travels with the transaction, autocommit or not, and back on it is gone."""
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("INSERT INTO child VALUES (1, 98)")
    assert node.submitted[-1].solo
    assert node.submitted[-1].pragmas == {"foreign_keys": 0}
    db.execute("BEGIN")
    db.execute("INSERT INTO child VALUES (2, 99)")
    db.execute("COMMIT")
    assert node.submitted[-1].pragmas == {"foreign_keys": 0}
    db.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(IntegrityError):
        db.execute("INSERT INTO child VALUES (3, 99)")
    assert not node.submitted[-1].solo
    assert rows(db, "SELECT id FROM child") == [(1,), (2,)]


def test_closing_a_connection_frees_its_lease(connect: Connect, node: DirectNode) -> None:
    connection = connect()
    connection.execute("BEGIN IMMEDIATE")
    connection.close()
    assert not node.leased


def test_a_connection_that_is_dropped_frees_its_lease(node: DirectNode) -> None:
    """Nobody else could: the lease would be held until the process ends."""
    connection = dbapi.connect(node.config, node=node)
    connection.execute("BEGIN IMMEDIATE")
    assert node.leased
    del connection
    gc.collect()
    assert not node.leased


def test_a_snapshot_keeps_its_reader_while_other_statements_run(
    db: dbapi.Connection, connect: Connect, node: DirectNode
) -> None:
    """What is no part of the transaction runs elsewhere, and nobody is lent the snapshot's reader."""
    db.execute("BEGIN")
    cursor = db.execute("SELECT i FROM number")
    db.execute("PRAGMA cache_size = 1000")
    db.backup(apsw.Connection(":memory:"))
    cursor.close()
    other = connect()
    other.execute("UPDATE account SET balance = 7")
    assert rows(other, "SELECT DISTINCT balance FROM account") == [(7,)]
    assert rows(db, "SELECT DISTINCT balance FROM account") == [(100,)]
    db.execute("COMMIT")
    assert rows(db, "SELECT DISTINCT balance FROM account") == [(7,)]


def test_a_write_that_fails_in_the_snapshot_fails_on_the_newest_state(db: dbapi.Connection, node: DirectNode) -> None:
    """An old snapshot's "no such table" would be an answer that nobody checks again."""
    db.execute("BEGIN")
    rows(db, "SELECT balance FROM account")
    node.foreign("CREATE TABLE later(a)")
    db.execute("INSERT INTO later VALUES (1)")
    with pytest.raises(OperationalError, match="no such table: never"):
        db.execute("INSERT INTO never VALUES (1)")
    db.execute("COMMIT")
    assert rows(db, "SELECT a FROM later") == [(1,)]


def test_a_function_of_this_connection_ends_with_the_first_write(db: dbapi.Connection) -> None:
    """Reads then run where the writes are; the error says what to do."""
    db.create_function("mine", 0, lambda: 1)
    db.execute("BEGIN")
    assert rows(db, "SELECT mine()") == [(1,)]
    db.execute("INSERT INTO note VALUES (1)")
    with pytest.raises(NotSupportedError, match="OPTIONS"):
        db.execute("SELECT mine()")
    db.execute("COMMIT")
    assert rows(db, "SELECT mine()") == [(1,)]


def test_temporary_tables_do_not_mix_with_a_write_transaction(db: dbapi.Connection) -> None:
    """Only this connection has them; the error says so instead of "no such table"."""
    db.execute("CREATE TEMP TABLE mine(a)")
    db.execute("BEGIN")
    db.execute("INSERT INTO note VALUES (1)")
    for statement in ("INSERT INTO mine VALUES (1)", "SELECT * FROM mine", "CREATE TEMP TABLE another(a)"):
        with pytest.raises(NotSupportedError, match=r"[Tt]emporary"):
            db.execute(statement)
    db.execute("COMMIT")
    assert rows(db, "SELECT * FROM mine") == []


def test_a_read_of_a_temporary_table_cannot_be_checked_again(db: dbapi.Connection, node: DirectNode) -> None:
    db.execute("CREATE TEMP TABLE mine(a)")
    db.execute("BEGIN")
    rows(db, "SELECT * FROM mine")
    node.foreign("INSERT INTO note VALUES (1)")
    with pytest.raises(TransactionConflict, match="temporary"):
        db.execute("INSERT INTO note VALUES (2)")


def test_the_snapshot_of_a_leader_read_waits_once(connect: Connect, db: dbapi.Connection, node: DirectNode) -> None:
    """One read barrier for each autocommit read and for each transaction's snapshot; none for local reads."""
    level = LEADER
    connection = connect(reads=lambda: level)
    rows(connection, "SELECT 1")
    rows(connection, "SELECT 1")
    assert node.barriers == 2
    connection.execute("BEGIN")
    rows(connection, "SELECT 1")
    rows(connection, "SELECT 2")
    assert node.barriers == 3
    connection.rollback()
    level = LOCAL
    rows(connection, "SELECT 1")
    assert node.barriers == 3


def test_a_leader_read_without_a_leader_fails_and_harms_nothing(connect: Connect, node: DirectNode) -> None:
    connection = connect(reads=lambda: LEADER)
    node.fail_next = Unavailable("no leader is known", "no leader")
    with pytest.raises(Unavailable):
        connection.execute("SELECT 1")
    connection.execute("BEGIN")
    node.fail_next = Unavailable("no leader is known", "no leader")
    with pytest.raises(Unavailable):
        connection.execute("SELECT 1")
    assert rows(connection, "SELECT 1") == [(1,)]
    connection.rollback()
