"""Checkpoints never look like a foreign write, never hide one, and lose nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import apsw
import pytest

from django_raftsqlite.sqlite.entry import Statement
from django_raftsqlite.sqlite.errors import ForeignWrite
from django_raftsqlite.sqlite.scratch import Scratch

from .replay import CLOCK, REGISTRARS, Replica

Make = Callable[..., Replica]

TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, a)"
FILL = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5000) "
    "INSERT INTO t(a) SELECT randomblob(1000) FROM c"
)
"""More than SQLite's page cache holds (2 MB), so that a transaction writes to the WAL before its end."""


@pytest.fixture
def replica(make_replica: Make) -> Replica:
    return make_replica(TABLE, "INSERT INTO t(a) VALUES (1)")


@pytest.fixture
def scratch(replica: Replica) -> Iterator[Scratch]:
    scratch = Scratch(replica.path, REGISTRARS, durable=False)
    yield scratch
    scratch.close()


def outgrow_cache(scratch: Scratch) -> None:
    scratch.begin({})
    scratch.execute(Statement(FILL, None, CLOCK, 7))
    scratch.rollback()


def test_a_large_transaction_on_scratch_after_a_checkpoint_is_no_foreign_write(
    replica: Replica, scratch: Scratch
) -> None:
    """It begins the WAL anew, which other connections cannot tell from a commit."""
    replica.rows("PRAGMA wal_checkpoint(PASSIVE)")
    outgrow_cache(scratch)
    replica.done("INSERT INTO t(a) VALUES (2)")
    outgrow_cache(scratch)
    replica.done("INSERT INTO t(a) VALUES (3)")
    assert replica.rows("SELECT a FROM t") == [(1,), (2,), (3,)]


def test_a_foreign_write_behind_such_a_transaction_is_noticed(replica: Replica, scratch: Scratch) -> None:
    """The WAL holds a commit then, and it is not ours."""
    replica.rows("PRAGMA wal_checkpoint(PASSIVE)")
    outgrow_cache(scratch)
    with closing(apsw.Connection(str(replica.path))) as foreign:
        foreign.execute("INSERT INTO t(a) VALUES (2)")
    with pytest.raises(ForeignWrite, match="something else wrote"):
        replica.done("INSERT INTO t(a) VALUES (3)")
