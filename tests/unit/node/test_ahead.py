"""A transaction may lie on the entry that its node has received and not applied, and on nothing that may be lost
without its noticing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_raftsqlite.node.ahead import MOST_AHEAD, MOST_BYTES, Ahead
from django_raftsqlite.node.api import LeaseLost, Moved
from django_raftsqlite.node.lane import ScratchLane
from django_raftsqlite.node.requests import Request
from django_raftsqlite.node.turns import Turn
from django_raftsqlite.sqlite.entry import (
    Base,
    Item,
    ItemKind,
    Outcome,
    RequestId,
    Result,
    Status,
    Transaction,
    encode_transaction,
)
from django_raftsqlite.sqlite.scratch import Scratch
from tests.unit.sqlite.replay import Replica, encoded, open_origin, statement, transaction

HERE, THERE = b"h" * 16, b"t" * 16


class Node:
    """A lane over a real file, and the log of a group: ``there`` is another node that writes."""

    def __init__(self, path: Path) -> None:
        self.replica = Replica(path)
        self.replica.apply(open_origin())
        self.replica.done("CREATE TABLE t (x)")
        self.replica.done("INSERT INTO t VALUES (1)")
        self.replica.apply(open_origin(HERE), open_origin(THERE))
        self.index = self.replica.machine.applied_index
        self.sequence = 0
        self.lane = ScratchLane(Scratch(path, self.replica.registrars, durable=False), lambda: self.index)

    @property
    def base(self) -> Base:
        return self.replica.machine.base

    def there(self, *updates: str) -> Ahead:
        """The next entry, with transactions of the other node that lie on each other."""
        items, base = [], self.base
        for sql in updates:
            self.sequence += 1
            items.append(transaction(self.sequence, sql, origin=THERE, base=base))
            base = Base(base.lineage, base.version + 1, RequestId(THERE, self.sequence).to_bytes())
        return Ahead(self.index + 1, encoded(*items))

    def begin(self, ahead: Ahead | None = None) -> tuple[Turn, Base]:
        turn = Turn("node", "test")
        turn.ahead = ahead
        return turn, self.lane.enter(turn, {}, lambda: 0.0)

    def run(self, turn: Turn, sql: str) -> Result:
        (ran,), _ = self.lane.execute(turn, [statement(sql)])
        assert isinstance(ran, Result)
        return ran

    def commit(self, turn: Turn, base: Base, sql: str) -> Request:
        self.run(turn, sql)
        self.sequence += 1
        request = RequestId(HERE, self.sequence)
        payload = encode_transaction(Transaction(request, 1, (statement(sql),), base))
        self.lane.commits(turn, sent := Request(request, payload, solo=False, lease=b"claim"))
        return sent

    def apply(self, entry: bytes) -> list[Outcome]:
        with self.lane.apply() as settled:
            outcomes = self.replica.machine.apply(self.index + 1, 1, entry)
            settled(outcomes)
        self.index += 1
        return [outcome for _, outcome in outcomes]

    def lose(self) -> None:
        """The next index is that of another leader, whose entry there has no content."""
        self.index += 1
        self.lane.passed()

    def close(self) -> None:
        self.lane.close()
        self.replica.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "db.sqlite3")
    yield node
    node.close()


def bytes_of(ahead: Ahead) -> bytes:
    return ahead._entry


def item_of(request: Request) -> bytes:
    return encoded(Item(ItemKind.TRANSACTION, request.payload))


def test_a_transaction_lies_on_an_entry_that_is_not_applied_yet_and_both_are_done(node: Node) -> None:
    ahead = node.there("UPDATE t SET x = x + 1", "UPDATE t SET x = x * 10")
    turn, base = node.begin(ahead)
    assert (base.version, base.last) == (node.base.version + 2, RequestId(THERE, 2).to_bytes())
    assert node.run(turn, "SELECT x FROM t").rows == [(20,)]
    mine = node.commit(turn, base, "UPDATE t SET x = x + 5")
    next_turn, next_base = node.begin(ahead)
    assert node.run(next_turn, "SELECT x FROM t").rows == [(25,)]
    assert [outcome.status for outcome in node.apply(bytes_of(ahead))] == [Status.DONE] * 2
    with pytest.raises(Moved):
        node.run(next_turn, "SELECT x FROM t")
    assert node.lane.enter(next_turn, {}, lambda: 0.0) == next_base, "this node's own COMMIT is below it yet"
    assert node.run(next_turn, "SELECT x FROM t").rows == [(25,)]
    assert [outcome.status for outcome in node.apply(item_of(mine))] == [Status.DONE]
    assert node.replica.rows("SELECT x FROM t") == [(25,)]


def test_the_entry_is_not_run_again_where_it_has_been_applied(node: Node) -> None:
    ahead = node.there("UPDATE t SET x = x + 1")
    node.apply(bytes_of(ahead))
    turn, base = node.begin(ahead)
    assert base == node.base
    assert node.run(turn, "SELECT x FROM t").rows == [(2,)]


def test_what_was_lost_with_its_leader_is_below_nothing_and_what_lay_on_it_finds_its_base_gone(node: Node) -> None:
    ahead = node.there("UPDATE t SET x = x + 1")
    turn, base = node.begin(ahead)
    mine = node.commit(turn, base, "UPDATE t SET x = x + 5")
    node.lose()
    after, found = node.begin()
    assert found == node.base
    assert node.run(after, "SELECT x FROM t").rows == [(1,)]
    node.lane.leave(after)
    assert [outcome.status for outcome in node.apply(item_of(mine))] == [Status.CONFLICT]
    assert node.replica.rows("SELECT x FROM t") == [(1,)]


def test_a_turn_that_goes_on_after_the_entry_was_lost_goes_on_without_it(node: Node) -> None:
    turn, _ = node.begin(node.there("UPDATE t SET x = x + 1"))
    node.lose()
    with pytest.raises(Moved):
        node.run(turn, "SELECT x FROM t")
    assert node.lane.enter(turn, {}, lambda: 0.0) == node.base
    assert node.run(turn, "SELECT x FROM t").rows == [(1,)]


def test_an_entry_that_fails_takes_with_it_what_lies_on_top(node: Node) -> None:
    """On this node it was done; the log has something before it that this node was not told of."""
    ahead = node.there("UPDATE t SET x = x + 1")
    turn, base = node.begin(ahead)
    mine = node.commit(turn, base, "UPDATE t SET x = x + 5")
    node.apply(encoded(transaction(99, "UPDATE t SET x = 100", origin=THERE)))
    assert [outcome.status for outcome in node.apply(bytes_of(ahead))] == [Status.CONFLICT]
    assert [outcome.status for outcome in node.apply(item_of(mine))] == [Status.CONFLICT]
    turn, base = node.begin(ahead)
    assert base == node.base
    assert node.run(turn, "SELECT x FROM t").rows == [(100,)]


def test_what_this_node_sent_before_is_applied_first(node: Node) -> None:
    """Where it is in the entry, or behind it, the lane does not know."""
    turn, base = node.begin()
    mine = node.commit(turn, base, "UPDATE t SET x = x + 5")
    ahead = Ahead(node.index + 1, item_of(mine))
    assert not node.lane.holds_only(ahead)
    with pytest.raises(LeaseLost, match="still being committed"):
        node.begin(ahead)
    node.apply(item_of(mine))
    assert node.lane.holds_only(ahead)
    _, base = node.begin(ahead)
    assert base == node.base


def test_an_author_who_gives_up_takes_nothing_from_the_next_one(node: Node) -> None:
    ahead = node.there("UPDATE t SET x = x + 1")
    turn, base = node.begin(ahead)
    mine = node.commit(turn, base, "UPDATE t SET x = x + 5")
    node.lane.forget(mine.id)
    turn, _ = node.begin(ahead)
    assert node.run(turn, "SELECT x FROM t").rows == [(2,)], "the entry is below it, and the one given up is not"


UNFIT: dict[str, Callable[[Base], bytes]] = {
    "it lies on another state": lambda base: encoded(
        transaction(1, "DELETE FROM t", base=base._replace(version=base.version + 1))
    ),
    "an autocommit statement may fail": lambda base: encoded(transaction(1, "DELETE FROM t")),
    "the second does not lie on the first": lambda base: encoded(
        transaction(1, "DELETE FROM t", base=base), transaction(2, "DELETE FROM t", base=base)
    ),
    "it changes the schema": lambda base: encoded(transaction(1, "CREATE TABLE u (x)", base=base)),
    "it must be alone": lambda base: encoded(transaction(1, "DELETE FROM t", base=base, solo=True), solo=True),
    "it is no transaction": lambda _: encoded(open_origin(b"o" * 16)),
    "it is too large": lambda base: encoded(
        transaction(1, ("INSERT INTO t VALUES (?)", (bytes(MOST_BYTES),)), base=base)
    ),
    "it cannot be read": lambda _: b"\xc1",
}


@pytest.mark.parametrize("why", UNFIT)
def test_nothing_lies_on_an_entry_of_which_it_is_not_known_that_all_of_it_will_be_done(node: Node, why: str) -> None:
    ahead = Ahead(node.index + 1, UNFIT[why](node.base))
    assert ahead.on(node.base) is None
    with pytest.raises(LeaseLost):
        node.begin(ahead)
    assert not node.lane.committing


def test_an_entry_with_very_many_transactions_is_waited_for(node: Node) -> None:
    assert node.there(*["UPDATE t SET x = x + 1"] * MOST_AHEAD).on(node.base) is not None
    assert node.there(*["UPDATE t SET x = x + 1"] * (MOST_AHEAD + 1)).on(node.base) is None
