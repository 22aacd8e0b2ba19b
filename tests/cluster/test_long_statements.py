"""Statements that take long to apply: who waits is told so, waits longer, and nobody loses the leadership for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import CommitOutcomeUnknown, LeaseTimeout, Unavailable
from django_raftsqlite.sqlite.entry import result_digest
from django_raftsqlite.sqlite.functions import FunctionRegistry
from django_raftsqlite.sqlite.parts import PART_BYTES
from tests.support.nodes import DEADLINE, Group, eventually, group, read, statement, write

LONG = "INSERT INTO t (x) VALUES (hold())"


class Hold:
    """A SQL function, `hold()`, which takes as long on ``nodes`` as the test wants it to."""

    def __init__(self) -> None:
        self.nodes: tuple[str, ...] = ()
        self.released = threading.Event()

    def __call__(self) -> int:
        if any(node in threading.current_thread().name for node in self.nodes):
            assert self.released.wait(2 * DEADLINE), "the test never let go"
        return 1

    def register(self, registry: FunctionRegistry) -> None:
        registry.create_function("hold", 0, self)


@pytest.fixture
def hold() -> Iterator[Hold]:
    made = Hold()
    yield made
    made.released.set()


@contextmanager
def trio_of(folder: Path, hold: Hold, **settings: Any) -> Iterator[Group]:
    with group(folder, 3, registrars=(hold.register,), **settings) as made:
        made.leader()
        for node in made.nodes:
            write(node, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)")
        made.quiet()
        try:
            yield made
        finally:
            hold.released.set()


@pytest.fixture
def trio(tmp_path: Path, hold: Hold) -> Iterator[Group]:
    # What stands still is to be the statement, and not a member for an election timeout.
    with trio_of(tmp_path, hold, election_timeout=1.0, durable=False) as made:
        yield made


class Background:
    """Calls that go on in threads, and what became of them."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.failed: list[Exception] = []

    def run(self, call: Callable[[], object]) -> None:
        def guarded() -> None:
            try:
                call()
            except Exception as error:
                self.failed.append(error)

        self.threads.append(threading.Thread(target=guarded))
        self.threads[-1].start()

    @property
    def over(self) -> int:
        return sum(not thread.is_alive() for thread in self.threads)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()


def applying_for(node: Any, seconds: float) -> dict[str, Any] | None:
    """What the node says that it is applying, once that has taken so long."""
    told: dict[str, Any] | None = node.status()["applying"]
    return told if told is not None and told["seconds"] >= seconds else None


def test_who_waits_for_a_long_statement_waits_longer_than_its_timeout(trio: Group, hold: Hold) -> None:
    """Writes, transactions and linearizable reads alike; with the leader and the term as they were."""
    leader = trio.leader()
    term = trio.nodes[leader].status()["term"]
    hold.nodes = ("n0", "n1", "n2")
    background = Background()
    background.run(lambda: write(trio.nodes[0], LONG))
    eventually(lambda: all(applying_for(node, 0.3) for node in trio.nodes), "all nodes apply it")
    for node in trio.nodes:
        background.run(lambda node=node: write(node, "INSERT INTO t (x) VALUES (2)", timeout=1))
    background.run(lambda: trio.nodes[leader].read_barrier(timeout=1))
    background.run(lambda: trio.nodes[leader].begin({}, reason="test", timeout=1).rollback())
    eventually(lambda: all(applying_for(node, 3.5) for node in trio.nodes), "it takes thrice the timeout")
    assert background.over == 0, background.failed
    hold.released.set()
    background.join()
    assert background.failed == []
    trio.settle()
    assert read(trio.nodes[0], "SELECT sum(x) FROM t") == [(7,)]
    assert {node.status()["term"] for node in trio.nodes} == {term}
    assert all(node.status()["applying"] is None for node in trio.nodes)


def test_status_shows_what_is_being_applied_and_since_when(trio: Group, hold: Hold) -> None:
    """The text without its parameters, on the node itself and in what others know of it."""
    busy, other = trio.follower(), trio.leader()
    hold.nodes = (f"n{busy}",)
    secret = "x" * 500
    sql = f"INSERT  INTO t (x)\n VALUES (hold() || ? || '{'long ' * 30}')"
    before = trio.nodes[other].status()["commit_index"]
    write(trio.nodes[other], sql, secret)
    told = eventually(lambda: applying_for(trio.nodes[busy], 0.3), "the node says so")
    assert told["statement"] == "INSERT INTO t (x) VALUES (hold() || ? || '" + "long " * 7 + "lon"
    assert len(told["statement"]) == 80
    assert told["index"] == before + 1

    def member() -> Any:
        members = trio.nodes[other].status()["members"]
        return next(m for m in members if m["address"] == trio.peers[busy])["applying"]

    eventually(lambda: (member() or {}).get("index") == told["index"], "the others are told")
    write(trio.nodes[other], "INSERT INTO t (x) VALUES (2)", timeout=2)
    hold.released.set()


