"""The rules of the state machine: what an entry does, what it answers, and what it must never do."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from django_raftsqlite.sqlite.connections import open_writer
from django_raftsqlite.sqlite.entry import (
    Base,
    Entry,
    Item,
    ItemKind,
    RequestId,
    Result,
    Status,
    encode_entry,
    result_digest,
)
from django_raftsqlite.sqlite.errors import ForeignWrite, MalformedEntry, NodeFault
from django_raftsqlite.sqlite.machine import StateMachine
from django_raftsqlite.sqlite.scratch import Scratch
from tests.support.dumps import dump

from .replay import (
    CLOCK,
    ORIGIN,
    REGISTRARS,
    Replica,
    close_origin,
    encoded,
    expire,
    open_origin,
    statement,
    transaction,
    use_protocol,
)

Make = Callable[..., Replica]

TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b)"


def codes(outcomes: list) -> list[tuple[Status, int]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


class TestEntries:
    def test_a_fresh_file_has_applied_nothing(self, tmp_path: Path) -> None:
        """Index and term are 0, and the base is that of the empty state."""
        machine = StateMachine(tmp_path / "db", ())
        assert (machine.applied_index, machine.applied_term) == (0, 0)
        assert machine.base == Base(bytes(16), 0, bytes(24))
        machine.close()

    def test_an_entry_is_applied_once_however_often_it_is_delivered(self, make_replica: Make) -> None:
        """Raft may deliver an entry again after a restart; applied index and rows are committed together."""
        replica = make_replica(TABLE)
        data = encoded(transaction(9, "INSERT INTO t(a) VALUES (1)"))
        index = replica.machine.applied_index + 1
        assert len(replica.machine.apply(index, 3, data)) == 1
        digest = replica.machine.digest
        assert replica.machine.apply(index, 3, data) == []
        replica.restart()
        assert replica.machine.apply(index, 3, data) == []
        assert (replica.machine.applied_index, replica.machine.applied_term) == (index, 3)
        assert replica.machine.digest == digest
        assert replica.rows("SELECT count(*) FROM t") == [(1,)]

    def test_a_committed_transaction_makes_a_new_version_named_after_it(self, make_replica: Make) -> None:
        """A base is the version and the request that made it; a failed one makes none."""
        replica = make_replica(TABLE)
        version = replica.machine.base.version
        replica.done("INSERT INTO t(a) VALUES (1)")
        request = RequestId(ORIGIN, replica.sequence)
        assert replica.machine.base == Base(bytes(16), version + 1, request.to_bytes())
        assert replica.run("INSERT INTO t(a) VALUES (1)").status is Status.ERROR
        assert replica.machine.base == Base(bytes(16), version + 1, request.to_bytes())

    def test_an_error_is_the_result_of_its_transaction_alone(self, make_replica: Make) -> None:
        """The others of a batch are applied; the failed one leaves nothing."""
        replica = make_replica(TABLE)
        outcomes = replica.apply(
            replica.next("INSERT INTO t(a) VALUES (1)"),
            replica.next("INSERT INTO t(a) VALUES (2)", "INSERT INTO t(a) VALUES (1)"),
            replica.next("INSERT INTO t(a) VALUES (3)"),
        )
        assert codes(outcomes) == [
            (Status.DONE, 0),
            (Status.ERROR, apsw.SQLITE_CONSTRAINT_UNIQUE),
            (Status.DONE, 0),
        ]
        assert replica.rows("SELECT a FROM t ORDER BY a") == [(1,), (3,)]

    def test_an_autocommit_statement_answers_with_its_rows(self, make_replica: Make) -> None:
        """RETURNING's rows with their columns, rowcount and lastrowid."""
        result = make_replica(TABLE).done("INSERT INTO t(a) VALUES ('x'), ('y') RETURNING id, a")
        assert result is not None
        assert result.rows == [(1, "x"), (2, "y")]
        assert [column.name for column in result.columns or ()] == ["id", "a"]
        assert (result.rowcount, result.lastrowid) == (2, 2)

    def test_an_existing_database_is_taken_over_as_it_is(self, tmp_path: Path) -> None:
        """Its tables stay, and may be written from the first entry on."""
        path = tmp_path / "db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE old(x)")
            connection.execute("INSERT INTO old VALUES (1)")
        connection.close()
        replica = Replica(path)
        replica.apply(open_origin())
        replica.done("UPDATE old SET x = x + 1")
        assert replica.rows("SELECT x FROM old") == [(2,)]
        replica.close()

    def test_files_have_exactly_the_mode_asked_for(self, tmp_path: Path) -> None:
        """Whatever the umask, of the file and of -wal and -shm."""
        before = os.umask(0o077)
        try:
            machine = StateMachine(tmp_path / "db", (), mode=0o640)
            machine.apply(1, 1, encoded(open_origin()))
        finally:
            os.umask(before)
        for name in ("db", "db-wal", "db-shm"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
        machine.close()

    def test_the_wal_stays_when_the_machine_is_closed(self, tmp_path: Path) -> None:
        """A -wal that is unlinked by the last to close would leave the next reader without what another one sees."""
        machine = StateMachine(tmp_path / "db", ())
        machine.apply(1, 1, encoded(open_origin()))
        machine.close()
        assert (tmp_path / "db-wal").exists()

    def test_a_damaged_entry_stops_the_node_and_changes_nothing(self, make_replica: Make) -> None:
        """MalformedEntry, at the index before."""
        replica = make_replica(TABLE)
        index = replica.machine.applied_index
        for data in (b"\xc1", b"\x00", encoded()[:-1], encoded(transaction(1)._replace(payload=b"\x90"))):
            with pytest.raises(MalformedEntry):
                replica.machine.apply(index + 1, 1, data)
        assert replica.machine.applied_index == index
        replica.done("INSERT INTO t(a) VALUES (1)")


class TestTransactionsThatEndTheirBatch:
    @pytest.mark.parametrize(
        "spoken",
        ["INSERT OR ROLLBACK INTO t(a) VALUES (2), (1)", "INSERT INTO t(a) VALUES ('poison')"],
        ids=["OR ROLLBACK", "RAISE(ROLLBACK)"],
    )
    def test_the_rest_of_the_batch_is_applied_with_its_index(self, make_replica: Make, spoken: str) -> None:
        """OR ROLLBACK and RAISE(ROLLBACK) end SQLite's whole transaction: the others must not be lost with it."""
        replica = make_replica(
            TABLE,
            "CREATE TRIGGER p BEFORE INSERT ON t WHEN new.a = 'poison' BEGIN SELECT raise(ROLLBACK, 'no'); END",
        )
        index = replica.machine.applied_index
        outcomes = replica.apply(
            replica.next("INSERT INTO t(a) VALUES (1)"),
            replica.next(spoken),
            replica.next("INSERT INTO t(a) VALUES (3)"),
            replica.next(spoken),
            replica.next("INSERT INTO t(a) VALUES (4)"),
        )
        assert [outcome.status for outcome in outcomes] == [
            Status.DONE,
            Status.ERROR,
            Status.DONE,
            Status.ERROR,
            Status.DONE,
        ]
        assert outcomes[1].code & 0xFF == apsw.SQLITE_CONSTRAINT
        assert replica.rows("SELECT a FROM t ORDER BY a") == [(1,), (3,), (4,)]
        assert replica.machine.applied_index == index + 1
        replica.restart()
        assert replica.machine.applied_index == index + 1

    def test_definitions_before_the_one_that_rolls_back_are_made_again(self, make_replica: Make) -> None:
        """The schema in memory must go back with the file, or CREATE TABLE finds its own ghost."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (1)")
        outcomes = replica.apply(
            replica.next("CREATE TABLE u(x)"),
            replica.next("INSERT OR ROLLBACK INTO t(a) VALUES (1)"),
            replica.next("INSERT INTO u VALUES (5)"),
        )
        assert [outcome.status for outcome in outcomes] == [Status.DONE, Status.ERROR, Status.DONE]
        assert replica.rows("SELECT x FROM u") == [(5,)]

    @pytest.mark.parametrize("sql", ["COMMIT", "END", "ROLLBACK", "BEGIN", "/**/ commit", "VACUUM", "ATTACH '' AS x"])
    def test_no_statement_can_end_the_entry(self, make_replica: Make, sql: str) -> None:
        """A COMMIT within a transaction would commit half a batch without its index."""
        replica = make_replica(TABLE)
        outcomes = replica.apply(
            replica.next("INSERT INTO t(a) VALUES (1)", sql), replica.next("INSERT INTO t(a) VALUES (2)")
        )
        assert codes(outcomes) == [(Status.ERROR, apsw.SQLITE_ERROR), (Status.DONE, 0)]
        assert replica.rows("SELECT a FROM t") == [(2,)]


class TestResultsAndFaults:
    @pytest.mark.parametrize(
        ("sql", "code"),
        [
            ("INSERT INTO t(id) VALUES ('x')", apsw.SQLITE_MISMATCH),
            ("INSERT INTO nowhere VALUES (1)", apsw.SQLITE_ERROR),
            ("INSERT INTO t(a) SELEC", apsw.SQLITE_ERROR),
            ("INSERT INTO t(a) VALUES (zeroblob(2000000000))", apsw.SQLITE_TOOBIG),
            ("INSERT INTO t(a) VALUES (json('{'))", apsw.SQLITE_ERROR),
        ],
    )
    def test_what_follows_from_the_statement_is_its_result(self, make_replica: Make, sql: str, code: int) -> None:
        """The allow-list: constraint, mismatch, range, too big and SQL errors."""
        outcome = make_replica(TABLE).run(sql)
        assert (outcome.status, outcome.code) == (Status.ERROR, code)

    def test_a_parameter_that_does_not_bind_is_a_result(self, make_replica: Make) -> None:
        """It follows from the entry alone; a fault would stop every node at it for ever."""
        replica = make_replica(TABLE)
        for spoken in (
            ("INSERT INTO t(a) VALUES (?)", []),
            ("INSERT INTO t(a) VALUES (:x)", {"y": 1}),
            ("INSERT INTO t(a) VALUES (?)", [2**63]),
        ):
            outcome = replica.run(spoken)
            assert (outcome.status, outcome.code) == (Status.ERROR, apsw.SQLITE_RANGE)

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO t(a) VALUES (nowhere(1))",
            "INSERT INTO t(a) SELECT a FROM t ORDER BY a COLLATE nowhere",
            "CREATE VIRTUAL TABLE v USING nowhere",
        ],
        ids=["function", "collation", "module"],
    )
    def test_a_name_that_registrars_must_provide_is_a_fault_where_it_is_missing(
        self, make_replica: Make, sql: str
    ) -> None:
        """Another node may have it: 'no such function' as a result would fork the states."""
        replica = make_replica(TABLE)
        index, digest = replica.machine.applied_index, replica.machine.digest
        with pytest.raises(NodeFault, match="nowhere"):
            replica.apply(replica.next("INSERT INTO t(a) VALUES (1)"), replica.next(sql))
        assert (replica.machine.applied_index, replica.machine.digest) == (index, digest)
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]

    def test_the_entry_can_be_applied_once_the_function_is_there(self, tmp_path: Path) -> None:
        """A fault leaves the node at the index before, and a node set right goes on from there."""
        replica = Replica(tmp_path / "db", ())
        replica.apply(open_origin(), replica.next("CREATE TABLE t(a)"))
        data = encoded(replica.next("INSERT INTO t VALUES (twice(2))"))
        with pytest.raises(NodeFault):
            replica.machine.apply(2, 1, data)
        replica.registrars = (lambda registry: registry.create_function("twice", 1, lambda x: 2 * x),)
        replica.restart()
        ((_, outcome),) = replica.machine.apply(2, 1, data)
        assert outcome.status is Status.DONE
        assert replica.rows("SELECT a FROM t") == [(4,)]
        replica.close()

    def test_what_a_user_function_raises_is_a_result_unless_the_machine_is_to_blame(self, tmp_path: Path) -> None:
        """ValueError follows from the arguments; MemoryError, RecursionError and OSError do not."""
        raised: list[Exception] = [ValueError("bad")]

        def fragile(_x: object) -> object:
            raise raised[0]

        replica = Replica(tmp_path / "db", (lambda registry: registry.create_function("fragile", 1, fragile),))
        replica.apply(open_origin(), replica.next("CREATE TABLE t(a)"))
        outcome = replica.run("INSERT INTO t VALUES (fragile(1))")
        assert (outcome.status, outcome.code) == (Status.ERROR, apsw.SQLITE_ERROR)
        assert "ValueError: bad" in outcome.message
        for raised[0] in (MemoryError(), RecursionError("deep"), OSError("disk")):
            index = replica.machine.applied_index
            with pytest.raises(NodeFault):
                replica.run("INSERT INTO t VALUES (fragile(1))")
            assert replica.machine.applied_index == index
        replica.close()

    def test_a_collation_that_raises_leaves_nothing_of_its_statement(self, tmp_path: Path) -> None:
        """SQLite does not stop for it, so the rows are there when the error is known."""

        def fragile(a: str, b: str) -> int:
            if "bad" in (a, b):
                raise ValueError("bad")
            return (a > b) - (a < b)

        replica = Replica(tmp_path / "db", (lambda registry: registry.create_collation("fragile", fragile),))
        replica.apply(open_origin(), replica.next("CREATE TABLE t(a TEXT COLLATE fragile UNIQUE)"))
        replica.done("INSERT INTO t VALUES ('good')")
        assert replica.run("INSERT INTO t VALUES ('bad')").status is Status.ERROR
        assert replica.rows("SELECT count(*) FROM t") == [(1,)]
        replica.close()

    def test_the_write_lock_in_other_hands_is_a_fault_to_be_retried(self, make_replica: Make) -> None:
        """BUSY depends on this machine."""
        replica = make_replica(TABLE)
        replica.machine._connection.set_busy_timeout(1)
        scratch = Scratch(replica.path, REGISTRARS)
        scratch.begin({})
        item = replica.next("INSERT INTO t(a) VALUES (1)")
        with pytest.raises(NodeFault) as caught:
            replica.apply(item)
        assert caught.value.retry
        scratch.rollback()
        assert replica.apply(item)[0].status is Status.DONE
        scratch.close()

    def test_a_full_disk_is_a_fault_and_the_entry_is_applied_when_there_is_room(self, make_replica: Make) -> None:
        """SQLITE_FULL rolls everything back; as a result it would fork this node from the others."""
        replica = make_replica(TABLE)
        connection = replica.machine._connection
        pages = connection.pragma("page_count")
        connection.pragma("max_page_count", pages)
        first, second = (
            replica.next("INSERT INTO t(a) VALUES (1)"),
            replica.next("INSERT INTO t(a) VALUES (zeroblob(100000))"),
        )
        index = replica.machine.applied_index
        with pytest.raises(NodeFault, match="full"):
            replica.apply(first, second)
        assert replica.machine.applied_index == index
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]
        connection.pragma("max_page_count", 1_000_000)
        assert [outcome.status for outcome in replica.apply(first, second)] == [Status.DONE, Status.DONE]

    def test_an_exhausted_autoincrement_is_a_result_although_its_code_is_that_of_a_full_disk(
        self, make_replica: Make
    ) -> None:
        """One row with the largest id must not stop the whole group at the next insert."""
        replica = make_replica("CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, x)", TABLE)
        outcomes = replica.apply(
            replica.next(f"INSERT INTO a(id) VALUES ({2**63 - 1})"),
            replica.next("INSERT INTO a(x) VALUES (1)"),
            replica.next("INSERT INTO t(a) VALUES (1)"),
        )
        assert codes(outcomes) == [(Status.DONE, 0), (Status.ERROR, apsw.SQLITE_FULL), (Status.DONE, 0)]
        assert replica.rows("SELECT id FROM a") == [(2**63 - 1,)]

    def test_a_rowid_that_sqlite_picks_at_random_is_refused(self, make_replica: Make) -> None:
        """After the largest one it draws from a generator that no entry can seed: every node would get another."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (0)", "DELETE FROM t")
        replica.done(f"INSERT INTO t(id, a) VALUES ({2**63 - 1}, 1)")
        for restart in (False, True):
            if restart:
                replica.restart()
            outcome = replica.run("INSERT INTO t(a) VALUES (2)")
            assert (outcome.status, outcome.code) == (Status.ERROR, apsw.SQLITE_FULL)
            replica.done(("INSERT INTO t(id, a) VALUES (?, 3)", [5 + restart]), "UPDATE t SET a = id")
        assert replica.rows("SELECT id FROM t ORDER BY id") == [(5,), (6,), (2**63 - 1,)]

    def test_an_interrupt_is_a_fault_to_be_retried(self, tmp_path: Path) -> None:
        """INTERRUPT aimed at anything else may hit apply."""
        machines: list[StateMachine] = []

        def interrupt() -> int:
            machines[0]._connection.interrupt()
            return 1

        replica = Replica(tmp_path / "db", (lambda registry: registry.create_function("stop", 0, interrupt),))
        machines.append(replica.machine)
        replica.apply(open_origin(), replica.next("CREATE TABLE t(a)"))
        sql = (
            "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT stop() UNION ALL SELECT x + 1 FROM c LIMIT 100000)"
            " SELECT x FROM c"
        )
        with pytest.raises(NodeFault) as caught:
            replica.run(sql)
        assert caught.value.retry
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]
        replica.close()

    def test_a_virtual_tables_own_refusals_are_results(self, make_replica: Make) -> None:
        """FTS5 says CORRUPT for a failed integrity check, R-Tree LOCKED for a change while it is read."""
        replica = make_replica(
            "CREATE TABLE doc(id INTEGER PRIMARY KEY, body)",
            "CREATE VIRTUAL TABLE ft USING fts5(body, content='doc', content_rowid='id')",
            "INSERT INTO doc VALUES (1, 'hello')",
        )
        outcome = replica.run("INSERT INTO ft(ft, rank) VALUES ('integrity-check', 1)")
        assert (outcome.status, outcome.code) == (Status.ERROR, apsw.SQLITE_CORRUPT_VTAB)


