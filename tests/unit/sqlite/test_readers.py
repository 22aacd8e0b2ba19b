"""Readers cannot write, and come back from the pool as they left it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import apsw
import pytest

from django_raftsqlite.sqlite.classify import classify
from django_raftsqlite.sqlite.connections import open_reader
from django_raftsqlite.sqlite.readers import ReaderPool
from django_raftsqlite.sqlite.tables import read_base

from .replay import REGISTRARS, Replica

Make = Callable[..., Replica]


@pytest.fixture
def replica(make_replica: Make) -> Replica:
    return make_replica("CREATE TABLE t(a)", "INSERT INTO t VALUES (1), (2), (3)")


@pytest.fixture
def pool(replica: Replica) -> Iterator[ReaderPool]:
    pool = ReaderPool(replica.path, REGISTRARS, maximum_idle=2)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1)",
        "CREATE TABLE u(a)",
        "PRAGMA user_version = 3",
        "VACUUM",
        "ANALYZE",
    ],
)
def test_a_reader_cannot_write(replica: Replica, sql: str) -> None:
    """Only the apply connection ever commits, whatever a reader is told."""
    reader = open_reader(replica.path, REGISTRARS)
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute(sql)
    reader.close()


def test_a_reader_has_functions_foreign_keys_and_the_base(replica: Replica) -> None:
    """What a statement means there is what it means on scratch."""
    reader = open_reader(replica.path, REGISTRARS)
    assert reader.execute("SELECT LPAD('x', 3, 'ab')").fetchall() == [("abx",)]
    assert reader.pragma("foreign_keys") == 1
    assert reader.pragma("journal_mode") == "wal"
    assert read_base(reader) == replica.machine.base
    reader.close()


def test_a_snapshot_stays_while_the_state_moves_on(replica: Replica) -> None:
    """`atomic()` begins with a read transaction; its base says whether the state is still that one."""
    reader = open_reader(replica.path, REGISTRARS)
    reader.execute("BEGIN")
    base = read_base(reader)
    replica.done("DELETE FROM t")
    assert reader.execute("SELECT count(*) FROM t").fetchall() == [(3,)]
    assert read_base(reader) == base != replica.machine.base
    reader.execute("ROLLBACK")
    assert read_base(reader) == replica.machine.base
    reader.close()


def test_a_connection_is_used_again(pool: ReaderPool) -> None:
    """Opening one with all functions costs as much as a get()."""
    first = pool.acquire()
    pool.release(first)
    assert pool.acquire() is first
    pool.release(first)


def test_at_most_so_many_wait_idle(pool: ReaderPool) -> None:
    """The rest are closed when they come back."""
    lent = [pool.acquire() for _ in range(4)]
    for connection in lent:
        pool.release(connection)
    with pytest.raises(apsw.ConnectionClosedError):
        lent[-1].execute("SELECT 1")
    assert {id(pool.acquire()) for _ in range(2)} == {id(lent[0]), id(lent[1])}
    for connection in lent[:2]:
        connection.close()


@pytest.mark.parametrize("left", ["a transaction", "a half-read cursor"])
def test_the_next_borrower_sees_the_newest_state(pool: ReaderPool, replica: Replica, left: str) -> None:
    """A snapshot that is left open would answer with old rows."""
    connection = pool.acquire()
    if left == "a transaction":
        connection.execute("BEGIN")
    cursor = connection.execute("SELECT a FROM t")
    assert cursor.fetchone() == (1,)
    pool.release(connection)
    replica.done("DELETE FROM t")
    again = pool.acquire()
    assert again.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
    pool.release(again)


@pytest.mark.parametrize("how", ["reuse=False", "a temporary table"])
def test_a_connection_that_was_altered_is_not_lent_again(pool: ReaderPool, how: str) -> None:
    """Temporary tables and functions of one connection must not be seen by another's statements."""
    connection = pool.acquire()
    if how == "a temporary table":
        sql = "CREATE TEMP TABLE t(a)"
        classify(connection, sql)
        connection.execute(sql)
    pool.release(connection, reuse=how != "reuse=False")
    other = pool.acquire()
    assert other is not connection
    assert other.execute("SELECT count(*) FROM t").fetchall() == [(3,)]
    pool.release(other)


def test_a_closed_pool_closes_what_comes_back(replica: Replica) -> None:
    """Nothing is left open behind a node that ended."""
    pool = ReaderPool(replica.path, REGISTRARS)
    lent = pool.acquire()
    pool.close()
    pool.release(lent)
    with pytest.raises(apsw.ConnectionClosedError):
        lent.execute("SELECT 1")


def test_threads_share_the_pool(pool: ReaderPool) -> None:
    """No connection is lent twice at the same time."""
    lent: set[int] = set()
    guard = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                connection = pool.acquire()
                with guard:
                    assert id(connection) not in lent
                    lent.add(id(connection))
                connection.execute("SELECT count(*) FROM t").fetchall()
                with guard:
                    lent.remove(id(connection))
                pool.release(connection)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
