"""How old a node's state is at most: by the leader's word, and by the node's own clock alone."""

from __future__ import annotations

from math import inf

from django_raftsqlite.node.staleness import KEPT, Staleness, moment


class Node:
    """Its clock and its applied index are what the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.applied = 0
        self.staleness = Staleness(lambda: self.applied, lambda: self.now)

    def asks(self) -> None:
        self.staleness.asked()

    def hears(self, index: int) -> None:
        self.staleness.answered(index)

    @property
    def age(self) -> float:
        return self.staleness.age()


def test_a_node_that_never_asked_knows_nothing_of_its_age() -> None:
    node = Node()
    assert node.age == inf
    node.asks()
    assert node.age == inf


def test_the_age_counts_from_the_question_not_from_its_answer() -> None:
    """What was committed while the answer was under way need not be in it."""
    node = Node()
    node.asks()
    node.now += 3
    node.hears(0)
    assert node.age == 3
    node.now += 1
    assert node.age == 4


def test_an_answer_counts_once_it_is_applied() -> None:
    node = Node()
    node.asks()
    node.hears(0)
    node.now += 10
    node.asks()
    node.now += 1
    node.hears(8)
    node.applied = 7
    assert node.age == 11
    node.applied = 8
    assert node.age == 1


def test_of_several_answers_the_newest_that_is_applied_counts() -> None:
    node = Node()
    for index in (3, 5, 9):
        node.asks()
        node.hears(index)
        node.now += 1
    node.applied = 6
    assert node.age == 2
    node.applied = 20
    assert node.age == 1


def test_a_question_without_an_answer_is_forgotten_with_the_next() -> None:
    """Its answer, if it still comes, is not looked at: the core numbers its questions."""
    node = Node()
    node.asks()
    node.now += 10
    node.asks()
    node.hears(0)
    assert node.age == 0


def test_the_answers_of_a_node_that_applies_nothing_are_bounded_and_the_oldest_are_kept() -> None:
    """They are applied first; and the newest is there, so that a node that has applied all is known to be fresh."""
    node = Node()
    for index in range(1, 10 * KEPT + 1):
        node.asks()
        node.hears(index)
        node.now += 1
    assert len(node.staleness._answers) == KEPT
    node.applied = 1
    assert node.age == 10 * KEPT
    node.applied = 10 * KEPT
    assert node.age == 1


def test_an_index_that_went_back_is_believed() -> None:
    """A group that was restored counts anew; a high index of before must not stand in the way for ever."""
    node = Node()
    node.asks()
    node.hears(1000)
    node.now += 5
    node.asks()
    node.hears(3)
    node.applied = 3
    assert node.age == 0


def test_the_clock_never_goes_back() -> None:
    moments = [moment() for _ in range(100)]
    assert moments == sorted(moments)