class TestAutocommit:
    def test_or_fail_keeps_the_rows_before_the_failure(self, make_replica: Make) -> None:
        """As SQLite does outside of a transaction; and what changed is a new version, or bases would lie."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (3)")
        version = replica.machine.base.version
        outcome = replica.run("INSERT OR FAIL INTO t(a) VALUES (1), (2), (3), (4)")
        assert (outcome.status, outcome.code) == (Status.ERROR, apsw.SQLITE_CONSTRAINT_UNIQUE)
        assert replica.rows("SELECT a FROM t ORDER BY a") == [(1,), (2,), (3,)]
        assert replica.machine.base.version == version + 1

    def test_in_a_transaction_it_leaves_nothing(self, make_replica: Make) -> None:
        """A transaction whose statement failed unexpectedly is undone as a whole."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (3)")
        replica.run("INSERT OR FAIL INTO t(a) VALUES (1), (3)", base=replica.machine.base)
        assert replica.rows("SELECT a FROM t") == [(3,)]

    def test_or_fail_with_an_open_foreign_key_keeps_nothing(self, make_replica: Make) -> None:
        """SQLite checks deferred keys at the end of a statement outside of a transaction."""
        replica = make_replica(
            "CREATE TABLE p(id INTEGER PRIMARY KEY)",
            "CREATE TABLE c(u UNIQUE, p REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
        )
        outcome = replica.run("INSERT OR FAIL INTO c VALUES (1, 99), (1, 98)")
        assert (outcome.status, outcome.code) == (Status.ERROR, apsw.SQLITE_CONSTRAINT_FOREIGNKEY)
        assert replica.rows("SELECT * FROM c") == []


