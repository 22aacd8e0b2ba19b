"""Transactions larger than a log entry, on real nodes: sent in parts, applied once, and in nobody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import DataError, Unavailable
from django_raftsqlite.node.api import WriteSession
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.raft.frames import MAX_FRAME
from django_raftsqlite.sqlite.entry import Statement, result_digest
from django_raftsqlite.sqlite.parts import PART_BYTES
from tests.support.nodes import Group, eventually, group, read, statement, write

MIB = 1024 * 1024


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Group]:
    # A machine that stands still for a moment takes nobody's turn, and no leadership.
    settings: dict[str, Any] = {"lease_timeout": None, "election_timeout": 1.0, "durable": False}
    with group(tmp_path, 3, max_transaction_bytes=24 * MIB, **settings) as made:
        made.leader()
        write(made.nodes[0], "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        made.settle()
        yield made


def run(session: WriteSession, sql: str, *parameters: Any) -> Statement:
    """Run a statement; it as COMMIT sends it."""
    sent = statement(sql, *parameters)
    return sent._replace(expect=result_digest(0, session.execute(sent)))


def no_parts_left(trio: Group) -> bool:
    return all(node.status()["parted"] == 0 for node in trio.open_nodes())


def test_a_statement_larger_than_a_frame_is_applied_on_all_nodes(trio: Group) -> None:
    """Its rows come back as always, the nodes agree, and no part of it is left."""
    term = trio.nodes[0].status()["term"]
    data = bytes(range(256)) * (MAX_FRAME // 256 + 4096)
    result = write(trio.nodes[trio.follower()], "INSERT INTO t (x) VALUES (?) RETURNING id", data)
    assert (result.rows, result.lastrowid) == ([(1,)], 1)
    trio.settle()
    for node in trio.nodes:
        assert read(node, "SELECT id, x FROM t") == [(1, data)]
    assert no_parts_left(trio)
    assert trio.nodes[0].status()["term"] == term


def test_a_transaction_in_parts_keeps_its_lease_until_it_is_committed(trio: Group) -> None:
    """Others' writes wait for it as for any transaction, instead of making its base go while it is sent."""
    node = trio.nodes[trio.follower()]
    stop = threading.Event()
    errors: list[Exception] = []

    def write_all_the_time() -> None:
        while not stop.is_set():
            try:
                write(trio.nodes[trio.leader()], "INSERT INTO t (x) VALUES ('other')")
            except Exception as error:
                errors.append(error)

    other = threading.Thread(target=write_all_the_time)
    other.start()
    try:
        for number in range(3):
            session = node.begin({}, reason="test", timeout=10)
            sent = [run(session, "INSERT INTO t (x) VALUES (?)", bytes([number]) * PART_BYTES) for _ in range(5)]
            session.commit(sent, timeout=10)
    finally:
        stop.set()
        other.join()
    assert errors == []
    trio.settle()
    for each in trio.nodes:
        assert read(each, "SELECT count(*) FROM t WHERE length(x) = ?", PART_BYTES) == [(15,)]
    assert no_parts_left(trio)


def test_a_rolled_back_or_refused_commit_frees_the_lease(trio: Group) -> None:
    """An open deferred foreign key is found before a part is sent, and the transaction goes on."""
    write(trio.nodes[0], "CREATE TABLE c (t REFERENCES t DEFERRABLE INITIALLY DEFERRED, x)")
    session = trio.nodes[1].begin({}, reason="test", timeout=10)
    sent = [run(session, "INSERT INTO c VALUES (99, ?)", b"x" * 2 * PART_BYTES)]
    with pytest.raises(Exception, match="FOREIGN KEY"):
        session.commit(sent, timeout=10)
    assert session.in_transaction
    assert no_parts_left(trio)
    session.rollback()
    write(trio.nodes[2], "INSERT INTO t (x) VALUES ('free')")


def test_a_transaction_beyond_the_limit_is_refused_by_its_author(trio: Group) -> None:
    """With a DataError that names the limit, the size and the option; nothing is sent, and the node goes on."""
    with pytest.raises(DataError, match=r"26\d{6} bytes is beyond the limit of 25165824 .*max_transaction_bytes"):
        write(trio.nodes[0], "INSERT INTO t (x) VALUES (?)", b"x" * 26_000_000)
    session = trio.nodes[0].begin({}, reason="test", timeout=10)
    sent = [run(session, "INSERT INTO t (x) VALUES (?)", b"x" * 9 * MIB) for _ in range(3)]
    with pytest.raises(DataError, match="beyond the limit"):
        session.commit(sent, timeout=10)
    assert no_parts_left(trio)
    write(trio.nodes[1], "INSERT INTO t (x) VALUES (1)")


def test_parts_that_were_given_up_go_with_the_next_write_of_their_author(trio: Group) -> None:
    """Without a quorum its author stops waiting, and knows that nothing was executed."""
    leader = trio.leader()
    node = trio.nodes[leader]
    write(node, "INSERT INTO t (x) VALUES ('first')")
    sent: list[int] = []
    part = node.origin.part

    def two_parts_then_nobody(whole: Any, number: int) -> Any:
        sent.append(number)
        if number == 2:
            for other in trio.nodes:
                if other is not node:
                    other.close()
        return part(whole, number)

    node.origin.part = two_parts_then_nobody  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="nothing of the transaction was executed"):
        write(node, "INSERT INTO t (x) VALUES (?)", b"x" * 5 * MIB, timeout=2)
    assert sent == [0, 1, 2]
    node.origin.part = part  # type: ignore[method-assign]
    for number in range(3):
        if number != leader:
            trio.restart(number)
    eventually(lambda: node.status()["parted"], "a part of it was applied")
    write(node, "INSERT INTO t (x) VALUES ('next')", timeout=20)
    trio.settle()
    assert no_parts_left(trio)
    assert read(node, "SELECT x FROM t ORDER BY id") == [("first",), ("next",)]


def test_a_leader_that_ends_between_the_parts_does_not_fail_the_transaction(trio: Group) -> None:
    """They go on to the next leader, each of them applied once."""
    leader, author = trio.leader(), trio.follower()
    node = trio.nodes[author]
    part = node.origin.part

    def leader_ends(whole: Any, number: int) -> Any:
        if number == 4:
            threading.Thread(target=trio.nodes[leader].close).start()
        return part(whole, number)

    node.origin.part = leader_ends  # type: ignore[method-assign]
    session: WriteSession = node.begin({}, reason="test", timeout=10)
    sent = [run(session, "INSERT INTO t (x) VALUES (?)", bytes([n]) * MIB) for n in range(8)]
    session.commit(sent, timeout=20)
    eventually(lambda: trio.nodes[leader].closed, "the leader has ended")
    trio.restart(leader)
    trio.settle()
    for each in trio.nodes:
        assert read(each, "SELECT count(*), count(DISTINCT x) FROM t") == [(8, 8)]
    assert no_parts_left(trio)


def test_parts_of_a_process_that_ended_are_closed_with_its_origin(trio: Group) -> None:
    """Its next life has another origin and knows nothing of them."""
    author = trio.follower()
    node: ProcessNode = trio.nodes[author]
    write(node, "INSERT INTO t (x) VALUES ('first')")
    part = node.origin.part

    def fail(whole: Any, number: int) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return part(whole, number)

    node.origin.part = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        write(node, "INSERT INTO t (x) VALUES (?)", b"x" * 5 * MIB)
    assert node.status()["parted"] == 1
    node.close()
    eventually(lambda: no_parts_left(trio), "the parts are gone")
    trio.restart(author)
    trio.settle()
    assert no_parts_left(trio)
