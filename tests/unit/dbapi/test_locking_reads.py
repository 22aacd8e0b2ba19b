"""SELECT ... FOR UPDATE outside of BEGIN: it begins a transaction where one is due, and else locks for itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from django_raftsqlite import dbapi
from django_raftsqlite.exceptions import LeaseTimeout
from django_raftsqlite.sqlite.classify import FOR_UPDATE, FOR_UPDATE_NOWAIT

Connect = Callable[..., dbapi.Connection]


@pytest.fixture
def holder(connect: Connect) -> dbapi.Connection:
    holder = connect()
    holder.execute("CREATE TABLE t(x)")
    holder.execute("INSERT INTO t VALUES (1)")
    return holder


def test_with_autocommit_off_a_locking_read_begins_a_transaction(holder: dbapi.Connection, connect: Connect) -> None:
    holder.isolation_level = ""
    assert holder.execute(f"SELECT x FROM t {FOR_UPDATE}").fetchall() == [(1,)]
    assert holder.in_transaction
    other = connect()
    other.timeout = 0.2
    with pytest.raises(LeaseTimeout):
        other.execute("UPDATE t SET x = 2")
    holder.rollback()
    connect().execute("UPDATE t SET x = 2")


def test_in_autocommit_a_locking_read_waits_for_the_lock_and_gives_it_back(
    holder: dbapi.Connection, connect: Connect
) -> None:
    other = connect()
    assert other.execute(f"SELECT x FROM t {FOR_UPDATE}").fetchall() == [(1,)]
    assert not other.in_transaction
    holder.execute("BEGIN IMMEDIATE")
    other.timeout = 0.2
    for lock in (FOR_UPDATE, FOR_UPDATE_NOWAIT):
        with pytest.raises(LeaseTimeout):
            other.execute(f"SELECT x FROM t {lock}")
    assert not other.in_transaction
    assert other.execute("SELECT x FROM t").fetchall() == [(1,)], "reads that lock nothing wait for nobody"
    holder.execute("ROLLBACK")
    assert other.execute(f"SELECT x FROM t {FOR_UPDATE_NOWAIT}").fetchall() == [(1,)]
