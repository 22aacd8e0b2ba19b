"""Nodes of one group, with their real threads, sockets and files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from django_raftsqlite import __version__
from django_raftsqlite.dbapi.readers import Readers
from django_raftsqlite.dbapi.transaction import Transaction
from django_raftsqlite.exceptions import (
    CommitOutcomeUnknown,
    LeaseTimeout,
    OperationalError,
    TransactionConflict,
    Unavailable,
)
from django_raftsqlite.node import fingerprint, socketpath, suspicion, wire
from django_raftsqlite.node.api import LeaseLost, Moved, NodeConfig, WriteSession
from django_raftsqlite.node.attached import AttachedSession
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.registry import attach_node
from django_raftsqlite.node.requests import OriginClosed
from django_raftsqlite.sqlite.entry import (
    Result,
    Statement,
    Status,
    result_digest,
)
from django_raftsqlite.sqlite.errors import NodeFault, StatementError
from tests.support.forks import in_child
from tests.support.nodes import Group, eventually, group, read, statement, write

NOBODY = 65534


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Group]:
    # A transaction between two statements is not idle where the machine stands still.
    with group(tmp_path, 3, lease_timeout=None) as made:
        made.leader()
        write(made.nodes[0], "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        made.settle()
        yield made


def run(session: WriteSession, sql: str, *parameters: Any) -> tuple[Statement, Result]:
    """Run a statement; it as COMMIT sends it, and its result."""
    sent = statement(sql, *parameters)
    result = session.execute(sent)
    return sent._replace(expect=result_digest(0, result)), result


def run_where_it_is(session: WriteSession, sql: str, *parameters: Any) -> tuple[Statement, Result]:
    """:func:`run` as the first statement of a session: anything that is applied at that moment moves it."""
    while True:
        try:
            return run(session, sql, *parameters)
        except Moved:
            session.resume()


def test_a_write_on_any_node_is_applied_on_all(trio: Group) -> None:
    for number, node in enumerate(trio.nodes):
        result = write(node, "INSERT INTO t (x) VALUES (?) RETURNING id, x", number)
        assert result.rows == [(number + 1, number)] and result.lastrowid == number + 1
        assert read(node, "SELECT count(*) FROM t") == [(number + 1,)], "own writes are seen at once"
    trio.settle()
    for node in trio.nodes:
        assert read(node, "SELECT x FROM t ORDER BY id") == [(0,), (1,), (2,)]


def test_a_statements_own_error_comes_back_from_every_node(trio: Group) -> None:
    write(trio.nodes[0], "INSERT INTO t VALUES (1, 'a')")
    for node in trio.nodes:
        with pytest.raises(StatementError, match=r"UNIQUE constraint failed: t\.id"):
            write(node, "INSERT INTO t VALUES (1, 'b')")
    trio.settle()


def test_a_transaction_sees_its_own_writes_and_the_others_see_them_after_commit(trio: Group) -> None:
    node = trio.nodes[trio.follower()]
    session = node.begin({}, reason="test", timeout=5)
    sent, _ = run(session, "INSERT INTO t VALUES (7, 'mine')")
    assert session.execute(statement("SELECT x FROM t")).rows == [("mine",)]
    assert read(node, "SELECT * FROM t") == []
    session.commit([sent], timeout=5)
    assert read(node, "SELECT x FROM t") == [("mine",)]
    trio.settle()


def test_a_rolled_back_transaction_leaves_nothing_and_frees_the_lease(trio: Group) -> None:
    session = trio.nodes[0].begin({}, reason="test", timeout=5)
    run(session, "INSERT INTO t VALUES (7, 'mine')")
    session.rollback()
    session.rollback()
    write(trio.nodes[1], "INSERT INTO t VALUES (8, 'other')")
    trio.settle()
    assert read(trio.nodes[0], "SELECT id FROM t") == [(8,)]


def test_transactions_of_all_nodes_run_one_after_the_other(trio: Group) -> None:
    """A read-modify-write loop on every node loses no update."""
    write(trio.nodes[0], "INSERT INTO t VALUES (1, 0)")
    failures: list[BaseException] = []

    def increment_once(session: WriteSession) -> bool:
        try:
            _, value = run(session, "SELECT x FROM t WHERE id = 1")
            sent, _ = run(session, "UPDATE t SET x = ? WHERE id = 1", value.rows[0][0] + 1)
            session.commit([sent], timeout=20)
        except Moved:  # the one below it was applied meanwhile
            return False
        return True

    def increment(node: ProcessNode) -> None:
        try:
            for _ in range(15):
                session = node.begin({}, reason="increment", timeout=20)
                while not increment_once(session):
                    session.resume()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=increment, args=(node,)) for node in trio.nodes for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    trio.settle()
    assert read(trio.nodes[0], "SELECT x FROM t") == [(90,)]


def test_writes_wait_while_a_transaction_holds_the_lease_and_the_error_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_raftsqlite.node.calls.ANSWER_GRACE", 10.0)  # the leader's word comes, if late
    with group(tmp_path, 3, lease_timeout=None) as trio:
        write(trio.nodes[0], "CREATE TABLE t (x)")
        session = trio.nodes[1].begin({}, reason="UPDATE the_holders_statement", timeout=5)
        with pytest.raises(LeaseTimeout, match=r"database is locked.*the_holders_statement"):
            write(trio.nodes[2], "INSERT INTO t VALUES (1)", timeout=0.4)
        with pytest.raises(LeaseTimeout, match="NOWAIT"):
            trio.nodes[0].begin({}, reason="nowait", timeout=5, nowait=True)
        with pytest.raises(LeaseTimeout, match="database is locked"):
            trio.nodes[0].begin({}, reason="waits", timeout=0.4)
        session.rollback()
        write(trio.nodes[2], "INSERT INTO t VALUES (2)")
        trio.settle()
        assert read(trio.nodes[0], "SELECT x FROM t") == [(2,)], "what was refused is never applied"


def test_an_idle_holder_loses_the_lease_while_others_wait_and_its_application_is_told(tmp_path: Path) -> None:
    with group(tmp_path, 3, lease_timeout=0.2) as trio:
        write(trio.nodes[0], "CREATE TABLE t (x)")
        session = trio.nodes[1].begin({}, reason="idle", timeout=5)
        sent, _ = run(session, "INSERT INTO t VALUES ('lost')")
        write(trio.nodes[2], "INSERT INTO t VALUES ('kept')")
        with pytest.raises(LeaseLost, match="idle"):
            session.commit([sent], timeout=5)
        trio.settle()
        assert read(trio.nodes[1], "SELECT x FROM t") == [("kept",)]


def past_the_lease(node: ProcessNode, sql: str) -> None:
    """Write without regard to who has the lease, as a COMMIT does that an earlier leader was sent."""
    encode = node.settling.encoder((statement(sql),), None, {}, solo=False)
    request = node.origin.create(encode, solo=False, lease=b"of an earlier leader")
    request.sent = True
    assert node.backend().execute(request, timeout=10).status is Status.DONE
    node.origin.forget(request)


def test_a_long_statement_on_scratch_does_not_hold_up_apply(trio: Group) -> None:
    """It is interrupted, and its transaction is to be run again."""
    leader = trio.leader()
    victim, other = trio.nodes[(leader + 1) % 3], trio.nodes[(leader + 2) % 3]
    write(other, "INSERT INTO t VALUES (1, 'opens its origin')")
    session = victim.begin({}, reason="long", timeout=5)
    raised: list[BaseException] = []

    def forever() -> None:
        endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c"
        try:
            session.execute(statement(endless))
        except Moved as error:
            raised.append(error)

    thread = threading.Thread(target=forever)
    thread.start()
    lane = trio.host(trio.nodes.index(victim))._lane
    eventually(lambda: lane.turn is not None and lane.turn.busy, "the long statement runs")
    past_the_lease(other, "INSERT INTO t VALUES (2, 'meanwhile')")
    thread.join(20)
    assert len(raised) == 1
    eventually(lambda: len(read(victim, "SELECT x FROM t")) == 2, "the victim applies the others' write")
    session.resume()
    assert len(session.execute(statement("SELECT * FROM t")).rows) == 2, "on the newest state"
    session.rollback()


def test_a_transaction_whose_base_is_gone_is_refused_by_apply(trio: Group) -> None:
    """Whatever the lease says: here somebody writes while the transaction holds it."""
    node = trio.nodes[trio.follower()]
    writer = trio.nodes[trio.leader()]
    write(writer, "INSERT INTO t VALUES (0, 'opens its origin')")
    session = node.begin({}, reason="test", timeout=5)
    sent, _ = run(session, "INSERT INTO t VALUES (1, 'stale')")
    base = session.base
    past_the_lease(writer, "INSERT INTO t VALUES (2, 'newer')")

    encode = node.settling.encoder((sent,), base, {}, solo=False)
    request = node.origin.create(encode, solo=False, lease=session._session.claim)
    assert node.backend().execute(request, timeout=5).status is Status.CONFLICT
    session.rollback()
    trio.settle()
    assert read(trio.nodes[0], "SELECT id FROM t ORDER BY id") == [(0,), (2,)]


def test_the_next_transaction_of_a_node_lies_on_top_of_those_that_are_being_committed(trio: Group) -> None:
    """It sees what they wrote, before that is applied, and is committed after them."""
    number = trio.follower()
    node, driver = trio.nodes[number], trio.host(number)._driver
    write(node, "INSERT INTO t VALUES (1, 0)")
    first = node.begin({}, reason="first", timeout=10)
    sent, _ = run_where_it_is(first, "UPDATE t SET x = x + 1 WHERE id = 1")
    held, go_on = threading.Event(), threading.Event()
    driver.call(lambda: (held.set(), go_on.wait(10)))  # what this node is told takes its time
    assert held.wait(10)
    committer = threading.Thread(target=lambda: first.commit([sent], timeout=20))
    committer.start()
    second = node.begin({}, reason="second", timeout=10)
    try:
        assert read(node, "SELECT x FROM t") == [(0,)], "the first is not committed yet"
        sent, result = run_where_it_is(second, "UPDATE t SET x = x * 10 WHERE id = 1 RETURNING x")
        assert result.rows == [(10,)]
    finally:
        go_on.set()
        committer.join(20)
    while True:
        try:
            second.commit([sent], timeout=20)
            break
        except Moved:
            second.resume()
            assert second.repeat([sent]) == [result]
    assert read(node, "SELECT x FROM t") == [(10,)]
    trio.settle()


@pytest.mark.parametrize("undone", [False, True])
def test_what_saw_a_write_that_is_being_committed_does_not_end_before_it(trio: Group, undone: bool) -> None:
    """Also when it has nothing to commit itself: what it saw could still be lost."""
    number = trio.follower()
    node, driver = trio.nodes[number], trio.host(number)._driver
    write(node, "INSERT INTO t VALUES (1, 0)")
    first = node.begin({}, reason="first", timeout=10)
    sent, _ = run(first, "UPDATE t SET x = x + 1 WHERE id = 1")
    held, go_on = threading.Event(), threading.Event()
    driver.call(lambda: (held.set(), go_on.wait(10)))
    assert held.wait(10)
    committer = threading.Thread(target=lambda: first.commit([sent], timeout=20))
    committer.start()
    readers = Readers(node.readers)
    second = Transaction(node, readers, 20)
    seen: list[object] = []

    def commit() -> None:
        second.commit()
        seen.append(read(node, "SELECT x FROM t"))

    try:
        second.write({}, reason="second")
        if undone:
            second.savepoint("s")
            second.execute("UPDATE t SET x = 100", None, writes=True)
            second.rollback_to("s")
        assert second.execute("SELECT x FROM t", None, writes=False).rows == [(1,)]
        ending = threading.Thread(target=commit)
        ending.start()
        ending.join(0.3)
    finally:
        go_on.set()
        committer.join(20)
    ending.join(20)
    readers.close()
    assert seen == [[(1,)]]
    assert not second.committed


def test_what_read_under_a_lease_that_is_gone_does_not_end_as_if_it_had_held_it(trio: Group) -> None:
    """A node that hears nothing cannot know whose the lease is now; COMMIT asks, also when it has nothing to send."""
    number = trio.follower()
    node, driver = trio.nodes[number], trio.host(number)._driver
    writer = trio.nodes[trio.leader()]
    write(writer, "INSERT INTO t VALUES (2, 0)")
    write(node, "INSERT INTO t VALUES (1, 0)")
    readers = Readers(node.readers)
    locked = Transaction(node, readers, 20)
    locked.write({}, reason="locked")
    assert locked.execute("SELECT x FROM t WHERE id = 1", None, writes=False).rows == [(0,)]
    held, go_on = threading.Event(), threading.Event()
    driver.call(lambda: (held.set(), go_on.wait(10)))
    assert held.wait(10)
    ended: list[BaseException | None] = []

    def commit() -> None:
        try:
            locked.commit()
        except TransactionConflict as error:
            ended.append(error)
        else:
            ended.append(None)

    try:
        past_the_lease(writer, "UPDATE t SET x = 7 WHERE id = 1")
        ending = threading.Thread(target=commit)
        ending.start()
        ending.join(0.3)
    finally:
        go_on.set()
    ending.join(20)
    readers.close()
    assert [type(error) for error in ended] == [TransactionConflict]


def test_what_lies_on_top_of_a_transaction_that_failed_is_gone_with_it(trio: Group) -> None:
    """The second was to see the first's write; run again, it does not."""
    number = trio.follower()
    node, host = trio.nodes[number], trio.host(number)
    writer = trio.nodes[trio.leader()]
    write(writer, "INSERT INTO t VALUES (1, 0)")
    trio.settle()
    first = node.begin({}, reason="first", timeout=10)
    sent, _ = run_where_it_is(first, "UPDATE t SET x = 5 WHERE id = 1")
    held, go_on = threading.Event(), threading.Event()
    host._driver.call(lambda: (held.set(), go_on.wait(10)))
    assert held.wait(10)
    lost: list[BaseException] = []

    def commit() -> None:
        eventually(lambda: len(host._turns) > 0, "the second one waits for its turn")
        try:
            first.commit([sent], timeout=20)
        except LeaseLost as error:
            lost.append(error)

    committer = threading.Thread(target=commit)
    committer.start()
    second = node.begin({}, reason="second", timeout=10)
    assert run_where_it_is(second, "SELECT x FROM t")[1].rows == [(5,)]
    past = threading.Thread(target=lambda: past_the_lease(writer, "UPDATE t SET x = 7 WHERE id = 1"))
    past.start()
    eventually(lambda: read(writer, "SELECT x FROM t") == [(7,)], "somebody else came first")
    go_on.set()
    committer.join(20)
    past.join(20)
    assert len(lost) == 1
    with pytest.raises((Moved, LeaseLost)) as raised:
        second.execute(statement("SELECT x FROM t"))
    if raised.type is Moved:
        second.resume()
        assert second.execute(statement("SELECT x FROM t")).rows == [(7,)]
    second.rollback()
    trio.settle()


