"""COMMITs of a run share a log entry, and none waits for another for longer than a few milliseconds."""

from __future__ import annotations

import pytest

from django_raftsqlite.node import groupcommit
from django_raftsqlite.node.groupcommit import BEHIND, COMPANY, MOST, GroupCommit
from django_raftsqlite.node.origin import Origin
from django_raftsqlite.node.requests import Attempt
from django_raftsqlite.sqlite.entry import Outcome, Status
from django_raftsqlite.sqlite.parts import Encoded


class Node:
    """A node with transactions that wait for their turn, a clock, and what it sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waiting = 0
        self.sent: list[list[Attempt]] = []
        self._origin = Origin()
        monkeypatch.setattr(groupcommit.time, "monotonic", lambda: self.now)
        self.commits = GroupCommit(lambda attempts: self.sent.append(list(attempts)), lambda: self.waiting > 0)

    def attempt(self) -> Attempt:
        request = self._origin.create(lambda *_: Encoded([b"tx"], 2, b""), solo=False, lease=b"l" * 16)
        return Attempt(request, self.now + 5)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def test_with_nobody_waiting_for_a_turn_a_commit_leaves_at_once(node: Node) -> None:
    attempt = node.attempt()
    assert not node.commits.add(attempt)
    assert node.sent == [[attempt]]


def test_while_others_wait_commits_collect_until_the_last_of_them(node: Node) -> None:
    attempts = [node.attempt() for _ in range(3)]
    node.waiting = 2
    assert node.commits.add(attempts[0]), "the first is to see to it that they leave in time"
    assert not node.commits.add(attempts[1])
    assert node.sent == []
    node.waiting = 0
    assert not node.commits.add(attempts[2])
    assert node.sent == [attempts]


def test_the_first_sends_them_when_its_time_is_over(node: Node) -> None:
    attempts = [node.attempt() for _ in range(2)]
    node.waiting = 5
    for attempt in attempts:
        node.commits.add(attempt)
    node.commits.end(attempts[0])
    assert node.sent == [attempts]
    node.commits.end(attempts[0])
    assert node.sent == [attempts], "nothing is sent twice"


def test_who_began_a_group_that_has_left_does_not_send_the_next_one_before_its_time(node: Node) -> None:
    attempts = [node.attempt() for _ in range(3)]
    node.waiting = 1
    node.commits.send(attempts[0], lambda: _leave_and_settle(node, attempts))
    assert node.sent == [attempts[:2]], "the third waits for company yet"
    node.commits.end(attempts[2])
    assert node.sent == [attempts[:2], attempts[2:]]


def _leave_and_settle(node: Node, attempts: list[Attempt]) -> None:
    """While the author of the first waits: its group leaves, is settled, and the next one begins."""
    node.waiting = 0
    node.commits.add(attempts[1])
    attempts[0].set(Outcome(Status.DONE))
    node.waiting = 1
    assert node.commits.add(attempts[2])


def test_what_follows_the_commits_is_preceded_by_all_of_them(node: Node) -> None:
    attempts = [node.attempt() for _ in range(2)]
    node.waiting = 5
    for attempt in attempts:
        node.commits.add(attempt)
    node.commits.flush()
    assert node.sent == [attempts]


def test_one_that_comes_when_the_time_of_the_first_is_over_takes_them_along(node: Node) -> None:
    attempts = [node.attempt() for _ in range(2)]
    node.waiting = 5
    node.commits.add(attempts[0])
    node.now += COMPANY
    assert not node.commits.add(attempts[1])
    assert node.sent == [attempts]


def test_a_group_that_lies_on_what_is_under_way_may_wait_longer_but_not_for_ever(node: Node) -> None:
    before, *attempts = [node.attempt() for _ in range(4)]
    node.commits.add(before)
    node.waiting = 5
    node.commits.add(attempts[0])
    node.now += COMPANY
    assert not node.commits.add(attempts[1]) and node.sent == [[before]]
    node.now += BEHIND - COMPANY
    assert not node.commits.add(attempts[2])
    assert node.sent == [[before], attempts]


def test_there_are_never_more_than_scratch_holds(node: Node) -> None:
    attempts = [node.attempt() for _ in range(MOST + 1)]
    node.waiting = 100
    first = [node.commits.add(attempt) for attempt in attempts]
    assert node.sent == [attempts[:MOST]]
    assert first == [True, *[False] * (MOST - 1), True], "the next group has a first as well"