class TestStateBetweenTransactions:
    KEYS = (
        "CREATE TABLE p(id INTEGER PRIMARY KEY)",
        "CREATE TABLE c(p REFERENCES p ON DELETE CASCADE)",
        "CREATE TABLE d(p REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
    )

    def test_a_deferred_key_left_open_fails_its_transaction_only(self, make_replica: Make) -> None:
        """Releasing a savepoint does not check; COMMIT of the batch would fail for all."""
        replica = make_replica(*self.KEYS)
        outcomes = replica.apply(
            replica.next("INSERT INTO d VALUES (1)"),
            replica.next("INSERT INTO p VALUES (2)"),
            replica.next("INSERT INTO d VALUES (3)", "INSERT INTO p VALUES (3)"),
        )
        assert codes(outcomes) == [
            (Status.ERROR, apsw.SQLITE_CONSTRAINT_FOREIGNKEY),
            (Status.DONE, 0),
            (Status.DONE, 0),
        ]
        assert outcomes[0].message == "FOREIGN KEY constraint failed"
        assert replica.rows("SELECT p FROM d") == [(3,)]

    def test_defer_foreign_keys_does_not_reach_the_next_transaction(self, make_replica: Make) -> None:
        """SQLite forgets it at the outer COMMIT only."""
        replica = make_replica(*self.KEYS)
        outcomes = replica.apply(
            replica.next("INSERT INTO c VALUES (1)", "INSERT INTO p VALUES (1)", pragmas={"defer_foreign_keys": 1}),
            replica.next("INSERT INTO c VALUES (2)", "INSERT INTO p VALUES (2)"),
        )
        assert codes(outcomes) == [(Status.DONE, 0), (Status.ERROR, apsw.SQLITE_CONSTRAINT_FOREIGNKEY)]
        for i in (3, 4):
            replica.done(
                f"INSERT INTO c VALUES ({i})", f"INSERT INTO p VALUES ({i})", pragmas={"defer_foreign_keys": 1}
            )

    @pytest.mark.parametrize("by", ["pragmas", "a statement"])
    def test_state_pragmas_end_with_their_transaction(self, make_replica: Make, by: str) -> None:
        """Every one is set before every transaction, also to its default."""
        replica = make_replica(*self.KEYS, "CREATE TABLE k(x CHECK (x > 0))")
        first = (
            replica.next("INSERT INTO k VALUES (-1)", pragmas={"ignore_check_constraints": 1})
            if by == "pragmas"
            else replica.next("PRAGMA ignore_check_constraints = 1", "INSERT INTO k VALUES (-1)")
        )
        outcomes = replica.apply(first, replica.next("INSERT INTO k VALUES (-2)"))
        assert codes(outcomes) == [(Status.DONE, 0), (Status.ERROR, apsw.SQLITE_CONSTRAINT_CHECK)]

    def test_a_table_rebuild_without_foreign_keys_keeps_the_children(self, make_replica: Make) -> None:
        """`PRAGMA foreign_keys` is ignored in a transaction: within a batch, DROP TABLE would cascade."""
        replica = make_replica(*self.KEYS, "INSERT INTO p VALUES (1)", "INSERT INTO c VALUES (1)")
        replica.done(
            "CREATE TABLE new__p(id INTEGER PRIMARY KEY, x)",
            "INSERT INTO new__p(id) SELECT id FROM p",
            "DROP TABLE p",
            "ALTER TABLE new__p RENAME TO p",
            pragmas={"foreign_keys": 0, "legacy_alter_table": 1},
            solo=True,
        )
        assert replica.rows("SELECT p FROM c") == [(1,)]
        assert replica.run("INSERT INTO c VALUES (9)").code == apsw.SQLITE_CONSTRAINT_FOREIGNKEY

    def test_a_transaction_that_must_be_alone_fails_in_a_batch(self, make_replica: Make) -> None:
        """It would be run with foreign keys on."""
        replica = make_replica(*self.KEYS)
        outcomes = replica.apply(replica.next("DROP TABLE p", pragmas={"foreign_keys": 0}))
        assert codes(outcomes) == [(Status.ERROR, apsw.SQLITE_ERROR)]

    def test_vacuum_runs_alone_and_is_counted_once(self, make_replica: Make) -> None:
        """It cannot run in the transaction that stores the applied index."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (zeroblob(1000000))", "DELETE FROM t")
        pages = replica.rows("PRAGMA page_count")
        version = replica.machine.base.version
        item = replica.next("VACUUM", solo=True)
        assert replica.apply(item, solo=True)[0].status is Status.DONE
        assert replica.rows("PRAGMA page_count") < pages
        assert replica.apply(item, solo=True)[0].status is Status.DONE
        assert replica.machine.base.version == version + 1
        replica.done("INSERT INTO t(a) VALUES (1)")

    def test_what_statements_can_count_starts_anew_with_each_transaction(self, make_replica: Make) -> None:
        """changes(), total_changes() and last_insert_rowid() differ between a running and a restarted node."""
        sql = "INSERT INTO seen VALUES (changes(), total_changes(), last_insert_rowid())"
        replica = make_replica(TABLE, "CREATE TABLE seen(a, b, c)")
        for restart in (False, True):
            replica.done("INSERT INTO t(a) VALUES (random()), (random() + 1)", "UPDATE t SET b = 1")
            if restart:
                replica.restart()
            replica.apply(replica.next("INSERT INTO t(a) VALUES (100 + total_changes())"), replica.next(sql))
            replica.done("DELETE FROM t")
        replica.done("INSERT INTO t(id, a) VALUES (77, 1), (78, 2)", sql)
        assert replica.rows("SELECT * FROM seen") == [(0, 0, 0), (0, 0, 0), (2, 2, 78)]

    @pytest.mark.parametrize("fate", ["error", "or rollback"])
    def test_statistics_of_an_undone_transaction_are_forgotten(self, make_replica: Make, fate: str) -> None:
        """ROLLBACK undoes ANALYZE in the file only: a running node would plan otherwise than a restarted one."""
        replica = make_replica(
            "CREATE TABLE s(a, b, c)",
            "CREATE INDEX ia ON s(a)",
            "CREATE INDEX ib ON s(b)",
            "INSERT INTO s WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 2000)"
            " SELECT x % 2, x % 1000, x FROM n",
            "ANALYZE",
            "CREATE TABLE u(x UNIQUE)",
            "INSERT INTO u VALUES (1)",
        )

        def plan() -> str:
            return str(replica.rows("EXPLAIN QUERY PLAN SELECT * FROM s WHERE a = 1 AND b = 1"))

        before = plan()
        assert "ib" in before
        outcome = replica.run(
            "UPDATE s SET a = c, b = 1",
            "ANALYZE",
            f"INSERT {'OR ROLLBACK' if fate == 'or rollback' else ''} INTO u VALUES (1)",
        )
        assert outcome.status is Status.ERROR
        assert plan() == before
        replica.restart()
        assert plan() == before

    def test_statistics_do_not_tell_of_our_own_tables(self, make_replica: Make) -> None:
        """How many outcomes are stored when ANALYZE runs depends on the batch; nor does ANALYZE count as a change."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (1), (2)", "CREATE TABLE seen(a, b, c)")
        replica.done(
            "INSERT INTO t(a) VALUES (8), (9)",
            "ANALYZE",
            "INSERT INTO seen VALUES (changes(), total_changes(), last_insert_rowid())",
        )
        for table in ("sqlite_stat1", "sqlite_stat4"):
            assert replica.rows(f"SELECT * FROM {table} WHERE tbl LIKE '%raftsqlite%'") == []
            assert replica.rows(f"SELECT count(*) FROM {table} WHERE tbl = 't'") > [(0,)]
        assert replica.rows("SELECT * FROM seen") == [(0, 2, 4)]