def increment_locked(node: ProcessNode, readers: Readers, table: str, timeout: float) -> None:
    """Read ``x`` of row 1 under the lease, and write one more."""
    locked = Transaction(node, readers, timeout)
    locked.write({}, reason="locked")
    ((x,),) = locked.execute(f"SELECT x FROM {table} WHERE id = 1", None, writes=False).rows
    locked.execute(f"UPDATE {table} SET x = ? WHERE id = 1", (x + 1,), writes=True)
    locked.commit()


def test_the_commits_of_a_run_leave_before_its_lease(trio: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of a node's transactions wait, and wherever its run ends: what the next one reads has them."""
    monkeypatch.setattr("django_raftsqlite.node.sequencer.RUN", 0.002)  # so that it ends while others wait
    write(trio.nodes[0], "CREATE TABLE counter (id INTEGER PRIMARY KEY, x)")
    write(trio.nodes[0], "INSERT INTO counter VALUES (1, 0)")
    failures: list[BaseException] = []

    def increment(node: ProcessNode) -> None:
        readers = Readers(node.readers)
        try:
            for _ in range(25):
                increment_locked(node, readers, "counter", 60)
        except BaseException as error:
            failures.append(error)
        finally:
            readers.close()

    threads = [threading.Thread(target=increment, args=(node,)) for node in trio.nodes[:2] for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert failures == []
    trio.settle()
    assert read(trio.nodes[0], "SELECT x FROM counter") == [(200,)]


def test_what_a_transaction_has_locked_stays_locked_while_leadership_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every new leader grants the lease to whom it belongs, and lets nobody write past it."""
    monkeypatch.setattr("django_raftsqlite.node.leader.RECLAIM", 20.0)  # at most: until all have told what they hold
    with group(tmp_path, 3, lease_timeout=None) as trio:
        write(trio.nodes[0], "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        write(trio.nodes[0], "INSERT INTO t VALUES (1, 0)")
        failures: list[BaseException] = []
        done: list[int] = []
        stop = threading.Event()

        def increment(node: ProcessNode) -> None:
            readers = Readers(node.readers)
            try:
                while not stop.is_set():
                    increment_locked(node, readers, "t", 30)
                    done.append(1)
                    write(node, "UPDATE t SET x = x + 1 WHERE id = 1", timeout=30)
                    done.append(1)
            except BaseException as error:
                failures.append(error)
            finally:
                readers.close()

        threads = [threading.Thread(target=increment, args=(node,)) for node in trio.nodes for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            # On a busy machine some of the transfers come to nothing.
            first, transfers, give_up = trio.host(trio.leader())._driver.view.term, 0, time.monotonic() + 60
            while transfers < 12 or trio.host(trio.leader())._driver.view.term < first + 4:
                assert time.monotonic() < give_up, "leadership does not move"
                number, before = trio.leader(), len(done)
                driver = trio.host(number)._driver
                driver.call(driver._with_replica, lambda replica: replica.handover.to_whoever_is_ready())
                eventually(lambda before=before: failures or len(done) > before + 20, "writes go on")
                transfers += 1
        finally:
            stop.set()
            for thread in threads:
                thread.join(40)
        assert failures == []
        trio.settle()
        assert read(trio.nodes[0], "SELECT x FROM t") == [(len(done),)]


def test_acknowledged_writes_survive_a_change_of_leader_exactly_once(trio: Group) -> None:
    acknowledged: list[int] = []
    unknown: list[int] = []
    stop = threading.Event()
    numbers = iter(range(10**6))

    def writer(node: ProcessNode) -> None:
        while not stop.is_set():
            number = next(numbers)
            try:
                write(node, "INSERT INTO t (x) VALUES (?)", number, timeout=10)
            except (Unavailable, LeaseTimeout):
                continue
            except CommitOutcomeUnknown:
                unknown.append(number)
            else:
                acknowledged.append(number)

    leader = trio.leader()
    survivors = [node for number, node in enumerate(trio.nodes) if number != leader]
    threads = [threading.Thread(target=writer, args=(node,)) for node in survivors for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) > 50, "writes before")
    trio.nodes[leader].close()
    before = len(acknowledged)
    eventually(lambda: len(acknowledged) > before + 50, "writes after the leader has gone")
    trio.restart(leader)
    again = len(acknowledged)
    eventually(lambda: len(acknowledged) > again + 50, "writes after it is back")
    stop.set()
    for thread in threads:
        thread.join()
    trio.settle()
    for node in trio.nodes:
        found = [x for (x,) in read(node, "SELECT x FROM t")]
        assert len(found) == len(set(found)), "applied twice"
        assert set(acknowledged) <= set(found) <= set(acknowledged) | set(unknown)


def test_without_a_quorum_writes_and_leader_reads_say_so_and_local_reads_go_on(trio: Group) -> None:
    write(trio.nodes[0], "INSERT INTO t VALUES (1, 'a')")
    trio.settle()
    survivor = trio.nodes[0]
    trio.nodes[1].close()
    trio.nodes[2].close()
    eventually(lambda: not survivor.status()["leader_reachable"], "the survivor knows that it has no leader")
    with pytest.raises(Unavailable, match="no quorum") as caught:
        write(survivor, "INSERT INTO t VALUES (2, 'b')", timeout=0.3)
    assert caught.value.reason == "no quorum"
    with pytest.raises(Unavailable, match="no quorum"):
        survivor.read_barrier(timeout=0.3)
    with pytest.raises(Unavailable, match="no quorum"):
        survivor.begin({}, reason="x", timeout=0.3)
    assert read(survivor, "SELECT x FROM t") == [("a",)]


def test_a_leader_read_on_a_follower_sees_what_was_acknowledged_anywhere(trio: Group) -> None:
    follower, other = trio.follower(), trio.leader()
    for number in range(30):
        write(trio.nodes[other], "INSERT INTO t (x) VALUES (?)", number)
        trio.nodes[follower].read_barrier(timeout=5)
        assert read(trio.nodes[follower], "SELECT max(x) FROM t") == [(number,)]


def test_a_group_of_one_elects_itself_at_once_and_finds_its_data_again(tmp_path: Path) -> None:
    config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",))
    node = ProcessNode(config)
    write(node, "CREATE TABLE t (x)")
    write(node, "INSERT INTO t VALUES (1)")
    digest = node.status()["digest"]
    node.close()
    again = ProcessNode(config)
    try:
        eventually(lambda: again.status()["role"] == "leader", "it leads itself")
        assert read(again, "SELECT x FROM t") == [(1,)]
        assert again.status()["version"] == 2 and digest
        write(again, "INSERT INTO t VALUES (2)")
    finally:
        again.close()


def test_a_node_that_cannot_apply_fails_alone_and_says_why(trio: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = trio.follower()
    host = trio.host(victim)
    others = [node for number, node in enumerate(trio.nodes) if number != victim]

    def broken(*_: object) -> None:
        raise NodeFault("disk I/O error (injected)")

    monkeypatch.setattr(host._applier._machine, "apply", broken)
    write(others[0], "INSERT INTO t VALUES (1, 'a')")
    eventually(lambda: host.failed, "the node notices")
    status = trio.nodes[victim].status()
    assert status["role"] == "failed" and "injected" in status["reason"]
    with pytest.raises(Unavailable, match="injected") as caught:
        write(trio.nodes[victim], "INSERT INTO t VALUES (2, 'b')")
    assert caught.value.reason == "failed"
    assert read(trio.nodes[victim], "SELECT * FROM t") == [], "local reads go on"
    write(others[1], "INSERT INTO t VALUES (3, 'c')")
    monkeypatch.undo()
    trio.nodes[victim].close()
    trio.restart(victim)
    trio.settle()
    assert read(trio.nodes[victim], "SELECT id FROM t") == [(1,), (3,)]


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[ProcessNode]:
    config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",), lease_timeout=None)
    node = ProcessNode(config)
    write(node, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    yield node
    node.close()


def test_a_wall_clock_that_jumps_makes_nobody_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log time, by which idle origins are closed, moves by no more than the time that passed."""
    with group(tmp_path, 1) as alone:
        write(alone.nodes[0], "CREATE TABLE t (x)")
        machine = alone.host(0)._applier._machine
        before, now = machine.time, time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: now() + 3_600 * 10**9)
        write(alone.nodes[0], "INSERT INTO t VALUES (1)")
        assert 0 <= machine.time - before < 1_800_000


def test_a_request_of_an_origin_that_is_closed_goes_out_anew_only_if_it_was_sent_once(tmp_path: Path) -> None:
    """Sent before, it may have been executed, and the memory of it gone with its origin: nobody may call it new."""
    with group(tmp_path, 1) as alone:
        node = alone.nodes[0]
        write(node, "CREATE TABLE t (x)")
        encode = node.settling.encoder((statement("INSERT INTO t VALUES (1)"),), None, {}, solo=False)
        node.origin.renew(node.origin.id)  # the group does not know the next one
        request = node.origin.create(encode, solo=False)
        with pytest.raises(OriginClosed):
            node.backend().execute(request, timeout=10)
        request = node.origin.create(encode, solo=False)
        request.sent = True
        assert node.backend().execute(request, timeout=10).status is Status.REFUSED
        assert read(node, "SELECT * FROM t") == []


def test_an_attached_process_writes_reads_and_runs_transactions_through_the_host(hosted: ProcessNode) -> None:
    guest = ProcessNode(hosted.config)
    try:
        assert write(guest, "INSERT INTO t (x) VALUES (?) RETURNING id", "é\x00").rows == [(1,)]
        with pytest.raises(StatementError, match="UNIQUE"):
            write(guest, "INSERT INTO t VALUES (1, 'again')")
        session = guest.begin({}, reason="attached", timeout=5)
        sent, result = run(session, "UPDATE t SET x = ? RETURNING x", b"\x01")
        assert result.rows == [(b"\x01",)] and session.in_transaction
        with pytest.raises(StatementError, match="no such table"):
            run(session, "SELECT * FROM nowhere")
        session.commit([sent], timeout=5)
        guest.read_barrier(timeout=5)
        assert read(hosted, "SELECT x FROM t") == [(b"\x01",)]
        status = guest.status()
        assert status["host"]["pid"] == os.getpid() and not guest.hosting
        assert hosted.status()["host"]["attached"] == [os.getpid()]
    finally:
        guest.close()


def test_an_open_deferred_foreign_key_leaves_an_attached_transaction_open(hosted: ProcessNode) -> None:
    write(hosted, "CREATE TABLE c (p REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED)")
    guest = ProcessNode(hosted.config)
    try:
        session = guest.begin({}, reason="fk", timeout=5)
        child, _ = run(session, "INSERT INTO c VALUES (1)")
        with pytest.raises(StatementError, match="FOREIGN KEY"):
            session.commit([child], timeout=5)
        assert session.in_transaction
        parent, _ = run(session, "INSERT INTO t VALUES (1, NULL)")
        session.commit([child, parent], timeout=5)
        assert read(hosted, "SELECT p FROM c") == [(1,)]
    finally:
        guest.close()


def test_a_guest_that_ends_in_the_middle_of_a_transaction_holds_nothing(hosted: ProcessNode) -> None:
    guest = ProcessNode(hosted.config)
    session = guest.begin({}, reason="dies", timeout=5)
    run(session, "INSERT INTO t VALUES (5, 'lost')")
    assert isinstance(session._session, AttachedSession) and session._session._socket is not None
    session._session._socket.close()
    write(hosted, "INSERT INTO t VALUES (6, 'kept')", timeout=5)
    assert read(hosted, "SELECT id FROM t") == [(6,)]
    guest.close()


def test_a_guest_is_told_clearly_that_its_host_has_gone_and_then_hosts_itself(tmp_path: Path) -> None:
    config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",))
    host = ProcessNode(config)
    write(host, "CREATE TABLE t (x)")
    guest = ProcessNode(config)
    session = guest.begin({}, reason="x", timeout=5)
    host.close()
    with pytest.raises(OperationalError, match="hosts the node"):
        session.execute(statement("SELECT 1"))
    session.rollback()
    try:
        write(guest, "INSERT INTO t VALUES (1)")
        assert guest.hosting
    finally:
        guest.close()


def test_a_guest_that_was_idle_when_its_host_ended_writes_on_without_an_error(tmp_path: Path) -> None:
    """Nothing was under way, so nothing is unknown."""
    config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",))
    host = ProcessNode(config)
    write(host, "CREATE TABLE t (x)")
    guest = ProcessNode(config)
    write(guest, "INSERT INTO t VALUES (1)")
    host.close()
    try:
        write(guest, "INSERT INTO t VALUES (2)")
        assert guest.hosting
        assert read(guest, "SELECT x FROM t") == [(1,), (2,)]
    finally:
        guest.close()


@pytest.mark.parametrize("what", ["__version__", "PROTOCOL"])
def test_a_process_with_other_code_than_its_host_is_refused_and_told_both_versions(
    hosted: ProcessNode, what: str
) -> None:
    stranger = ["hello", wire.PROTOCOL, __version__, 1]
    stranger[1 if what == "PROTOCOL" else 2] = "0.0.1"
    with socketpath.connect(hosted.config.folder, 5) as sock:
        wire.send(sock, stranger)
        answer = wire.receive(sock, time.monotonic() + 20)
    error = wire.decode_error(answer)
    assert type(error) is OperationalError
    for part in (f"process {os.getpid()}", __version__, str(wire.PROTOCOL), "0.0.1", "restart the older"):
        assert part in str(error)


def test_with_host_false_and_no_host_the_error_says_what_to_do(tmp_path: Path) -> None:
    config = NodeConfig(
        name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",), host=False, timeout=0.2
    )
    node = ProcessNode(config)
    with pytest.raises(OperationalError, match="raft node"):
        write(node, "CREATE TABLE t (x)")
    node.close()


def test_the_socket_works_where_its_path_is_too_long_for_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    config = NodeConfig(name=deep / "one.sqlite3", address="localhost", peers=("localhost",))
    node = ProcessNode(config)
    node.backend()
    guest = attach_node(config)
    assert guest is not None
    guest.close()
    node.close()


def test_files_and_socket_have_the_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",), mode=0o660)
        node = ProcessNode(config)
        write(node, "CREATE TABLE t (x)")
    finally:
        os.umask(before)
    try:
        files = [config.name, Path(f"{config.name}-wal"), *config.folder.iterdir()]
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in files}
        assert set(modes.values()) == {"0o660"}, modes
        assert config.folder.stat().st_mode & 0o777 == 0o770
    finally:
        node.close()


