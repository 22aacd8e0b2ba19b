"""What was prepared while foreign keys were deferred must not be run as if they still were.

The end of a transaction switches `defer_foreign_keys` off without expiring the statements that were prepared while
it was on. Such a statement has no statement journal for a foreign key that fails at once: SQLite reports the
failure and keeps the row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from django_raftsqlite.sqlite.entry import Status
from django_raftsqlite.sqlite.errors import StatementError
from django_raftsqlite.sqlite.scratch import Scratch

from .replay import Replica, statement

SCHEMA = ("CREATE TABLE a (id INTEGER PRIMARY KEY)", "CREATE TABLE b (id INTEGER PRIMARY KEY, a REFERENCES a (id))")
VIOLATION = ("INSERT INTO b(a) VALUES (?)", (7,))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("by", ["state", "statement"])
def test_a_failed_row_is_not_kept_after_a_transaction_that_deferred(
    make_replica: Callable[..., Replica], batched: bool, by: str
) -> None:
    replica = make_replica(*SCHEMA)
    if by == "state":
        deferring = replica.next(VIOLATION, pragmas={"defer_foreign_keys": 1})
    else:
        deferring = replica.next(
            "PRAGMA defer_foreign_keys = 1", VIOLATION, "DELETE FROM b", base=replica.machine.base
        )
    failing = replica.next(VIOLATION)
    outcomes = replica.apply(deferring, failing) if batched else replica.apply(deferring) + replica.apply(failing)
    assert outcomes[0].status is (Status.ERROR if by == "state" else Status.DONE)
    assert outcomes[1].status is Status.ERROR
    assert replica.rows("SELECT * FROM b") == []


def test_a_failed_row_is_not_seen_on_scratch_after_a_transaction_that_deferred(
    make_replica: Callable[..., Replica], tmp_path: Path
) -> None:
    replica = make_replica(*SCHEMA)
    scratch = Scratch(replica.path, replica.registrars, durable=False)
    try:
        for deferral in ({"defer_foreign_keys": 1}, {}):
            scratch.begin(deferral)
            if not deferral:
                scratch.execute(statement("PRAGMA defer_foreign_keys = 1"))
            scratch.execute(statement(VIOLATION))
            scratch.rollback()
            scratch.begin({})
            with pytest.raises(StatementError, match="FOREIGN KEY"):
                scratch.execute(statement(VIOLATION))
            assert scratch.execute(statement("SELECT * FROM b")).rows == []
            scratch.rollback()
    finally:
        scratch.close()


def test_a_state_pragma_set_within_a_transaction_ends_with_it(make_replica: Callable[..., Replica]) -> None:
    """On apply and after a restart alike: a node that starts now has all of them at their defaults."""
    replica = make_replica(
        "CREATE TABLE t (x)",
        "CREATE TRIGGER r AFTER INSERT ON t WHEN new.x < 3 BEGIN INSERT INTO t VALUES (new.x + 1); END",
    )
    replica.done("PRAGMA recursive_triggers = 1", "INSERT INTO t VALUES (0)", base=replica.machine.base)
    assert replica.rows("SELECT count(*) FROM t") == [(4,)]
    replica.done("DELETE FROM t")
    replica.done("INSERT INTO t VALUES (0)")
    assert replica.rows("SELECT count(*) FROM t") == [(2,)]


def test_a_state_pragma_set_on_scratch_ends_with_its_transaction(make_replica: Callable[..., Replica]) -> None:
    replica = make_replica(*SCHEMA)
    scratch = Scratch(replica.path, replica.registrars, durable=False)
    try:
        scratch.begin({})
        scratch.execute(statement("PRAGMA recursive_triggers = 1"))
        scratch.rollback()
        scratch.begin({})
        assert scratch.execute(statement("PRAGMA recursive_triggers")).rows == [(0,)]
        scratch.rollback()
    finally:
        scratch.close()