class TestBases:
    def test_a_transaction_applies_only_to_the_state_it_was_based_on(self, make_replica: Make) -> None:
        """Any commit in between is a conflict."""
        replica = make_replica(TABLE)
        base = replica.machine.base
        assert replica.run("INSERT INTO t(a) VALUES (1)", base=base).status is Status.DONE
        assert replica.run("INSERT INTO t(a) VALUES (2)", base=base).status is Status.CONFLICT
        assert replica.rows("SELECT a FROM t") == [(1,)]

    def test_a_version_number_alone_is_no_base(self, make_replica: Make) -> None:
        """ABA: the number may be right and the state another one."""
        replica = make_replica(TABLE)
        base = replica.machine.base
        for wrong in (base._replace(last=bytes(24)), base._replace(lineage=b"x" * 16)):
            assert replica.run("INSERT INTO t(a) VALUES (2)", base=wrong).status is Status.CONFLICT

    def test_a_request_stays_a_conflict_when_the_state_it_is_based_on_comes_later(self, make_replica: Make) -> None:
        """Its author was told so, and has run the transaction again under another id: a copy of it must not win."""
        replica = make_replica(TABLE)
        base = replica.machine.base
        below = transaction(100, "INSERT INTO t(a) VALUES (1)", base=base)
        on_top = transaction(
            101,
            "INSERT INTO t(a) VALUES (2)",
            base=base._replace(version=base.version + 1, last=RequestId(ORIGIN, 100).to_bytes()),
        )
        too_early, done = replica.apply(on_top, below)
        assert (too_early.status, done.status) == (Status.CONFLICT, Status.DONE)
        (again,) = replica.apply(on_top)
        assert again.status is Status.CONFLICT
        replica.restart()
        (again,) = replica.apply(on_top)
        assert again.status is Status.CONFLICT
        assert replica.rows("SELECT a FROM t") == [(1,)]

    def test_a_conflict_changes_no_version(self, make_replica: Make) -> None:
        """The same transaction on a new base is a new request."""
        replica = make_replica(TABLE)
        base, digest = replica.machine.base, replica.machine.digest
        replica.run("INSERT INTO t(a) VALUES (2)", base=base._replace(version=99))
        assert replica.machine.base == base
        assert replica.machine.digest != digest
        kept = replica.machine.outcome(RequestId(ORIGIN, replica.sequence))
        assert kept is not None and kept.status is Status.CONFLICT

    def test_another_result_on_replay_is_an_outcome_of_its_own(self, make_replica: Make) -> None:
        """Same base, other answer than the author saw: undone on every node alike."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (1)")
        version = replica.machine.base.version
        saw = result_digest(0, Result(None, [], 5))
        first = statement("UPDATE t SET b = 1")._replace(expect=saw)
        outcome = replica.run(first, "INSERT INTO t(a) VALUES (2)", base=replica.machine.base)
        assert outcome.status is Status.REPLAY_DIFFERS
        assert replica.machine.base.version == version
        assert replica.rows("SELECT a, b FROM t") == [(1, None)]

    def test_a_statement_that_fails_as_its_author_saw_is_part_of_the_transaction(self, make_replica: Make) -> None:
        """OR FAIL within atomic() keeps rows; the error is expected and the transaction goes on."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (3)")
        failing = statement("INSERT OR FAIL INTO t(a) VALUES (1), (3)")
        failing = failing._replace(expect=result_digest(apsw.SQLITE_CONSTRAINT_UNIQUE, None))
        replica.done(failing, "INSERT INTO t(a) VALUES (4)", base=replica.machine.base)
        assert replica.rows("SELECT a FROM t ORDER BY a") == [(1,), (3,), (4,)]

    def test_an_expected_error_that_does_not_come_is_a_difference(self, make_replica: Make) -> None:
        """The author chose its next statements because of it."""
        replica = make_replica(TABLE)
        failing = statement("INSERT OR FAIL INTO t(a) VALUES (1)")
        failing = failing._replace(expect=result_digest(apsw.SQLITE_CONSTRAINT_UNIQUE, None))
        assert replica.run(failing, base=replica.machine.base).status is Status.REPLAY_DIFFERS
        assert replica.rows("SELECT a FROM t") == []

    def test_what_scratch_answered_is_what_apply_gets(self, make_replica: Make) -> None:
        """Clock, seed and counters are the statement's; the expectation holds and the transaction commits."""
        replica = make_replica(TABLE, "INSERT INTO t(a) VALUES (1)")
        scratch = Scratch(replica.path, REGISTRARS)
        base = scratch.begin({})
        script = []
        for i, sql in enumerate(
            [
                "INSERT INTO t(a, b) VALUES (random(), datetime('now')) RETURNING *, total_changes()",
                "INSERT INTO t(a, b) SELECT randomblob(8), changes() || last_insert_rowid() RETURNING *",
                "UPDATE t SET b = RAND() RETURNING b",
            ]
        ):
            one = statement(sql, clock=CLOCK + i, seed=i)
            script.append(one._replace(expect=result_digest(0, scratch.execute(one))))
        scratch.rollback()
        assert base == replica.machine.base
        replica.done(*script, base=base)
        scratch.close()


