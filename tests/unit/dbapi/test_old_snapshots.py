"""What a process reads since long is known; SELECTs of autocommit give their snapshot up, transactions only while the
WAL is far above its limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from django_raftsqlite import dbapi
from django_raftsqlite.dbapi import reading
from django_raftsqlite.exceptions import OperationalError, TransactionConflict
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.snapshots import FAR_ABOVE, SnapshotWatch
from tests.support.direct_node import DirectNode

ROWS = 1000
SELECT = "SELECT a FROM t ORDER BY id"
COUNT = f"WITH RECURSIVE c(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM c WHERE x < {ROWS})"
FILL = f"{COUNT} INSERT INTO t(a) SELECT x FROM c"


@pytest.fixture(autouse=True)
def table(connection: dbapi.Connection) -> None:
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
    connection.execute(FILL)


def hurry(node: DirectNode) -> None:
    """As when all of them are old."""
    assert node.readers.free_snapshots(drain_before=time.monotonic() + 1, end_before=0.0) == []


def end(node: DirectNode, *, far_above: bool = False) -> list[str]:
    """As when all of them are very old; what was ended."""
    later = time.monotonic() + 1
    ended = node.readers.free_snapshots(drain_before=later, end_before=later, far_above=far_above)
    return [snapshot.reader for snapshot in ended]


def test_a_read_to_the_end_leaves_no_snapshot(node: DirectNode, connection: dbapi.Connection) -> None:
    """Also when it fails, or is closed or dropped before its end."""
    connection.execute("SELECT 1").fetchall()
    assert node.readers.oldest_snapshot() is None
    with pytest.raises(OperationalError):
        connection.execute("SELECT abs(-9223372036854775808)").fetchall()
    assert node.readers.oldest_snapshot() is None
    cursor = connection.execute(SELECT)
    assert node.readers.oldest_snapshot() is not None
    assert len(cursor.fetchall()) == ROWS
    assert node.readers.oldest_snapshot() is None
    connection.execute(SELECT).close()
    assert node.readers.oldest_snapshot() is None
    cursor = connection.execute(SELECT)
    del cursor
    assert node.readers.oldest_snapshot() is None


def test_the_oldest_of_all_snapshots_is_known(node: DirectNode, connect: Callable[..., dbapi.Connection]) -> None:
    """Of every connection, in a transaction or not."""
    first, second = connect(), connect()
    before = time.monotonic()
    half = first.execute(SELECT)
    second.execute("BEGIN")
    assert second.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]
    oldest = node.readers.oldest_snapshot()
    assert oldest is not None
    assert before <= oldest.since <= time.monotonic()
    assert oldest.reader == SELECT
    half.close()
    oldest = node.readers.oldest_snapshot()
    assert oldest is not None
    assert oldest.reader == "a transaction that has not written"
    second.execute("COMMIT")
    assert node.readers.oldest_snapshot() is None


def test_an_old_select_is_read_to_its_end_at_its_next_fetch(node: DirectNode, connection: dbapi.Connection) -> None:
    """Its rows are those of its snapshot, whatever is written meanwhile."""
    cursor = connection.execute(SELECT)
    assert cursor.fetchone() == (1,)
    hurry(node)
    assert node.readers.oldest_snapshot() is not None
    got = [row[0] for row in cursor.fetchmany(300)]
    assert node.readers.oldest_snapshot() is None
    connection.execute("DELETE FROM t")
    got += [row[0] for row in cursor.fetchall()]
    assert got == list(range(2, ROWS + 1))


def test_an_old_select_with_too_many_rows_ends_with_an_error(
    node: DirectNode, connection: dbapi.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is not for all of it; nobody takes the rows that were read for all there are."""
    monkeypatch.setattr(reading, "DRAIN_LIMIT", 300)
    cursor = connection.execute(SELECT)
    hurry(node)
    got = []
    with pytest.raises(OperationalError, match=r"kept the WAL .*wal_limit.*more than 300 rows"):
        got.extend(iter(cursor.fetchone, None))
    assert got == [(number,) for number in range(1, reading.EAGER + 300 + 1)]
    assert node.readers.oldest_snapshot() is None
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]


