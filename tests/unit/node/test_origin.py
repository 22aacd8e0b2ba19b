"""How a process numbers its requests, and what it lets the group forget."""

from __future__ import annotations

import threading

import pytest

from django_raftsqlite.node.origin import IDLE, Origin
from django_raftsqlite.node.requests import Request
from django_raftsqlite.sqlite.parts import Encoded


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def create(origin: Origin) -> Request:
    """A request whose payload is its low-water mark."""
    return origin.create(lambda _, low_water: Encoded([b"%d" % low_water], 1, b""), solo=False)


def test_the_low_water_mark_is_the_oldest_open_request() -> None:
    origin = Origin()
    first, second = create(origin), create(origin)
    origin.forget(second)
    third = create(origin)
    origin.forget(first)
    fourth = create(origin)
    origin.forget(third)
    origin.forget(fourth)
    fifth = create(origin)
    assert [int(request.payload) for request in (first, second, third, fourth, fifth)] == [1, 1, 1, 3, 5]
    assert [request.id.sequence for request in (first, second, third, fourth, fifth)] == [1, 2, 3, 4, 5]


def test_two_origins_never_share_an_id() -> None:
    assert Origin().id != Origin().id


def test_a_request_that_cannot_be_encoded_holds_nothing_up_and_its_number_is_not_given_again() -> None:
    origin = Origin()

    def broken(*_: object) -> Encoded:
        raise OverflowError

    with pytest.raises(OverflowError):
        origin.create(broken, solo=False)
    request = create(origin)
    assert request.id.sequence == 2 and request.payload == b"2"


def test_a_renewed_origin_counts_anew_under_another_id_and_must_be_opened_again() -> None:
    origin = Origin()
    old = create(origin)
    origin.mark_opened(origin.id)
    origin.renew(old.id.origin)
    assert not origin.opened
    new = create(origin)
    assert new.id.origin != old.id.origin and new.id.sequence == 1
    origin.forget(old)
    assert create(origin).payload == b"1", "the end of an old request moves no mark of the new origin"


def test_an_origin_is_renewed_once_however_many_threads_find_it_closed() -> None:
    origin = Origin()
    old = origin.id
    origin.renew(old)
    renewed = origin.id
    origin.renew(old)
    assert origin.id == renewed


def test_the_word_that_an_old_origin_was_opened_says_nothing_about_the_new_one() -> None:
    origin = Origin()
    old = origin.id
    origin.renew(old)
    origin.mark_opened(old)
    assert not origin.opened
    origin.mark_opened(origin.id)
    assert origin.opened


def test_after_a_long_idle_time_a_process_goes_on_under_a_new_origin_and_has_the_old_one_closed() -> None:
    clock = Clock()
    origin = Origin(clock)
    origin.mark_opened(origin.id)
    origin.forget(create(origin))
    clock.now += IDLE
    assert origin.renew_if_idle() is None
    clock.now += 1
    old = origin.id
    assert origin.renew_if_idle() == old
    assert origin.id != old and not origin.opened


def test_an_origin_that_was_never_opened_needs_no_closing() -> None:
    clock = Clock()
    origin = Origin(clock)
    clock.now += IDLE + 1
    assert origin.renew_if_idle() is None


def test_an_origin_with_an_open_request_is_not_idle() -> None:
    clock = Clock()
    origin = Origin(clock)
    create(origin)
    old = origin.id
    clock.now += 10 * IDLE
    assert origin.renew_if_idle() is None and origin.id == old


def test_threads_get_different_numbers_and_no_mark_passes_an_open_request() -> None:
    origin = Origin()
    seen: list[int] = []
    wrong: list[str] = []

    def work() -> None:
        for _ in range(500):
            request = create(origin)
            if int(request.payload) > request.id.sequence:
                wrong.append(f"{request.payload!r} above {request.id.sequence}")
            seen.append(request.id.sequence)
            origin.forget(request)

    oldest = create(origin)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(2, 2002)) and not wrong
    assert create(origin).payload == b"%d" % oldest.id.sequence