class TestExactlyOnce:
    def test_a_request_sent_again_gets_its_first_outcome(self, make_replica: Make) -> None:
        """Rows and errors alike, also after a restart, also within one entry."""
        replica = make_replica(TABLE)
        insert = transaction(50, "INSERT INTO t(a) VALUES (1) RETURNING id, a")
        fails = transaction(51, "INSERT INTO t(a) VALUES (1)")
        first = replica.apply(insert, fails)
        assert replica.apply(insert, fails, insert) == [*first, first[0]]
        replica.done("DELETE FROM t", low_water=1)
        replica.restart()
        assert replica.apply(fails, insert) == [first[1], first[0]]
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]
        assert replica.machine.outcome(RequestId(ORIGIN, 50)) == first[0]

    def test_an_outcome_is_kept_until_the_mark_has_passed_it(self, make_replica: Make) -> None:
        """The request at the mark is the oldest that is still open: its author may send it again."""
        replica = make_replica(TABLE)
        insert = transaction(50, "INSERT INTO t(a) VALUES (1) RETURNING id, a", low_water=50)
        first = replica.apply(insert)
        replica.apply(transaction(52, "DELETE FROM t", low_water=50))
        replica.apply(transaction(53, "DELETE FROM t", low_water=50))
        assert replica.apply(insert) == first
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]
        replica.apply(transaction(54, "DELETE FROM t", low_water=53))
        assert replica.machine.counts()["outcomes"] == 2

    def test_a_request_below_the_low_water_mark_is_refused(self, make_replica: Make) -> None:
        """Its outcome is forgotten: it is never treated as new."""
        replica = make_replica(TABLE)
        old = transaction(50, "INSERT INTO t(a) VALUES (1)")
        replica.apply(old)
        replica.apply(transaction(51, "DELETE FROM t", low_water=51))
        assert [outcome.status for outcome in replica.apply(old)] == [Status.REFUSED]
        assert replica.machine.counts() == {"origins": 1, "outcomes": 1, "parted": 0}
        replica.restart()
        assert [outcome.status for outcome in replica.apply(old)] == [Status.REFUSED]
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]

    def test_the_low_water_mark_never_goes_back(self, make_replica: Make) -> None:
        """Requests of one origin may be reordered on their way."""
        replica = make_replica(TABLE)
        replica.apply(transaction(60, "INSERT INTO t(a) VALUES (1)", low_water=60))
        replica.apply(transaction(61, "INSERT INTO t(a) VALUES (2)", low_water=5))
        assert replica.apply(transaction(59, "INSERT INTO t(a) VALUES (3)"))[0].status is Status.REFUSED

    def test_an_origin_must_be_open(self, make_replica: Make) -> None:
        """One that was closed or expired, or never opened, is refused; its outcomes are forgotten."""
        replica = make_replica(TABLE)
        other = b"o" * 16
        item = transaction(1, "INSERT INTO t(a) VALUES (1)", origin=other)
        assert replica.apply(item)[0].status is Status.REFUSED
        assert replica.apply(open_origin(other), item)[0].status is Status.DONE
        assert replica.apply(close_origin(other), item)[0].status is Status.REFUSED
        assert replica.machine.outcome(RequestId(other, 1)) is None
        replica.restart()
        assert replica.apply(item)[0].status is Status.REFUSED

    def test_an_origin_expires_when_it_is_idle_in_versions_and_in_time(self, make_replica: Make) -> None:
        """A clock an hour ahead, or a busy minute, alone must not expire anybody."""
        replica = make_replica(TABLE)
        other = b"o" * 16
        hour = 3_600_000
        replica.apply(open_origin(other), time=CLOCK)
        replica.apply(expire(3, hour), time=CLOCK + 2 * hour)
        assert replica.machine.counts()["origins"] == 2
        for i in range(3):
            replica.apply(replica.next(("INSERT INTO t(a) VALUES (?)", [i])), time=CLOCK + 2 * hour)
        replica.apply(expire(3, 3 * hour), time=CLOCK + 2 * hour)
        assert replica.machine.counts()["origins"] == 2
        replica.apply(expire(3, hour), time=CLOCK + 2 * hour)
        assert replica.machine.counts()["origins"] == 1
        item = transaction(1, "INSERT INTO t(a) VALUES (9)", origin=other)
        assert replica.apply(item)[0].status is Status.REFUSED

    def test_log_time_never_goes_back(self, make_replica: Make) -> None:
        """A leader whose clock is behind does not make idle origins young again."""
        replica = make_replica(TABLE)
        replica.apply(open_origin(b"o" * 16), time=CLOCK + 1000)
        replica.apply(replica.next("INSERT INTO t(a) VALUES (1)"), time=CLOCK - 1000)
        assert replica.machine._state.time == CLOCK + 1000

    def test_an_outcome_with_many_rows_is_kept_without_them(self, make_replica: Make) -> None:
        """DONE, and no result: up to 64 KiB of rows are kept."""
        replica = make_replica(TABLE)
        for size, kept in ((1000, True), (100_000, False)):
            item = replica.next(f"INSERT INTO t(a) VALUES (zeroblob({size})) RETURNING a")
            first = replica.apply(item)[0]
            assert first.result is not None
            assert first.result.rows == [(bytes(size),)]
            again = replica.apply(item)[0]
            assert again.status is Status.DONE
            assert (again == first) is kept
            assert (again.result is None) is not kept