def test_a_statement_that_never_ends_is_named_when_the_time_is_up(tmp_path: Path, hold: Hold) -> None:
    """apply_timeout bounds how long a deadline is put off; the message says what was waited for."""
    with trio_of(tmp_path, hold, apply_timeout=1.0) as trio:
        busy, other = trio.follower(), trio.leader()
        node = trio.nodes[busy]
        session = node.begin({}, reason="test", timeout=5)
        session.rollback()
        hold.nodes = (f"n{busy}",)
        write(trio.nodes[other], LONG)
        eventually(lambda: applying_for(node, 0.3), "the node is busy")
        named = r"a long statement is being applied \(INSERT INTO t \(x\) VALUES \(hold\(\)\), since \d+\.\d s\)"
        with pytest.raises(CommitOutcomeUnknown, match=named):
            write(node, "INSERT INTO t (x) VALUES (2)", timeout=0.5)
        with pytest.raises(Unavailable, match=named):
            node.read_barrier(timeout=0.5)
        with pytest.raises((Unavailable, LeaseTimeout), match=named):
            node.begin({}, reason="test", timeout=0.5)
        hold.released.set()
        trio.settle()
        assert read(node, "SELECT sum(x) FROM t") == [(3,)]


def test_who_waits_for_a_large_transaction_to_be_sent_waits_longer(
    trio: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a long statement: its lease may be held for longer than the others' timeout."""
    # On a busy machine a part comes later than it is sent; what is waited for is the same.
    monkeypatch.setattr("django_raftsqlite.node.leader.SENDING", 10.0)
    author, leader = trio.nodes[trio.follower()], trio.nodes[trio.leader()]
    part = author.origin.part
    slow = threading.Event()

    def slowly(whole: Any, number: int) -> Any:
        slow.wait(1.0)
        return part(whole, number)

    author.origin.part = slowly  # type: ignore[method-assign]
    session = author.begin({}, reason="UPDATE large", timeout=5)
    sent = statement("INSERT INTO t (x) VALUES (?)", b"x" * 8 * PART_BYTES)
    sent = sent._replace(expect=result_digest(0, session.execute(sent)))
    background = Background()
    background.run(lambda: session.commit([sent], timeout=20))
    told = eventually(lambda: applying_for(leader, 0.2), "the leader says so")
    assert "a large transaction of node" in told["statement"] and "UPDATE large" in told["statement"]
    background.run(lambda: write(leader, "INSERT INTO t (x) VALUES (2)", timeout=2))
    background.run(lambda: write(author, "INSERT INTO t (x) VALUES (2)", timeout=2))
    background.run(lambda: leader.begin({}, reason="test", timeout=2).rollback())
    eventually(lambda: applying_for(leader, 3.5), "it takes longer than the others' timeout")
    assert background.over == 0, background.failed
    slow.set()
    background.join()
    assert background.failed == []
    trio.settle()


def test_transactions_of_others_go_on_while_a_node_has_yet_to_apply_up_to_its_lease(trio: Group, hold: Hold) -> None:
    """The lease is lent to those behind it; it comes back when that node has caught up."""
    slow = trio.follower()
    others = [number for number in range(3) if number != slow]
    hold.nodes = (trio.configs[slow].name.name,)
    write(trio.nodes[others[0]], LONG)
    seen: list[Any] = []

    def late() -> None:
        session = trio.nodes[slow].begin({}, reason="late", timeout=DEADLINE)
        seen.append(session.execute(statement("SELECT x FROM t ORDER BY id")).rows)
        session.rollback()

    background = Background()
    background.run(late)
    sequencer = trio.host(trio.leader())._core.leader.sequencer
    eventually(lambda: sequencer.holder and sequencer.holder.source == trio.peers[slow], "it has the lease")
    for number in range(20):
        node = trio.nodes[others[number % 2]]
        session = node.begin({}, reason="other", timeout=DEADLINE)
        sent = statement("INSERT INTO t (x) VALUES (?)", number + 10)
        result = session.execute(sent)
        session.commit([sent._replace(expect=result_digest(0, result))], timeout=DEADLINE)
    assert seen == [], "it still waits for its own node"
    hold.released.set()
    background.join()
    assert background.failed == []
    assert [x for (x,) in seen[0]] == [1, *range(10, 30)], "it begins at a state that has it all"
    trio.settle()


def test_a_transaction_whose_node_does_not_catch_up_in_time_is_told_so(tmp_path: Path, hold: Hold) -> None:
    with trio_of(tmp_path, hold, apply_timeout=0.001) as trio:
        slow = trio.follower()
        other = trio.nodes[next(number for number in range(3) if number != slow)]
        hold.nodes = (trio.configs[slow].name.name,)
        write(other, LONG)
        background = Background()
        background.run(lambda: trio.nodes[slow].begin({}, reason="late", timeout=3.0))
        sequencer = trio.host(trio.leader())._core.leader.sequencer
        eventually(lambda: sequencer.holder and sequencer.holder.source == trio.peers[slow], "it has the lease")
        other.begin({}, reason="other", timeout=DEADLINE).rollback()
        background.join()
        assert [type(error) for error in background.failed] == [Unavailable]
        assert "has not applied the newest writes" in str(background.failed[0])
        eventually(lambda: len(sequencer) == 0, "its claim has left the queue")
        hold.released.set()
        trio.nodes[slow].begin({}, reason="later", timeout=DEADLINE).rollback()
        trio.settle()
