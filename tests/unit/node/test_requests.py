"""The requests under way through one host, whoever their authors are."""

from __future__ import annotations

import pytest

from django_raftsqlite.node.requests import Attempt, Request, Requests
from django_raftsqlite.sqlite.entry import Outcome, RequestId, Status

DONE = Outcome(Status.DONE)


def attempt(sequence: int = 1, *, origin: bytes = b"o" * 16, sent: bool = False) -> Attempt:
    request = Request(RequestId(origin, sequence), b"payload", solo=False, lease=None, sent=sent)
    return Attempt(request, deadline=0.0)


@pytest.fixture
def requests() -> Requests:
    return Requests()


def test_an_outcome_settles_the_request_with_its_origin_and_its_number(requests: Requests) -> None:
    mine, next_one, others = attempt(), attempt(2), attempt(origin=b"p" * 16)
    for each in (mine, next_one, others):
        requests.add(each)
    requests.settle(mine.id, DONE)
    assert mine.wait(0) is DONE
    assert not next_one.decided and not others.decided
    assert requests.open() == [next_one, others]


def test_an_outcome_of_nobodys_request_is_ignored(requests: Requests) -> None:
    requests.settle(RequestId(b"x" * 16, 1), DONE)
    assert requests.open() == []


def test_a_request_that_arrives_again_while_it_is_under_way_gets_the_same_outcome(requests: Requests) -> None:
    first, again = attempt(), attempt(sent=True)
    requests.add(first)
    requests.add(again)
    requests.settle(first.id, DONE)
    assert first.wait(0) is DONE and again.wait(0) is DONE
    assert requests.open() == []


def test_who_gives_up_takes_nothing_from_who_asked_for_the_same(requests: Requests) -> None:
    first, again = attempt(), attempt(sent=True)
    requests.add(first)
    requests.add(again)
    requests.forget(first)
    requests.forget(first)
    requests.settle(again.id, DONE)
    assert not first.decided and again.wait(0) is DONE


def test_a_refusal_meets_one_attempt_alone(requests: Requests) -> None:
    first, again = attempt(), attempt(sent=True)
    requests.add(first)
    requests.add(again)
    refusal = RuntimeError()
    requests.refuse(first, refusal)
    assert first.wait(0) is refusal
    assert requests.find(again.id) == (again,) and not again.decided


def test_what_an_earlier_host_may_have_sent_counts_as_sent_more_than_once() -> None:
    """So that no leader's refusal is taken for "surely not executed"."""
    assert attempt().sent == 0
    assert attempt(sent=True).sent > 1
