"""The node's own queue for the write lease: one at a time, in order of arrival, for as long as nobody else waits."""

from __future__ import annotations

import pytest

from django_raftsqlite.exceptions import LeaseTimeout
from django_raftsqlite.node.turns import Lost, Turn, Turns


class Leader:
    """What the turns say to the leader, and its answers."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.given_back: list[bytes] = []
        self.nowait: list[bool] = []
        self.term = 1
        self.turns = Turns(ask=self._ask, give_back=self.given_back.append, term=lambda: self.term)

    def _ask(self, claim: bytes, who: str, nowait: bool) -> None:
        self.asked.append(claim)
        self.nowait.append(nowait)

    def grant(self, index: int = 7) -> bool:
        return self.turns.granted(self.asked[-1], index, self.term)


def turn(name: str, *, nowait: bool = False) -> Turn:
    return Turn("node a, process 1", name, nowait=nowait)


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_the_first_asks_the_leader_and_has_its_turn_from_the_granted_index_on(leader: Leader) -> None:
    first = turn("first")
    leader.turns.take(first)
    assert len(leader.asked) == 1 and not first.decided
    assert leader.grant(7)
    assert first.wait(0) == 7
    assert leader.turns.holder is first


def test_turns_are_in_order_of_arrival_without_a_word_to_the_leader(leader: Leader) -> None:
    turns = [turn(name) for name in "abc"]
    for each in turns:
        leader.turns.take(each)
    leader.grant()
    for number, each in enumerate(turns):
        assert leader.turns.holder is each
        assert all(not later.decided for later in turns[number + 1 :])
        leader.turns.finish(each)
    assert len(leader.asked) == 1 and leader.given_back == []


def test_the_lease_stays_until_others_want_it(leader: Leader) -> None:
    first, second = turn("first"), turn("second")
    leader.turns.take(first)
    leader.grant()
    leader.turns.finish(first)
    leader.turns.take(second)
    assert second.wait(0) == 7 and len(leader.asked) == 1
    leader.turns.finish(second)
    assert not leader.turns.wanted_by_others(leader.asked[0], 10.0)
    assert leader.given_back == leader.asked, "nothing is at work: given back at once"
    leader.turns.take(turn("third"))
    assert len(leader.asked) == 2


def test_when_others_wait_a_run_ends_after_its_time_and_the_rest_queues_again(leader: Leader) -> None:
    first, second = turn("first"), turn("second")
    for each in (first, second):
        leader.turns.take(each)
    leader.grant()
    assert leader.turns.wanted_by_others(leader.asked[0], 0.0)
    leader.turns.finish(first)
    assert leader.given_back == leader.asked[:1] and not second.decided
    assert len(leader.asked) == 2, "behind the others, who were there before"
    leader.grant(9)
    assert second.wait(0) == 9


def test_within_its_time_a_run_goes_on(leader: Leader) -> None:
    first, second = turn("first"), turn("second")
    for each in (first, second):
        leader.turns.take(each)
    leader.grant()
    leader.turns.wanted_by_others(leader.asked[0], 3600.0)
    leader.turns.finish(first)
    assert leader.turns.holder is second
    leader.turns.finish(second)
    assert leader.given_back == leader.asked, "nobody here needs the rest of the time"


def test_a_lease_under_which_nothing_is_at_work_makes_way_for_the_nodes_own_autocommit_writes(leader: Leader) -> None:
    first = turn("first")
    leader.turns.take(first)
    leader.grant()
    leader.turns.spare()
    assert leader.given_back == []
    leader.turns.finish(first)
    leader.turns.spare()
    leader.turns.spare()
    assert leader.given_back == leader.asked


def test_who_gives_up_waiting_is_told_who_was_in_the_way(leader: Leader) -> None:
    first, second = turn("UPDATE the_first"), turn("second")
    for each in (first, second):
        leader.turns.take(each)
    leader.grant()
    assert "UPDATE the_first" in leader.turns.leave(second)
    leader.turns.finish(first)
    assert leader.turns.holder is None


def test_a_holder_elsewhere_is_named_too_and_the_claim_of_the_last_who_waits_is_withdrawn(leader: Leader) -> None:
    first = turn("first")
    leader.turns.take(first)
    leader.turns.held("node b, process 2: DELETE")
    assert "node b, process 2: DELETE" in leader.turns.leave(first)
    assert leader.given_back == leader.asked
    assert not leader.grant(), "a grant that comes too late is not wanted"


def test_a_turn_whose_waiter_has_gone_is_passed_over(leader: Leader) -> None:
    first, second = turn("first"), turn("second")
    for each in (first, second):
        leader.turns.take(each)
    assert first.wait(0) is None
    leader.grant()
    assert leader.turns.holder is second


def test_nowait_fails_at_once_while_another_is_at_work_or_waits(leader: Leader) -> None:
    leader.turns.take(turn("UPDATE the_first"))
    with pytest.raises(LeaseTimeout, match=r"NOWAIT.*UPDATE the_first"):
        leader.turns.take(turn("second", nowait=True))


def test_nowait_fails_when_the_leader_says_that_the_lease_is_taken(leader: Leader) -> None:
    first = turn("first", nowait=True)
    leader.turns.take(first)
    assert leader.nowait == [True]
    leader.turns.refused(leader.asked[0], "locked", "held by somebody")
    answer = first.wait(0)
    assert isinstance(answer, Lost) and answer.reason == "locked" and "held by somebody" in str(answer)


def test_one_that_waits_is_not_refused_with_the_nowait_before_it(leader: Leader) -> None:
    first, second = turn("first", nowait=True), turn("second")
    leader.turns.take(first)
    leader.turns.take(second)
    leader.turns.refused(leader.asked[0], "locked", "held by somebody")
    assert first.decided and not second.decided
    assert leader.nowait == [True, False]
    leader.grant()
    assert leader.turns.holder is second


def test_a_lease_that_was_taken_away_is_lost_for_its_holder_and_asked_for_again_for_the_others(
    leader: Leader,
) -> None:
    first, second = turn("first"), turn("second")
    for each in (first, second):
        leader.turns.take(each)
    leader.grant()
    leader.turns.refused(leader.asked[0], "revoked", "silent for too long")
    assert first.lost == "silent for too long"
    assert len(leader.asked) == 2
    leader.grant()
    assert leader.turns.holder is second
    leader.turns.finish(first)
    assert leader.turns.holder is second, "the end of one who lost his turn is nobody else's"


def test_a_new_leader_is_asked_again_before_the_next_turn_but_the_running_one_goes_on(leader: Leader) -> None:
    first, second = turn("first"), turn("second")
    for each in (first, second):
        leader.turns.take(each)
    leader.grant()
    assert leader.turns.unsure()
    assert leader.turns.holder is first and first.lost is None
    leader.turns.finish(first)
    assert not second.decided
    leader.grant(12)
    assert second.wait(0) == 12


def test_with_nothing_at_work_a_new_leader_is_not_asked(leader: Leader) -> None:
    first = turn("first")
    leader.turns.take(first)
    leader.grant()
    leader.turns.finish(first)
    assert not leader.turns.unsure()
    leader.turns.take(turn("second"))
    assert len(leader.asked) == 2


def test_an_idle_holder_is_passed_over(leader: Leader) -> None:
    first, second = turn("first"), turn("second")
    for each in (first, second):
        leader.turns.take(each)
    leader.grant()
    leader.turns.take_away(first, "idle")
    assert first.lost == "idle" and leader.turns.holder is second


def test_when_the_node_has_failed_nobody_waits_on(leader: Leader) -> None:
    waiting = [turn("first"), turn("second")]
    for each in waiting:
        leader.turns.take(each)
    leader.turns.refused(leader.asked[0], "failed", "its disk is full")
    answers = [each.wait(0) for each in waiting]
    assert all(isinstance(answer, Lost) and answer.reason == "failed" for answer in answers)


def granted_by_a_leader_that_was_deposed(leader: Leader) -> tuple[Turn, Turn]:
    """Of two turns, the first was granted from index 7 on, and has not begun."""
    first, second = turn("first"), turn("second")
    leader.turns.take(first)
    leader.turns.take(second)
    leader.grant(7)
    assert first.wait(0) == 7
    leader.term = 2
    return first, second


def test_what_a_deposed_leader_granted_is_not_begun_with(leader: Leader) -> None:
    """The entry at that index may have been lost with it."""
    first, second = granted_by_a_leader_that_was_deposed(leader)
    assert not leader.turns.begin(first, 7)
    assert leader.turns.holder is None and first.wait(0) is None
    first = turn("first again")
    leader.turns.take(first)
    assert leader.turns.unsure(), "the next leader is asked for it"
    leader.grant(9)
    assert leader.turns.holder is second and second.wait(0) == 9
    assert leader.turns.begin(second, 9)


def test_a_turn_that_waits_again_keeps_its_place_and_begins_with_what_the_next_leader_grants(leader: Leader) -> None:
    first, second = granted_by_a_leader_that_was_deposed(leader)
    assert leader.turns.unsure()
    leader.grant(9)
    assert not leader.turns.begin(first, 7), "the index is another one's"
    assert leader.turns.holder is first and first.wait(0) == 9
    assert leader.turns.begin(first, 9)
    leader.turns.finish(first)
    assert second.wait(0) == 9
