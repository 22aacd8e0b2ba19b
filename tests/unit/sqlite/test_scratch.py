"""Scratch: sees its own writes, leaves nothing behind, and never commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import apsw
import pytest

from django_raftsqlite.sqlite.errors import NodeFault, StatementError
from django_raftsqlite.sqlite.scratch import Scratch

from .replay import REGISTRARS, Replica, statement

Make = Callable[..., Replica]


@pytest.fixture
def replica(make_replica: Make) -> Replica:
    return make_replica("CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b)", "INSERT INTO t(a) VALUES (1)")


@pytest.fixture
def scratch(replica: Replica) -> Iterator[Scratch]:
    scratch = Scratch(replica.path, REGISTRARS, durable=False)
    yield scratch
    scratch.close()


def test_it_sees_its_own_writes_and_nobody_else_does(replica: Replica, scratch: Scratch) -> None:
    """Reads of an open transaction run where its writes are."""
    assert scratch.begin({}) == replica.machine.base
    result = scratch.execute(statement("INSERT INTO t(a) VALUES (2) RETURNING id"))
    assert (result.rows, result.rowcount, result.lastrowid) == ([(2,)], 1, 2)
    assert scratch.execute(statement("SELECT a FROM t ORDER BY a")).rows == [(1,), (2,)]
    assert replica.rows("SELECT a FROM t") == [(1,)]
    scratch.rollback()
    assert replica.rows("SELECT a FROM t") == [(1,)]


def test_columns_are_told_for_no_rows_too(scratch: Scratch) -> None:
    """cursor.description of an empty SELECT; none for a statement that returns nothing by nature."""
    scratch.begin({})
    result = scratch.execute(statement("SELECT id, a AS x FROM t WHERE 0"))
    assert result.rows == []
    assert [tuple(column) for column in result.columns or ()] == [("id", "INTEGER"), ("x", None)]
    assert scratch.execute(statement("SAVEPOINT s")).columns is None
    scratch.rollback()


@pytest.mark.parametrize("sql", ["COMMIT", "END", "BEGIN", "VACUUM", "ATTACH ':memory:' AS x"])
def test_it_never_commits(replica: Replica, scratch: Scratch, sql: str) -> None:
    """Neither by a statement nor by SQLite's own commit."""
    scratch.begin({})
    scratch.execute(statement("INSERT INTO t(a) VALUES (2)"))
    with pytest.raises(StatementError):
        scratch.execute(statement(sql))
    with pytest.raises(apsw.ConstraintError):
        scratch._connection.execute("COMMIT")
    scratch.rollback()
    with pytest.raises(apsw.ConstraintError):
        scratch._connection.execute("INSERT INTO t(a) VALUES (3)")
    with pytest.raises(StatementError, match="no transaction"):
        scratch.execute(statement("INSERT INTO t(a) VALUES (3)"))
    assert replica.rows("SELECT a FROM t") == [(1,)]


def test_savepoints_are_sqlites(scratch: Scratch) -> None:
    """ROLLBACK TO undoes what came after."""
    scratch.begin({})
    for sql in ("SAVEPOINT s", "INSERT INTO t(a) VALUES (2)", "ROLLBACK TO s", "RELEASE s"):
        scratch.execute(statement(sql))
    assert scratch.in_transaction
    assert scratch.execute(statement("SELECT count(*) FROM t")).rows == [(1,)]
    scratch.rollback()


def test_an_error_is_the_statements_and_the_transaction_goes_on(scratch: Scratch) -> None:
    """StatementError, with SQLite's code and message."""
    scratch.begin({})
    scratch.execute(statement("INSERT INTO t(a) VALUES (2)"))
    with pytest.raises(StatementError) as caught:
        scratch.execute(statement("INSERT INTO t(a) VALUES (1)"))
    assert caught.value.code == apsw.SQLITE_CONSTRAINT_UNIQUE
    assert caught.value.message == "UNIQUE constraint failed: t.a"
    assert scratch.in_transaction
    assert scratch.execute(statement("SELECT count(*) FROM t")).rows == [(2,)]
    scratch.rollback()


def test_a_transaction_that_sqlite_ended_is_over(scratch: Scratch) -> None:
    """OR ROLLBACK: the next statement must not run by itself."""
    scratch.begin({})
    with pytest.raises(StatementError):
        scratch.execute(statement("INSERT OR ROLLBACK INTO t(a) VALUES (1)"))
    assert not scratch.in_transaction
    with pytest.raises(StatementError, match="no transaction"):
        scratch.execute(statement("SELECT 1"))
    scratch.rollback()


def test_rows_that_a_failed_statement_kept_are_on_scratch_and_in_total_changes(scratch: Scratch) -> None:
    """OR FAIL: the statement belongs to the net writes although it failed."""
    seen = "SELECT total_changes(), count(*) FROM t WHERE a = 5"
    scratch.begin({})
    with pytest.raises(StatementError):
        scratch.execute(statement("INSERT OR FAIL INTO t(a) VALUES (5), (1)"))
    assert scratch.execute(statement(seen)).rows == [(1, 1)]
    scratch.rollback()
    scratch.begin({})
    assert scratch.execute(statement(seen)).rows == [(0, 0)]
    scratch.rollback()