def test_a_select_that_nobody_reads_any_more_is_ended_by_another_thread(
    node: DirectNode, connection: dbapi.Connection
) -> None:
    """A half-read iterator() that is kept somewhere; its next fetch says what happened."""
    cursor = connection.execute(SELECT)
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.extend(end(node)))
    thread.start()
    thread.join()
    assert ended == [SELECT]
    assert node.readers.oldest_snapshot() is None
    assert len(cursor.fetchmany(reading.EAGER)) == reading.EAGER
    with pytest.raises(OperationalError, match=r"half read since \d+ s .*wal_limit"):
        cursor.fetchone()
    assert len(connection.execute(SELECT).fetchall()) == ROWS


def test_a_transaction_is_not_touched(node: DirectNode, connection: dbapi.Connection) -> None:
    """What it reads must stay one state to its end."""
    connection.execute("BEGIN")
    cursor = connection.execute(SELECT)
    hurry(node)
    assert end(node) == []
    assert len(cursor.fetchall()) == ROWS
    assert node.readers.oldest_snapshot() is not None
    connection.execute("COMMIT")
    assert node.readers.oldest_snapshot() is None


def begin_to_read(connection: dbapi.Connection) -> dbapi.Cursor:
    """A transaction that has read, and has a SELECT half read."""
    connection.execute("BEGIN")
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]
    return connection.execute(SELECT)


def test_far_above_the_limit_a_transaction_that_reads_gives_its_snapshot_up(
    node: DirectNode, connection: dbapi.Connection
) -> None:
    """It never reads a second state: what it would read next fails, and so does all up to its ROLLBACK."""
    cursor = begin_to_read(connection)
    assert end(node, far_above=True) == ["a transaction that has not written"]
    assert node.readers.oldest_snapshot() is None
    assert len(cursor.fetchmany(reading.EAGER)) == reading.EAGER
    with pytest.raises(OperationalError, match=r"open for \d+ s .*wal_limit"):
        cursor.fetchone()
    for sql in ("SELECT 1", SELECT, "DELETE FROM t"):
        with pytest.raises(TransactionConflict, match=r"open for \d+ s .*wal_limit.*retr"):
            connection.execute(sql)
    assert node.readers.oldest_snapshot() is None
    connection.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]


def test_a_transaction_whose_snapshot_was_given_up_may_end_as_it_is(
    node: DirectNode, connection: dbapi.Connection
) -> None:
    """All that it has read is of one state."""
    begin_to_read(connection)
    assert len(end(node, far_above=True)) == 1
    assert end(node, far_above=True) == []
    connection.commit()
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]


@pytest.mark.parametrize("changed", [False, True])
def test_a_write_after_a_snapshot_was_given_up_goes_on_if_all_is_as_it_was_read(
    node: DirectNode, connection: dbapi.Connection, connect: Callable[..., dbapi.Connection], changed: bool
) -> None:
    connection.execute("BEGIN")
    assert connection.execute("SELECT a FROM t WHERE id = 1").fetchall() == [(1,)]
    end(node, far_above=True)
    connect().execute(f"UPDATE t SET a = 7 WHERE id = {1 if changed else 2}")
    if changed:
        with pytest.raises(TransactionConflict, match="answered differently"):
            connection.execute("UPDATE t SET a = a + 1 WHERE id = 1")
        connection.execute("ROLLBACK")
    else:
        connection.execute("UPDATE t SET a = a + 1 WHERE id = 1")
        connection.commit()
    wanted = [(7,), (2,)] if changed else [(2,), (7,)]
    assert connection.execute("SELECT a FROM t WHERE id < 3 ORDER BY id").fetchall() == wanted


