"""Round trips that were measured, and the election timeouts that follow from them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from django_raftsqlite.raft.roundtrips import LONGEST, MULTIPLE, RoundTrips


def measured(**seconds: float) -> RoundTrips:
    trips = RoundTrips()
    for number, (peer, trip) in enumerate(seconds.items()):
        trips.asked(peer, number, 100.0)
        trips.answered(peer, number, 100.0 + trip)
    return trips


def test_the_shortest_of_the_latest_counts() -> None:
    """A busy moment makes nobody far away; a peer that moved is far away soon."""
    trips = RoundTrips()
    assert trips.to("a") is None
    taken = [0.5, 0.010, 0.3, 0.012]
    for seq, trip in enumerate(taken):
        trips.asked("a", seq, 10.0 * seq)
        trips.answered("a", seq, 10.0 * seq + trip)
    assert trips.to("a") == pytest.approx(0.010)
    for seq in range(100, 108):
        trips.asked("a", seq, 10.0 * seq)
        trips.answered("a", seq, 10.0 * seq + 0.2)
    assert trips.to("a") == pytest.approx(0.2)


def test_only_the_answer_to_the_latest_question_counts_and_once() -> None:
    trips = RoundTrips()
    trips.asked("a", 1, 10.0)
    trips.asked("a", 2, 11.0)
    trips.answered("a", 1, 11.5)
    assert trips.to("a") is None
    trips.answered("a", 2, 11.6)
    trips.answered("a", 2, 11.0)
    trips.answered("b", 2, 11.6)
    assert trips.to("a") == pytest.approx(0.6)
    assert trips.to("b") is None


def test_a_question_waits_for_the_answer_to_the_one_before() -> None:
    """Else a peer that is farther away than the time between two questions would never be measured."""
    trips = RoundTrips()
    for seq in range(10):
        assert trips.due("a", 10.0 * seq)
        trips.asked("a", seq, 10.0 * seq)
        assert not trips.due("a", 10.0 * seq + 5.0)
        trips.answered("a", seq, 10.0 * seq + 6.0)
    assert trips.to("a") == pytest.approx(6.0)
    trips.asked("a", 10, 1000.0)
    assert not trips.due("a", 1009.0) and trips.due("a", 1010.0), "it did not hear the question"


def test_a_new_session_is_measured_at_once_and_an_old_one_once_a_second() -> None:
    trips = RoundTrips()
    asked = []
    for step in range(300):
        now = step / 50
        if trips.due("a", now):
            trips.asked("a", step, now)
            trips.answered("a", step, now + 0.001)
            asked.append(now)
    assert asked[:4] == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=0.03)
    assert [round(b - a) for a, b in pairwise(asked[3:])] == [1] * (len(asked) - 4)
    trips.disconnected("a")
    assert trips.due("a", asked[-1] + 0.01)
    assert trips.to("a") == pytest.approx(0.001), "it is known on"


@pytest.mark.parametrize(
    ("trips", "others", "expected"),
    [
        ({}, "", None),
        ({"a": 0.01}, "a", 0.01),
        ({"a": 0.01, "b": 0.15}, "ab", 0.01),
        ({"b": 0.15}, "ab", 0.15),
        ({"a": 0.01, "b": 0.15, "c": 0.07}, "abc", 0.07),
        ({"a": 0.01, "b": 0.15, "c": 0.07, "d": 0.3}, "abcd", 0.07),
        ({"a": 0.01}, "abcd", None),
        ({"x": 0.01}, "ab", None),
    ],
)
def test_a_majority_is_as_far_as_the_last_one_it_needs(
    trips: dict[str, float], others: str, expected: float | None
) -> None:
    """This member counts itself."""
    found = measured(**trips).to_majority(tuple(others))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_election_timeout_is_a_bounded_multiple_of_that() -> None:
    for trip, expected in ((0.001, 0.4), (0.039, 0.4), (0.15, MULTIPLE * 0.15), (30.0, LONGEST)):
        assert measured(a=trip).election_timeout(("a", "b"), 0.4) == pytest.approx(expected)
    assert measured().election_timeout(("a", "b"), 0.4) == 0.4
    assert measured(a=30.0).election_timeout(("a", "b"), 10.0) == 10.0