class TestForeignWrites:
    def test_another_writer_is_noticed_before_the_next_entry(self, make_replica: Make) -> None:
        """The node is suspect from then on: it applies nothing more."""
        replica = make_replica(TABLE)
        foreign = sqlite3.connect(replica.path, isolation_level=None)
        foreign.execute("INSERT INTO t(a) VALUES (1)")
        for _ in range(2):
            with pytest.raises(ForeignWrite):
                replica.done("INSERT INTO t(a) VALUES (2)")
        foreign.close()

    def test_a_replaced_file_is_noticed(self, make_replica: Make) -> None:
        """A rename puts another inode in its place, whose WAL is not this one's."""
        replica = make_replica(TABLE)
        replica.path.rename(replica.path.with_suffix(".old"))
        replica.path.write_bytes(b"")
        with pytest.raises(ForeignWrite):
            replica.done("INSERT INTO t(a) VALUES (2)")

    def test_a_wal_that_is_gone_is_noticed(self, make_replica: Make) -> None:
        """Another SQLite library in this process may unlink it."""
        replica = make_replica(TABLE)
        Path(f"{replica.path}-wal").unlink()
        with pytest.raises(ForeignWrite, match="gone"):
            replica.done("INSERT INTO t(a) VALUES (2)")

    def test_own_work_readers_and_scratch_are_not_foreign(self, make_replica: Make) -> None:
        """Checkpoints, VACUUM and rolled-back speculation raise no alarm."""
        replica = make_replica(TABLE)
        scratch = Scratch(replica.path, REGISTRARS)
        for i in range(3):
            scratch.begin({})
            scratch.execute(statement("INSERT INTO t(a) VALUES (random())"))
            scratch.rollback()
            replica.done(f"INSERT INTO t(a) VALUES ({i})")
            replica.done("VACUUM", solo=True)
            assert replica.machine.empty_wal(lambda: False)
        scratch.close()
        replica.done("INSERT INTO t(a) VALUES (9)")

    def test_scratch_and_readers_never_checkpoint(self, make_replica: Make) -> None:
        """A checkpoint by another connection changes data_version, and looks like a foreign write."""
        replica = make_replica(TABLE)
        other = open_writer(replica.path, REGISTRARS)
        assert other.pragma("wal_autocheckpoint") == 0
        other.close()
        replica.done("INSERT INTO t(a) VALUES (9)")


