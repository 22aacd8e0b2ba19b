"""On scratch, a transaction lies on top of those that are being committed, and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from django_raftsqlite.node.api import LeaseLost, Moved
from django_raftsqlite.node.lane import MOST_BELOW, ScratchLane
from django_raftsqlite.node.requests import Request
from django_raftsqlite.node.turns import Turn
from django_raftsqlite.sqlite.entry import (
    Base,
    Item,
    ItemKind,
    RequestId,
    Result,
    Transaction,
    encode_transaction,
    result_digest,
)
from django_raftsqlite.sqlite.scratch import Scratch
from tests.unit.sqlite.replay import ORIGIN, Replica, encoded, open_origin, statement

NOBODY_WAITS = lambda: 0.0  # noqa: E731


class Lane:
    """A lane over a real file, and a log that the test appends to."""

    def __init__(self, path: Path) -> None:
        self.replica = Replica(path)
        self.replica.apply(open_origin())
        self.replica.done("CREATE TABLE t (x)")
        self.replica.done("INSERT INTO t VALUES (1)")
        self.lane = ScratchLane(Scratch(path, self.replica.registrars, durable=False))

    def begin(self) -> tuple[Turn, Base]:
        turn = Turn("node", "test")
        return turn, self.lane.enter(turn, {}, NOBODY_WAITS)

    def run(self, turn: Turn, sql: str) -> Result:
        (ran,), _ = self.lane.execute(turn, [statement(sql)])
        assert isinstance(ran, Result)
        return ran

    def commit(self, turn: Turn, base: Base, sql: str) -> Request:
        """Run a statement, and send it as this turn's COMMIT."""
        sent = statement(sql)._replace(expect=result_digest(0, self.run(turn, sql)))
        self.replica.sequence += 1
        request_id = RequestId(ORIGIN, self.replica.sequence)
        payload = encode_transaction(Transaction(request_id, 1, (sent,), base, {}, False))
        request = Request(request_id, payload, solo=False, lease=b"claim")
        self.lane.commits(turn, request)
        return request

    def commit_next(self, sql: str) -> Request:
        turn, base = self.begin()
        return self.commit(turn, base, sql)

    def apply(self, *items: Item) -> None:
        with self.lane.apply() as settled:
            machine = self.replica.machine
            settled(machine.apply(machine.applied_index + 1, 1, encoded(*items)))

    def applied(self, request: Request) -> None:
        self.apply(Item(ItemKind.TRANSACTION, request.payload))

    def close(self) -> None:
        self.lane.close()
        self.replica.close()


@pytest.fixture
def lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lane]:
    monkeypatch.setattr("django_raftsqlite.node.lane.MOST_WORK", math.inf)  # the machine may stand still
    lane = Lane(tmp_path / "db.sqlite3")
    yield lane
    lane.close()


def test_a_transaction_sees_what_is_being_committed_and_is_based_on_the_last_of_it(lane: Lane) -> None:
    lane.commit_next("UPDATE t SET x = x + 1")
    second = lane.commit_next("UPDATE t SET x = x * 10")
    turn, base = lane.begin()
    assert lane.run(turn, "SELECT x FROM t").rows == [(20,)]
    state = lane.replica.machine.base
    assert base == Base(state.lineage, state.version + 2, second.id.to_bytes())


def test_when_the_first_is_applied_what_lies_on_it_is_run_again(lane: Lane) -> None:
    """Rolled back, and run again below the transaction at work, which sees the same as before under the same base."""
    first = lane.commit_next("UPDATE t SET x = x + 1")
    second = lane.commit_next("UPDATE t SET x = x * 10")
    turn, base = lane.begin()
    lane.applied(first)
    with pytest.raises(Moved):
        lane.run(turn, "SELECT x FROM t")
    assert lane.lane.enter(turn, {}, NOBODY_WAITS) == base
    assert lane.run(turn, "SELECT x FROM t").rows == [(20,)]
    third = lane.commit(turn, base, "UPDATE t SET x = x + 5")
    lane.applied(second)
    lane.applied(third)
    assert lane.replica.rows("SELECT x FROM t") == [(25,)]


def test_nothing_is_based_on_what_gives_another_answer_when_it_is_run_again(lane: Lane) -> None:
    """Somebody else's write came first: what is being committed will find its base gone."""
    request = lane.commit_next("UPDATE t SET x = x + 1 RETURNING x")
    lane.apply(lane.replica.next("UPDATE t SET x = 50", low_water=1))
    with pytest.raises(LeaseLost, match="still being committed"):
        lane.begin()
    lane.applied(request)
    turn, base = lane.begin()
    assert base == lane.replica.machine.base
    assert lane.run(turn, "SELECT x FROM t").rows == [(50,)]


def test_nothing_is_based_on_a_transaction_whose_author_gave_up(lane: Lane) -> None:
    request = lane.commit_next("UPDATE t SET x = x + 1")
    lane.lane.forget(request.id)
    turn, base = lane.begin()
    assert base == lane.replica.machine.base
    assert lane.run(turn, "SELECT x FROM t").rows == [(1,)]


def test_what_lies_on_a_transaction_that_failed_is_gone_with_it(lane: Lane) -> None:
    """Also when it gives the same answers on what is there now: its base names the one that failed."""
    first = lane.commit_next("UPDATE t SET x = x + 1")
    lane.commit_next("UPDATE t SET x = x * 10")
    lane.apply(lane.replica.next("UPDATE t SET x = 50", low_water=1))
    lane.applied(first)
    turn, base = lane.begin()
    assert base == lane.replica.machine.base
    assert lane.run(turn, "SELECT x FROM t").rows == [(50,)]


@pytest.mark.parametrize("sql", ["CREATE TABLE u (x)", f"UPDATE t SET x = '{'x' * 70_000}'"], ids=["schema", "large"])
def test_nothing_lies_on_a_change_of_the_schema_or_a_large_transaction(lane: Lane, sql: str) -> None:
    """To run it again whenever something is applied would take longer than to wait for it."""
    request = lane.commit_next(sql)
    with pytest.raises(LeaseLost, match="still being committed"):
        lane.begin()
    lane.applied(request)
    assert lane.begin()[1] == lane.replica.machine.base


def test_only_so_many_lie_below(lane: Lane) -> None:
    requests = [lane.commit_next("UPDATE t SET x = x + 1") for _ in range(MOST_BELOW)]
    with pytest.raises(LeaseLost, match="still being committed"):
        lane.begin()
    lane.applied(requests[0])
    turn, _ = lane.begin()
    assert lane.run(turn, "SELECT x FROM t").rows == [(MOST_BELOW + 1,)]