def test_a_transaction_that_writes_or_is_young_is_left_alone(
    node: DirectNode, connection: dbapi.Connection, connect: Callable[..., dbapi.Connection]
) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT a FROM t WHERE id = 1").fetchall()
    assert node.readers.free_snapshots(drain_before=0.0, end_before=0.0, far_above=True) == []
    connection.execute("UPDATE t SET a = 0 WHERE id = 1")
    assert end(node, far_above=True) == []
    connection.commit()
    assert connect().execute("SELECT a FROM t WHERE id = 1").fetchall() == [(0,)]


def test_a_transaction_with_tables_of_its_own_is_left_alone(node: DirectNode, connection: dbapi.Connection) -> None:
    """What it has written there would be undone with its snapshot, and COMMIT would not say so."""
    connection.execute("CREATE TEMP TABLE own (x)")
    connection.execute("BEGIN")
    connection.execute("SELECT a FROM t WHERE id = 1").fetchall()
    connection.execute("INSERT INTO own VALUES (1)")
    assert end(node, far_above=True) == []
    connection.commit()
    assert connection.execute("SELECT x FROM own").fetchall() == [(1,)]


def test_a_connection_at_work_is_left_alone(node: DirectNode, connection: dbapi.Connection) -> None:
    """Its cursor belongs to the thread that uses it; nobody waits for that."""
    cursor = connection.execute(SELECT)
    ended: list[str] = []
    with connection.lock:
        thread = threading.Thread(target=lambda: ended.extend(end(node)))
        thread.start()
        thread.join()
    assert ended == []
    assert len(cursor.fetchall()) == ROWS


def test_selects_are_ended_only_while_the_wal_is_above_its_limit(
    node: DirectNode, connection: dbapi.Connection, config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Old readers do no harm else. What is ended, and what is not, is named in the log once."""
    cursor = connection.execute(SELECT)
    SnapshotWatch(node.readers, config.name, 2**40, old=0.0).check()
    assert not caplog.records
    watch = SnapshotWatch(node.readers, config.name, 1, old=0.0)
    watch.check()
    assert [SELECT in record.message for record in caplog.records] == [True]
    with pytest.raises(OperationalError, match="wal_limit"):
        cursor.fetchall()
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM t").fetchall()
    caplog.clear()
    size = (config.name.with_name(config.name.name + "-wal")).stat().st_size
    above = SnapshotWatch(node.readers, config.name, size - 1, old=0.0)
    above.check()
    above.check()
    assert ["a transaction that has not written" in record.message for record in caplog.records] == [True]
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]
    SnapshotWatch(node.readers, config.name, size // FAR_ABOVE - 1, old=0.0).check()
    with pytest.raises(TransactionConflict, match="wal_limit"):
        connection.execute("SELECT count(*) FROM t")


def test_threads_read_while_their_selects_are_ended(
    node: DirectNode, connect: Callable[..., dbapi.Connection]
) -> None:
    """Each gets all rows in order, or the error after a part of them; never a gap."""
    stop = threading.Event()
    wrong: list[object] = []
    complete: list[int] = []

    def read() -> None:
        connection = connect()
        for _ in range(40):
            got = []
            try:
                got.extend(row[0] for row in connection.execute(SELECT))
                expected = ROWS
            except OperationalError as error:
                if "wal_limit" not in str(error):
                    wrong.append(error)
                expected = len(got)
            except BaseException as error:
                wrong.append(error)
                return
            if got != list(range(1, expected + 1)):
                wrong.append(got)
            complete.append(len(got))

    def harass() -> None:
        while not stop.is_set():
            hurry(node)
            end(node)

    threads = [threading.Thread(target=read) for _ in range(3)]
    harasser = threading.Thread(target=harass)
    for thread in (*threads, harasser):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    harasser.join()
    assert wrong == []
    assert len(complete) == 120
    assert node.readers.oldest_snapshot() is None
