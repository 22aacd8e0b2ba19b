"""What a node counts, what it keeps of the last minutes, and how far the others are: with clocks of the tests."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.exceptions import CommitOutcomeUnknown, LeaseTimeout, Unavailable
from django_raftsqlite.node.api import LeaseLost, NodeConfig
from django_raftsqlite.node.clocks import FORGOTTEN, Clocks
from django_raftsqlite.node.events import Events, LeaderChanged, MemberChanged, NodeReady
from django_raftsqlite.node.figures import ENDS, NOTES, Figures, Histogram, end_of, quantile
from django_raftsqlite.node.measures import Measures
from django_raftsqlite.node.recent import EVERY, POINTS, Recent
from django_raftsqlite.node.space import Space
from django_raftsqlite.raft.config import RaftView
from django_raftsqlite.raft.members import Member, Members, Role
from django_raftsqlite.sqlite.entry import Outcome, Status

DEADLINE = 20.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Figures


def test_a_histogram_counts_each_value_once_at_the_least_bound_that_holds_it() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 1.5, 4.0, 100.0):
        histogram.observe(value)
    assert histogram.plain() == {"bounds": [1.0, 2.0, 4.0], "counts": [2, 1, 1, 1], "sum": 107.0}


def test_a_quantile_lies_within_the_bucket_that_holds_it() -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantile(bounds, [0, 0, 0, 0], 0.5) is None
    assert quantile(bounds, [2, 0, 0, 0], 0.5) == 0.5
    assert quantile(bounds, [1, 0, 1, 0], 0.99) == pytest.approx(2.0 + 2.0 * 0.98)
    assert quantile(bounds, [0, 0, 0, 5], 0.99) == 4.0, "above all bounds, the last one is all that is known"


def test_threads_that_count_at_the_same_time_lose_nothing() -> None:
    figures = Figures()

    def work() -> None:
        for _ in range(2000):
            figures.ended("done", 0.001)
            figures.note({"rebases": 1, "unheard of": 1})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plain = figures.plain()
    assert plain["writes"] == {**dict.fromkeys(ENDS, 0), "done": 8000}
    assert sum(plain["histograms"]["commit"]["counts"]) == 8000
    assert plain["counters"] == {"elections": 0, "leader_changes": 0, **dict.fromkeys(NOTES, 0), "rebases": 8000}


@pytest.mark.parametrize(
    ("result", "end"),
    [
        (Outcome(Status.DONE), "done"),
        (Outcome(Status.ERROR), "error"),
        (Outcome(Status.CONFLICT), "conflict"),
        (Outcome(Status.REPLAY_DIFFERS), "conflict"),
        (Outcome(Status.REFUSED), None),
        (CommitOutcomeUnknown(), "unknown"),
        (LeaseTimeout(), "locked"),
        (Unavailable("", "no leader"), "unavailable"),
        (LeaseLost(), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_each_end_of_a_write_has_a_name(result: Any, end: str | None) -> None:
    assert end_of(result) == end


# The last minutes


def test_a_point_has_what_happened_since_the_one_before() -> None:
    clock, commit, version = Clock(), Histogram((1.0, 2.0)), [100]
    commit.observe(0.5)
    recent = Recent(commit, lambda: version[0], clock)
    recent.tick()
    assert recent.plain() == [], "what was before it began is not part of a point"
    version[0] += 7
    commit.observe(1.5)
    clock.now += EVERY
    recent.tick()
    recent.tick()
    clock.now += 1.0
    assert recent.plain() == [{"ago": 1.0, "seconds": EVERY, "writes": 7, "commits": 1, "p50": 1.5, "p99": 1.99}]


def test_a_restored_database_with_a_lower_version_gives_no_negative_rate() -> None:
    clock, version = Clock(), [100]
    recent = Recent(Histogram((1.0,)), lambda: version[0], clock)
    recent.tick()
    version[0] = 3
    clock.now += EVERY
    recent.tick()
    assert [point["writes"] for point in recent.plain()] == [0]


def test_no_more_than_the_latest_points_are_kept() -> None:
    clock, version = Clock(), [0]
    recent = Recent(Histogram((1.0,)), lambda: version[0], clock)
    for _ in range(POINTS + 10):
        version[0] += 1
        recent.tick()
        clock.now += EVERY
    assert len(recent.plain()) == POINTS
    assert recent.plain()[-1]["ago"] == EVERY


# The others


def test_the_round_trip_and_the_offset_of_a_clock_are_measured_by_what_is_said_anyway() -> None:
    """Here, what is sent takes 30 ms there and 30 ms back, and waits for 0.4 s; the other clock is 5 s ahead."""
    here, there = Clock(), Clock()
    there.now += 77777.0  # monotonic clocks of two machines have nothing in common
    mine = Clocks(here, wall=lambda: here.now)
    other = Clocks(there, wall=lambda: here.now + 5.0)

    def passes(seconds: float) -> None:
        here.now += seconds
        there.now += seconds

    for _ in range(3):
        said = mine.stamp("b")
        passes(0.03)
        other.receive("a", said)
        passes(0.4)
        answer = other.stamp("a")
        passes(0.03)
        mine.receive("b", answer)
    assert mine.round_trips["b"] == pytest.approx(0.06)
    assert mine.offsets["b"] == pytest.approx(5.0)
    assert other.offsets["a"] == pytest.approx(-5.0)


def test_what_was_heard_long_ago_or_in_another_session_is_not_answered() -> None:
    clock = Clock()
    clocks = Clocks(clock)
    clocks.receive("b", {"ping": 1.0, "time": 0.0})
    assert "pong" in clocks.stamp("b")
    clock.now += FORGOTTEN
    assert "pong" not in clocks.stamp("b")
    clocks.receive("b", {"ping": 1.0, "time": 0.0})
    clocks.forget("b")
    assert "pong" not in clocks.stamp("b")


def test_a_member_that_says_nothing_of_time_is_no_fault() -> None:
    clocks = Clocks()
    clocks.receive("b", {"applied": 7})
    assert clocks.round_trips == {}


def test_the_room_on_the_disk_is_told_and_a_file_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite3"
    assert Space(path).plain() == {}
    path.write_bytes(b"x" * 100)
    found = Space(path).plain()
    assert found["database"] == 100
    assert found["free"] > 0


# Events


def test_observers_are_told_in_order_off_the_callers_thread_and_one_that_fails_does_no_harm() -> None:
    told: deque[tuple[object, str]] = deque()
    done = threading.Event()

    def fails(_event: object) -> None:
        raise RuntimeError

    def observes(event: object) -> None:
        told.append((event, threading.current_thread().name))
        if event == 9:
            done.set()

    events = Events((fails, observes), name="x")
    for event in range(10):
        events.tell(event)
    assert done.wait(DEADLINE)
    events.close(DEADLINE)
    events.tell("too late")
    assert [event for event, _ in told] == list(range(10))
    assert {name for _, name in told} == {"raftsqlite-events x"}


def test_an_observer_that_hangs_keeps_nobody_waiting() -> None:
    going, go_on = threading.Event(), threading.Event()

    def hangs(_event: object) -> None:
        going.set()
        go_on.wait()

    events = Events((hangs,), name="x")
    events.tell(1)
    assert going.wait(DEADLINE)
    for event in range(5000):
        events.tell(event)  # does not wait
    events.close(0.0)
    go_on.set()
    events.close(DEADLINE)


# A node's life


class Node:
    """Measures, and what they are told."""

    def __init__(self, tmp_path: Path) -> None:
        self.told: list[object] = []
        self.applied = 5
        self.asked: list[Any] = []

        class Told(Events):
            def tell(_self, event: object) -> None:
                self.told.append(event)

        config = NodeConfig(name=tmp_path / "x.sqlite3", address="a", peers=("a", "b", "c"))
        self.measures = Measures(config, Told((), name="x"), version=lambda: 0, applied=lambda: self.applied)

    def view(self, leader: str | None, term: int, role: str = "follower") -> None:
        self.measures.on_view(RaftView(role, term, leader, 0, 0, frozenset(), {}))

    def tick(self) -> None:
        self.measures.tick(self.asked.append)


def test_a_change_of_leader_is_told_once_and_not_when_the_same_one_is_elected_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.view(None, 1)
    node.view("b", 1)
    node.view("b", 1)
    node.view(None, 1)
    node.view("b", 2)
    node.view(None, 3, "candidate")
    node.view("a", 3, "leader")
    assert node.told == [LeaderChanged("a", "b", None, 1), LeaderChanged("a", "a", "b", 3)]
    counters = node.measures.plain()["counters"]
    assert (counters["leader_changes"], counters["elections"]) == (2, 1)


def test_a_node_is_ready_once_it_has_applied_what_was_committed_when_it_began(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.tick()
    assert node.asked == [], "nobody can be asked before there is a leader"
    node.view("b", 1)
    node.tick()
    node.tick()
    (answer,) = node.asked
    answer(9)
    node.tick()
    assert not node.measures.status(())["ready"]
    node.applied = 9
    node.tick()
    node.tick()
    assert node.measures.status(())["ready"]
    assert node.told[1:] == [NodeReady("a", "b", 9)]


def test_what_changed_of_the_members_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    founders = Members.founders(["a", "b", "c"])
    node.measures.on_members(None, founders)
    assert node.told == [], "nobody was there before"
    after = Members(
        9, (Member("a", Role.VOTER), Member("b", Role.LEARNER), Member("d", Role.NEWCOMER), Member("e", Role.LEARNER))
    )
    node.measures.on_members(founders, after)
    node.measures.on_members(after, Members(10, (*after.all[:2], Member("d", Role.VOTER), after.all[3])))
    assert node.told == [
        MemberChanged("a", "b", "learner", 9),
        MemberChanged("a", "c", "removed", 9),
        MemberChanged("a", "d", "added", 9),
        MemberChanged("a", "e", "added", 9),
        MemberChanged("a", "d", "promoted", 10),
    ]
