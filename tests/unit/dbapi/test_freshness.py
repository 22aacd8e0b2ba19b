"""What a read demands of the state it reads, and what is asked of the node for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from django_raftsqlite import dbapi
from django_raftsqlite.dbapi import Unavailable
from django_raftsqlite.dbapi.freshness import LOCAL, Freshness, Seen
from tests.support.direct_node import DirectNode

Connect = Callable[..., dbapi.Connection]
LINEAGE = bytes(16)


class Asked:
    """What reads demand, to be changed between them; counts how often it was asked."""

    def __init__(self, freshness: Freshness) -> None:
        self.freshness = freshness
        self.times = 0

    def __call__(self) -> Freshness:
        self.times += 1
        return self.freshness


def read(connection: dbapi.Connection) -> Any:
    return connection.execute("SELECT 1").fetchall()


@pytest.fixture
def table(connect: Connect) -> None:
    connect().execute("CREATE TABLE note (id INTEGER PRIMARY KEY)")


def test_a_local_read_asks_nobody(connect: Connect, node: DirectNode) -> None:
    read(connect(reads=lambda: LOCAL))
    assert (node.barriers, node.limits, node.reached) == (0, [], [])


def test_a_bounded_read_names_its_bound(connect: Connect, node: DirectNode) -> None:
    connection = connect(reads=lambda: Freshness("bounded", 2.5))
    read(connection)
    connection.execute("BEGIN")
    read(connection)
    read(connection)
    connection.rollback()
    assert (node.barriers, node.limits, node.reached) == (0, [2.5, 2.5], [])


def test_what_is_here_already_is_not_waited_for(connect: Connect, node: DirectNode, table: None) -> None:
    seen = Seen(LINEAGE, node.base.version)
    read(connect(reads=lambda: Freshness("session", seen=seen)))
    assert seen.reached is True
    assert node.reached == []


def test_a_half_read_select_does_not_hide_what_is_here(connect: Connect, node: DirectNode, table: None) -> None:
    """Its snapshot is an old one, and looking there would wait for what was applied long ago."""
    asked = Asked(LOCAL)
    connection = connect(reads=asked)
    connection.executemany("INSERT INTO note (id) VALUES (?)", [(n,) for n in range(600)])
    half = connection.execute("SELECT id FROM note")
    assert half.fetchone() == (0,)
    node.foreign("DELETE FROM note")
    asked.freshness = Freshness("session", seen=Seen(LINEAGE, node.base.version))
    assert connection.execute("SELECT count(*) FROM note").fetchall() == [(0,)]
    assert node.reached == []
    assert len(half.fetchall()) == 599


@pytest.mark.parametrize(
    "seen", [Seen(LINEAGE, 1000), Seen(b"x" * 16, 0)], ids=["of the future", "of another lineage"]
)
def test_what_the_group_never_had_is_asked_for_once(connect: Connect, node: DirectNode, seen: Seen) -> None:
    connection = connect(reads=lambda: Freshness("session", seen=seen))
    read(connection)
    read(connection)
    assert seen.reached is False and not seen.missed
    assert node.reached == [seen.version]


def test_a_state_that_does_not_come_in_time_is_an_error_and_is_waited_for_again(
    connect: Connect, node: DirectNode
) -> None:
    seen = Seen(LINEAGE, 1000)
    connection = connect(reads=lambda: Freshness("session", seen=seen))
    node.fail_next = Unavailable("this node lags", "too slow")
    with pytest.raises(Unavailable, match="this node lags"):
        read(connection)
    assert seen.missed and seen.reached is None
    read(connection)
    assert node.reached == [1000]


def test_a_bounded_read_also_waits_for_what_was_seen(connect: Connect, node: DirectNode) -> None:
    read(connect(reads=lambda: Freshness("bounded", 1, Seen(LINEAGE, 1000))))
    assert (node.limits, node.reached) == ([1], [1000])


def test_a_leader_read_needs_no_other_wait(connect: Connect, node: DirectNode) -> None:
    """It has all that is committed: what is not there then, never was."""
    seen = Seen(LINEAGE, 1000)
    read(connect(reads=lambda: Freshness("leader", seen=seen)))
    assert (node.barriers, node.reached, seen.reached) == (1, [], False)


def test_a_transaction_that_has_written_waits_for_nothing_and_is_still_noticed(
    connect: Connect, node: DirectNode, table: None
) -> None:
    """Who keeps account of what a user has seen must hear of it, also when the transaction is rolled back."""
    asked = Asked(Freshness("session", seen=Seen(LINEAGE, 1000)))
    connection = connect(reads=asked)
    connection.execute("BEGIN IMMEDIATE")
    read(connection)
    connection.rollback()
    assert asked.times == 1
    assert node.reached == []