class TestDigest:
    def test_it_covers_the_old_values_of_rows_without_a_primary_key(self, make_replica: Make) -> None:
        """A damaged row is found at the next write that touches it."""
        one, two = (make_replica("CREATE TABLE n(x)", "INSERT INTO n VALUES (1)") for _ in range(2))
        assert one.machine.digest == two.machine.digest
        two.machine._connection.execute("UPDATE n SET x = 2")
        for replica in (one, two):
            replica.done("UPDATE n SET x = 3")
        assert dump(one.path) == dump(two.path)
        assert one.machine.digest != two.machine.digest

    @pytest.mark.parametrize("batched", [False, True])
    def test_it_does_not_depend_on_batches_or_restarts(self, make_replica: Make, batched: bool) -> None:
        """Digests of nodes are compared at equal versions, not at equal entries."""
        programs = [
            "CREATE TABLE x(a UNIQUE)",
            "INSERT INTO x VALUES (random())",
            "INSERT INTO x VALUES (1)",
            "INSERT INTO x VALUES (1)",
            "INSERT OR ROLLBACK INTO x VALUES (1)",
            "UPDATE x SET a = a + 1 WHERE a = 1",
            "CREATE INDEX i ON x(a)",
        ]
        one, two = make_replica(), make_replica()
        for sql in programs:
            one.run(sql)
            one.restart()
        items = [two.next(sql) for sql in programs]
        for start, end in ((0, 7),) if batched else ((0, 3), (3, 7)):
            two.apply(*items[start:end])
        assert one.machine.digest == two.machine.digest
        assert dump(one.path) == dump(two.path)

    def test_a_large_change_is_hashed_like_a_small_one(self, make_replica: Make) -> None:
        """Whether the changeset was streamed or not must not show."""
        one, two = make_replica("CREATE TABLE n(x)"), make_replica("CREATE TABLE n(x)")
        for replica in (one, two):
            replica.done("INSERT INTO n VALUES (zeroblob(300000))", "INSERT INTO n VALUES (1)")
        assert one.machine.digest == two.machine.digest