def test_open_deferred_keys_are_counted(make_replica: Make) -> None:
    """Zero exactly when COMMIT would pass; it follows ROLLBACK TO."""
    replica = make_replica(
        "CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE c(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)"
    )
    scratch = Scratch(replica.path, REGISTRARS)
    scratch.begin({})
    scratch.execute(statement("SAVEPOINT s"))
    scratch.execute(statement("INSERT INTO c VALUES (1)"))
    assert scratch.deferred_violations() > 0
    scratch.execute(statement("ROLLBACK TO s"))
    assert scratch.deferred_violations() == 0
    scratch.close()


@pytest.mark.parametrize(
    "name", ["foreign_keys", "ignore_check_constraints", "recursive_triggers", "legacy_alter_table"]
)
def test_every_state_pragma_is_set_at_begin(scratch: Scratch, name: str) -> None:
    """Also back to its default, and defer_foreign_keys within the transaction, where it is remembered."""
    default = {"foreign_keys": 1}.get(name, 0)
    for state, expected in (({name: 1 - default}, 1 - default), ({}, default)):
        scratch.begin(state)
        assert scratch.execute(statement(f"PRAGMA {name}")).rows == [(expected,)]
        scratch.rollback()
    for deferred in (1, 0):
        scratch.begin({"defer_foreign_keys": deferred})
        assert scratch.execute(statement("PRAGMA defer_foreign_keys")).rows == [(deferred,)]
        scratch.rollback()


def test_counters_start_anew(scratch: Scratch) -> None:
    """What a statement can see of earlier transactions would differ between author and apply."""
    sql = "SELECT changes(), total_changes(), last_insert_rowid()"
    for _ in range(2):
        scratch.begin({})
        assert scratch.execute(statement(sql)).rows == [(0, 0, 0)]
        scratch.execute(statement("INSERT INTO t(id, a) VALUES (70, 8), (71, 9)"))
        assert scratch.execute(statement(sql)).rows == [(2, 2, 71)]
        scratch.rollback()


def test_rolled_back_speculation_teaches_nobody_anything(replica: Replica, scratch: Scratch) -> None:
    """ANALYZE stays in the memory of the connection that ran it: not apply's, and not scratch's next transaction."""
    replica.done("CREATE TABLE s(a, b, c)", "CREATE INDEX ia ON s(a)", "CREATE INDEX ib ON s(b)")
    replica.done(
        "INSERT INTO s WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 2000)"
        " SELECT x % 2, x % 1000, x FROM n",
        "ANALYZE",
    )
    plan = "EXPLAIN QUERY PLAN SELECT * FROM s WHERE a = 1 AND b = 1"
    before = replica.rows(plan)
    scratch.begin({})
    for sql in ("UPDATE s SET a = c, b = 1", "ANALYZE"):
        scratch.execute(statement(sql))
    assert scratch.execute(statement(plan)).rows != before
    scratch.rollback()
    assert replica.rows(plan) == before
    scratch.begin({})
    assert scratch.execute(statement(plan)).rows == before
    scratch.rollback()


def test_a_table_can_be_dropped_after_speculation_read_it(replica: Replica, scratch: Scratch) -> None:
    """A half-read cursor of a rolled-back transaction must not lock the apply connection's tables."""
    scratch.begin({})
    cursor = scratch._connection.execute("SELECT a FROM t")
    cursor.fetchone()
    scratch.rollback()
    replica.done("DROP TABLE t")
    cursor.close(True)


def test_the_write_lock_in_other_hands_is_a_fault_to_be_retried(replica: Replica, scratch: Scratch) -> None:
    """Scratch waits for apply, not the other way round."""
    replica.machine._connection.execute("BEGIN IMMEDIATE")
    scratch._connection.set_busy_timeout(1)
    with pytest.raises(NodeFault) as caught:
        scratch.begin({})
    assert caught.value.retry
    assert not scratch.in_transaction
    replica.machine._connection.execute("ROLLBACK")
    scratch.begin({})
    scratch.rollback()


def test_an_interrupt_ends_a_long_statement(scratch: Scratch) -> None:
    """A recalled lease must not hold apply."""
    scratch.begin({})
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    failures: list[StatementError] = []
    started = threading.Event()

    def work() -> None:
        started.set()
        try:
            scratch.execute(statement(endless))
        except StatementError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(10)
    deadline = time.monotonic() + 30
    while thread.is_alive() and time.monotonic() < deadline:
        # Again and again: an interrupt before the statement began is forgotten.
        scratch.interrupt()
        thread.join(0.01)
    assert failures[0].code == apsw.SQLITE_INTERRUPT
    scratch.rollback()
    scratch.begin({})
    assert scratch.execute(statement("SELECT 1")).rows == [(1,)]


def test_closing_twice_is_harmless(replica: Replica) -> None:
    """Also within a transaction, and interrupt() afterwards."""
    scratch = Scratch(replica.path, REGISTRARS)
    scratch.begin({})
    scratch.close()
    scratch.close()
    scratch.interrupt()
    replica.done("INSERT INTO t(a) VALUES (2)")