def test_files_that_come_later_have_the_mode_whatever_the_umask(tmp_path: Path) -> None:
    """Those of a start, of a stop and of a suspicion: the next one to host may be another user of the group."""

    def modes(folder: Path) -> dict[str, str]:
        written = [path for path in folder.iterdir() if path.suffix != ".new"]  # else it is about to get its name
        return {path.name: oct(path.stat().st_mode & 0o777) for path in written}

    before = os.umask(0o077)
    try:
        with group(tmp_path, 2, mode=0o660) as pair:
            folder = pair.configs[0].folder
            pair.nodes[0].close()
            pair.restart(0)
            pair.leader()
            running = modes(folder)
        suspicion.Mark(folder).set("a reason")
        stopped = modes(folder)
    finally:
        os.umask(before)
    assert {fingerprint.NAME, "socket"} <= running.keys() and set(running.values()) == {"0o660"}, running
    assert {fingerprint.NAME, suspicion.NAME} <= stopped.keys() and set(stopped.values()) == {"0o660"}, stopped


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_what_another_user_may_do_is_what_the_mode_says(mode: int) -> None:
    """Read the file by any tool, or attach, which is as much as being the database's user."""

    def looks() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            with contextlib.closing(sqlite3.connect(f"file:{config.name}?mode=ro", uri=True)) as connection:
                rows = connection.execute("SELECT x FROM t").fetchall()
        except sqlite3.OperationalError:
            rows = None
        assert rows == (None if mode == 0o600 else [("seen",)])
        guest = attach_node(config)
        assert (guest is not None) == (mode == 0o666)
        if guest is not None:
            assert guest.status()["node"] == "localhost"
            guest.close()

    before = os.umask(0o077)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            config = NodeConfig(name=folder / "one.sqlite3", address="localhost", peers=("localhost",), mode=mode)
            node = ProcessNode(config)
            write(node, "CREATE TABLE t (x)")
            write(node, "INSERT INTO t VALUES ('seen')")
            try:
                in_child(looks)
            finally:
                node.close()
    finally:
        os.umask(before)


