"""When the Raft log is cut, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from django_raftsqlite.node.compaction import CUT_EVERY, LOOK_EVERY, Compaction, Cut, Hold
from django_raftsqlite.raft.config import RaftView


class Log:
    """A log of entries of 100 bytes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.first, self.last = 1, 1
        self.on_disk = 10**9
        self.held: list[int | Hold] = []
        self.cuts: list[int] = []
        self.jobs: list[tuple[Callable[[], int], Callable[[Any], object]]] = []
        self.failed: list[str] = []
        self.compaction = Compaction(
            self,
            entries=1000,
            size=1_000_000,
            run=lambda job, done: self.jobs.append((job, done)),
            on_disk=lambda: self.on_disk,
            held=lambda: [hold if isinstance(hold, Hold) else Hold(hold) for hold in self.held],
            failed=self.failed.append,
            clock=lambda: self.now,
        )

    @property
    def log_bytes(self) -> int:
        return self.bytes_each * (self.last - self.first)

    bytes_each = 100
    must_cut = False

    def index_beyond(self, size: int) -> int:
        return self.first + -(-size // self.bytes_each)

    def compact(self, index: int) -> None:
        self.cuts.append(index)
        self.first = max(self.first, index)

    def look(self) -> None:
        """Time for a look, and for the disk."""
        self.now += LOOK_EVERY
        self.tick()
        self.disk_answers()

    def tick(self) -> None:
        view = RaftView("follower", 1, None, self.last, self.last, frozenset(), {}, first_index=self.first)
        self.compaction.tick(view)

    def disk_answers(self) -> None:
        for job, done in self.jobs:
            try:
                result: Any = job()
            except OSError as error:
                result = error
            done(result)
        self.jobs.clear()

    def wish(self) -> list[Any]:
        """Wish for a cut; what is told of it comes into the list."""
        told: list[Any] = []
        self.compaction.cut(told.append)
        return told


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_log_within_its_limits_is_left_alone(log: Log) -> None:
    log.last = 1250
    log.look()
    assert log.cuts == []


def test_a_log_beyond_its_entries_is_cut_down_to_them(log: Log) -> None:
    log.last = 1300
    log.look()
    assert (log.cuts, log.first) == ([300], 300)


def test_a_log_beyond_its_bytes_is_cut_down_to_them(log: Log) -> None:
    log.bytes_each = 10_000
    log.last = 200
    log.look()
    assert log.cuts == [100]


def test_a_log_that_is_a_little_beyond_its_limits_is_cut_after_a_while(log: Log) -> None:
    log.last = 1100
    log.look()
    assert log.cuts == []
    log.now += CUT_EVERY
    log.look()
    assert log.cuts == [100]


def test_nothing_is_cut_that_the_file_could_lose(log: Log) -> None:
    log.last, log.on_disk = 2000, 40
    log.look()
    assert log.cuts == [40]


def test_what_a_member_that_lags_will_ask_for_is_kept_for_a_while(log: Log) -> None:
    log.last, log.held = 2000, [700, 50, 1999]
    log.look()
    assert log.cuts == [50]
    log.last = 40_000
    log.look()
    assert log.cuts == [50]
    log.last = 40_051
    log.look()
    assert log.cuts == [50, 39_051]


def test_what_follows_a_copy_under_way_is_kept_for_as_long_as_another_copy_would_be_larger(log: Log) -> None:
    log.last, log.held = 90_000, [Hold(700, 5_000_000)]
    log.look()
    assert log.cuts == [700]
    log.last = 90_701
    log.look()
    assert log.cuts == [700, 89_701]


def test_a_member_that_lacks_what_was_cut_holds_nothing(log: Log) -> None:
    log.last, log.first, log.held = 3000, 1500, [700]
    log.look()
    assert log.cuts == [2000]


def test_one_look_at_the_disk_at_a_time(log: Log) -> None:
    log.last = 2000
    view = RaftView("leader", 1, None, 2000, 2000, frozenset(), {})
    for _ in range(5):
        log.now += LOOK_EVERY
        log.compaction.tick(view)
    assert len(log.jobs) == 1


def test_a_disk_that_fails_cuts_nothing_and_stops_the_node(log: Log) -> None:
    """What a failed fsync has lost is not known, and the next one would not tell."""
    log.last = 2000
    log.now += LOOK_EVERY
    log.compaction.tick(RaftView("leader", 1, None, 2000, 2000, frozenset(), {}))
    log.jobs[0][1](OSError(5, "Input/output error"))
    assert log.cuts == []
    assert "Input/output error" in log.failed[0]


# By somebody's wish


def test_who_wishes_it_has_all_cut_that_is_on_the_disk_and_is_told_how_much(log: Log) -> None:
    log.last, log.on_disk = 100, 90
    told = log.wish()
    assert told == []
    log.tick()
    log.disk_answers()
    assert (log.cuts, told) == ([90], [Cut(90, 90)])
    assert "log index 90" in str(told[0])
    log.look()
    assert log.cuts == [90], "once"


def test_a_wish_cuts_nothing_that_others_in_reach_have_yet_to_get(log: Log) -> None:
    """Whoever comes while the file is brought to the disk is counted as well; who lacks it already is not."""
    log.last, log.on_disk, log.first, log.held = 100, 90, 20, [70, 10]
    told = log.wish()
    log.tick()
    log.held.append(Hold(60, 10))
    log.disk_answers()
    assert (log.cuts, told) == ([60], [Cut(90, 60)])
    assert "kept for others" in str(told[0])


def test_a_wish_with_nothing_to_cut_leaves_the_log_where_it_begins(log: Log) -> None:
    log.first, log.last, log.on_disk = 50, 51, 50
    told = log.wish()
    log.tick()
    log.disk_answers()
    assert (log.first, told) == (50, [Cut(50, 50)])


def test_wishes_wait_for_what_is_under_way_and_are_then_granted_together(log: Log) -> None:
    log.last, log.on_disk = 2000, 2000
    log.now += LOOK_EVERY
    log.tick()
    told = [log.wish(), log.wish()]
    log.tick()
    assert len(log.jobs) == 1
    log.disk_answers()
    assert (log.cuts, told) == ([1000], [[], []])
    log.tick()
    log.disk_answers()
    assert (log.cuts, told) == ([1000, 2000], [[Cut(2000, 2000)]] * 2)


def test_a_wish_on_a_disk_that_fails_is_told_so_and_the_node_stops(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log.compaction, "_on_disk", fails)
    told = log.wish()
    log.tick()
    log.disk_answers()
    assert log.cuts == []
    assert "Input/output error" in str(told[0])
    assert "Input/output error" in log.failed[0]


def test_when_the_log_was_cut_last_is_known(log: Log) -> None:
    assert (log.compaction.synced, log.compaction.synced_ago) == (None, None)
    log.last, log.on_disk = 5000, 4500
    log.look()
    log.now += 70.0
    assert (log.compaction.synced, log.compaction.synced_ago) == (4500, 70.0)