def test_it_may_be_used_by_one_thread_after_the_other(make_replica: Make) -> None:
    """Apply has a thread of its own; opening happened on another."""
    replica = make_replica(TABLE)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            replica.done("INSERT INTO t(a, b) VALUES (1, datetime('now'))")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    assert replica.rows("SELECT b FROM t") == [("2023-11-14 22:13:20",)]


class TestProtocol:
    """The version of the protocol that the group uses is part of the state."""

    def test_it_is_raised_by_an_entry_and_never_goes_back(self, make_replica: Make) -> None:
        """Also when two leaders ask for it, and over restarts."""
        replica = make_replica(TABLE)
        assert replica.machine.protocol == 1
        for version, expected in ((2, 2), (1, 2)):
            replica.apply(use_protocol(version))
            assert replica.machine.protocol == expected
            replica.restart()
            assert replica.machine.protocol == expected

    def test_an_older_version_stops_before_the_entry_that_it_does_not_know(self, make_replica: Make) -> None:
        """And says what to do; upgraded, it goes on from there."""
        item = Item(ItemKind.VERIFY, b"v" * 16)
        for unknown in (use_protocol(2), item):
            older = make_replica(TABLE, speaks=1)
            index, digest = older.machine.applied_index, older.machine.digest
            for _ in range(2):
                with pytest.raises(
                    NodeFault, match="uses protocol 2 from here on, and this node speaks 1 at most: upgr"
                ):
                    older.apply(older.next("INSERT INTO t(a) VALUES (1)"), unknown)
            assert (older.machine.applied_index, older.machine.digest) == (index, digest)
            assert older.rows("SELECT count(*) FROM t") == [(0,)]
            older.restart()
            older.apply(unknown)
            assert older.machine.applied_index == index + 1

    def test_an_older_version_stops_before_an_entry_that_tells_its_leaders_clock(self, make_replica: Make) -> None:
        """The versions before did not know of it, and so must not be sent it; without it, they read the entry."""
        older = make_replica(TABLE, speaks=1)
        index = older.machine.applied_index
        item = older.next("INSERT INTO t(a) VALUES (1)")
        with pytest.raises(NodeFault, match="uses protocol 2 from here on, and this node speaks 1 at most: upgr"):
            older.machine.apply(index + 1, 1, encode_entry(Entry(CLOCK, (item,), clock=CLOCK)))
        assert older.machine.applied_index == index
        older.machine.apply(index + 1, 1, encode_entry(Entry(CLOCK, (item,))))
        assert older.rows("SELECT a FROM t") == [(1,)]

    @pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x90", b"\x91\xa1x", b"\x01"])
    def test_an_entry_that_does_not_say_which_is_malformed(self, make_replica: Make, payload: bytes) -> None:
        replica = make_replica()
        with pytest.raises(MalformedEntry, match="PROTOCOL"):
            replica.apply(Item(ItemKind.PROTOCOL, payload))