def test_a_port_that_is_taken_is_an_error_that_names_the_node(tmp_path: Path) -> None:
    with group(tmp_path, 3) as trio:
        config = NodeConfig(name=tmp_path / "other.sqlite3", address=trio.peers[0], peers=trio.peers, secret="s" * 16)
        node = ProcessNode(config)
        with pytest.raises(OperationalError, match=trio.peers[0]):
            node.backend()
        node.close()


def test_a_group_of_one_may_be_given_another_address_and_a_larger_one_not(tmp_path: Path) -> None:
    """Nobody else knows it by its address."""
    config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",))
    node = ProcessNode(config)
    node.backend()
    node.close()
    changed = NodeConfig(name=config.name, address="elsewhere", peers=("elsewhere",))
    other = ProcessNode(changed)
    other.backend()

    def renamed() -> bool:
        members = other.status()["members"]
        return [each["address"] for each in members] == ["elsewhere"] and other.status()["leader"] == "elsewhere"

    eventually(renamed, "the group of one goes on under the new address")
    other.submit(statement("CREATE TABLE t (n)"), {}, solo=False, timeout=10)
    other.close()
    with group(tmp_path, 3) as trio:
        trio.leader()
        eventually(lambda: None not in [m["heard"] for m in trio.nodes[0].status()["members"]], "all are known")
        trio.settle()
        trio.nodes[0].close()
        moved = ProcessNode(replace(trio.configs[0], address="127.0.0.1:1"))
        with pytest.raises(OperationalError, match=f"is that of the member {trio.peers[0]}"):
            moved.backend()
        moved.close()


