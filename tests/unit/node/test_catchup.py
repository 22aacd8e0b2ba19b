"""A turn on a node that lags: the lease is lent to others, again and again, but not for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from django_raftsqlite.node import catchup
from django_raftsqlite.node.catchup import Behind, take_turn
from django_raftsqlite.node.progress import Applied
from django_raftsqlite.node.turns import Lost, Turn, Turns

FOREVER = 1000.0


class Leader:
    """Grants the lease from the next index of ``indexes`` on, at once, and says that others wait."""

    def __init__(self, indexes: list[int], *, contested: bool = True) -> None:
        self.indexes = indexes
        self.contested = contested
        self.deferred: list[int] = []
        self.told = threading.Event()
        self.turns = Turns(ask=self._ask, give_back=lambda _: None, defer=self._defer)

    def _ask(self, claim: bytes, _who: str, _nowait: bool) -> None:
        self._offer(claim)

    def _defer(self, claim: bytes, index: int) -> None:
        self.deferred.append(index)
        self._offer(claim)

    def _offer(self, claim: bytes) -> None:
        index = self.indexes.pop(0)
        self.told.clear()

        def grant() -> None:
            assert self.turns.granted(claim, index, 0)
            if self.contested:
                self.turns.wanted_by_others(claim, FOREVER)
            self.told.set()

        threading.Thread(target=grant).start()


class Waits(Applied):
    """Applied up to ``index``, and never further: notes for how long it was waited for."""

    def __init__(self, index: int, leader: Leader) -> None:
        super().__init__(index)
        self._leader = leader
        self.waits: list[float] = []

    def wait(self, index: int, left: Callable[[], float]) -> bool:
        assert self._leader.told.wait(20), "the leader has said all"
        if self.index < index:
            self.waits.append(left())
        return self.index >= index


def turn() -> Turn:
    return Turn("node a", "test")


def test_a_node_that_has_applied_up_to_the_lease_has_its_turn_at_once() -> None:
    leader = Leader([7])
    applied = Waits(7, leader)
    mine = turn()
    assert take_turn(leader.turns, mine, applied, lambda: FOREVER) == 7
    assert leader.turns.holder is mine and leader.deferred == [] and applied.waits == []


def test_each_time_the_lease_is_deferred_the_node_may_take_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it has its turn in the end, however fast the others write."""
    monkeypatch.setattr(catchup, "time", SimpleNamespace(monotonic=lambda: 0.0))
    leader = Leader([8, 9, 10, 7])
    applied = Waits(7, leader)
    mine = turn()
    assert take_turn(leader.turns, mine, applied, lambda: FOREVER) == 7
    assert leader.deferred == [8, 9, 10] and leader.turns.holder is mine
    assert applied.waits == [catchup.MOMENT * 2**n for n in range(3)]


def test_nothing_is_lent_when_nobody_wants_it() -> None:
    leader, applied = Leader([8], contested=False), Applied(7)
    ends = iter([FOREVER] + [catchup.MOMENT / 10] * 20)
    with pytest.raises(Behind):
        take_turn(leader.turns, turn(), applied, lambda: next(ends, 0.0))
    assert leader.deferred == [] and next(ends, None) is None, "it waited for as long as it could"


def test_a_turn_that_is_refused_or_does_not_come_is_told() -> None:
    asked: list[bytes] = []
    turns = Turns(ask=lambda claim, _who, _nowait: asked.append(claim), give_back=lambda _: None)
    assert take_turn(turns, turn(), Applied(7), lambda: 0.0) is None
    turns.refused(asked[0], "failed", "its disk is full")
    refusing = Turns(
        ask=lambda claim, _who, _nowait: threading.Thread(
            target=lambda: refusing.refused(claim, "failed", "its disk is full")
        ).start(),
        give_back=lambda _: None,
    )
    lost = take_turn(refusing, turn(), Applied(7), lambda: FOREVER)
    assert isinstance(lost, Lost) and lost.reason == "failed"


def test_who_is_deferred_until_the_time_is_up_is_told_that_its_node_is_behind() -> None:
    leader, applied = Leader([8]), Applied(7)
    over = threading.Event()
    leader.turns._defer = lambda _claim, _index: over.set()
    with pytest.raises(Behind):
        take_turn(leader.turns, turn(), applied, lambda: 0.0 if over.is_set() else FOREVER)
