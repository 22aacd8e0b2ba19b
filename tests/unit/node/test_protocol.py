"""When a group uses the next version of the protocol: all its members speak it, and the leader hears all of them."""

from __future__ import annotations

from typing import Any

import pytest

from django_raftsqlite.node.protocol import Protocol, in_words
from django_raftsqlite.raft.config import RaftView

MEMBERS = ("a:1", "b:1", "c:1")


class Leader:
    """The leader's Protocol with what is around it: ``heard``, ``used``, and the versions it has ``raised`` to."""

    def __init__(self, speaks: tuple[int, int] = (1, 2), members: tuple[str, ...] = MEMBERS) -> None:
        self.heard: dict[str, dict[str, Any]] = {}
        self.used = 1
        self.raised: list[int] = []
        self.members = members
        self.protocol = Protocol(
            "a:1",
            speaks,
            used=lambda: self.used,
            members=lambda: self.members,
            heard=lambda: self.heard,
            raise_to=self.raised.append,
        )

    def tick(self, role: str = "leader", term: int = 1, *, established: bool = True) -> list[int]:
        view = RaftView(role, term, "a:1", 1, 1, frozenset(self.heard), {}, established=established)
        self.protocol.tick(view)
        return self.raised

    def hear(self, **speaks: int | None) -> None:
        """What members say; None: an older one, which says nothing of it."""
        self.heard = {f"{name}:1": {} if newest is None else {"speaks": newest} for name, newest in speaks.items()}


def test_the_leader_raises_it_once_all_members_speak_it() -> None:
    leader = Leader()
    leader.hear(b=2, c=2)
    assert leader.tick() == [2]
    assert leader.tick() == [2], "once in a term"
    assert leader.tick(term=2) == [2, 2], "the entry of the last leadership may be lost"
    leader.used = 2
    assert leader.tick(term=3) == [2, 2]


@pytest.mark.parametrize("heard", [{}, {"b": 2}, {"b": 2, "c": 1}, {"b": 2, "c": None}, {"b": 2, "d": 2}])
def test_it_is_not_raised_while_one_does_not_speak_it_or_is_not_heard(heard: dict[str, Any]) -> None:
    """A member that is away may have been upgraded, or not."""
    leader = Leader()
    leader.hear(**heard)
    assert leader.tick() == []


def test_it_is_raised_to_the_newest_that_all_speak() -> None:
    leader = Leader(speaks=(1, 5))
    leader.hear(b=3, c=4)
    assert leader.tick() == [3]
    leader.used = 3
    leader.hear(b=9, c=9)
    assert leader.tick() == [3, 5]


@pytest.mark.parametrize(
    ("role", "established"), [("follower", False), ("candidate", False), ("leader", False), ("failed", False)]
)
def test_only_a_leader_that_is_established_raises_it(role: str, established: bool) -> None:
    leader = Leader()
    leader.hear(b=2, c=2)
    assert leader.tick(role, established=established) == []


def test_a_group_of_one_uses_what_it_speaks() -> None:
    assert Leader(members=("a:1",)).tick() == [2]


def test_a_member_that_is_removed_is_not_waited_for() -> None:
    leader = Leader()
    leader.hear(b=2)
    assert leader.tick() == []
    leader.members = ("a:1", "b:1")
    assert leader.tick() == [2]


def test_who_is_waited_for_is_told() -> None:
    leader = Leader()
    leader.hear(b=1)
    assert leader.protocol.status() == {
        "used": 1,
        "speaks": [1, 2],
        "waits_for": ["b:1 speaks 1 at most", "c:1 was not heard of"],
    }
    assert in_words(leader.protocol.lacking(1)) == []
    leader.used = 2
    assert leader.protocol.status()["waits_for"] == []