def test_a_file_that_was_changed_while_its_node_was_stopped_is_not_believed(tmp_path: Path) -> None:
    """data_version only tells of changes while the file is open."""
    with group(tmp_path, 3) as trio:
        write(trio.nodes[0], "CREATE TABLE t (x)")
        trio.settle()
        victim = trio.follower()
        trio.nodes[victim].close()
        trio.restart(victim)
        trio.nodes[victim].close()
        stranger = apsw.Connection(str(trio.configs[victim].name))
        stranger.execute("INSERT INTO t VALUES ('foreign')").close()
        stranger.close()
        trio.restart(victim)
        assert "changed since this node was stopped" in str(trio.nodes[victim].status()["suspect"])
        write(trio.nodes[(victim + 1) % 3], "INSERT INTO t VALUES ('ours')")
        eventually(lambda: trio.nodes[victim].status()["suspect"] is None, "it has another node's content")
        trio.settle()
        assert read(trio.nodes[victim], "SELECT x FROM t") == [("ours",)]


def test_a_database_that_is_not_the_groups_is_not_taken_into_a_new_group(tmp_path: Path) -> None:
    """One node would begin with rows that the others never get."""
    made = Group(tmp_path, 3)
    stranger = apsw.Connection(str(made.configs[0].name))
    stranger.execute("CREATE TABLE theirs (x)").close()
    stranger.close()
    with pytest.raises(OperationalError, match="did not come through the log"):
        made.nodes[0].backend()
    made.close()


def test_a_group_of_one_takes_an_existing_database_over(tmp_path: Path) -> None:
    config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",))
    stranger = apsw.Connection(str(config.name))
    stranger.execute("CREATE TABLE t (x)").close()
    stranger.execute("INSERT INTO t VALUES ('before')").close()
    stranger.close()
    node = ProcessNode(config)
    try:
        write(node, "INSERT INTO t VALUES ('after')")
        assert read(node, "SELECT x FROM t") == [("before",), ("after",)]
    finally:
        node.close()


def test_a_group_of_one_may_be_changed_while_it_is_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",))
    node = ProcessNode(config)
    write(node, "CREATE TABLE t (x)")
    node.close()
    stranger = apsw.Connection(str(config.name))
    stranger.execute("INSERT INTO t VALUES ('by hand')").close()
    stranger.close()
    again = ProcessNode(config)
    try:
        assert read(again, "SELECT x FROM t") == [("by hand",)]
        assert "changed since this node was stopped" in caplog.text
    finally:
        again.close()


def test_closing_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with group(tmp_path, 3) as trio:
        trio.leader()
        assert set(threading.enumerate()) - before
    eventually(lambda: not set(threading.enumerate()) - before, "all threads have ended")
