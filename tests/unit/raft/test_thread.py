"""The way onto the loop: every call is run, in order, and none wakes the loop that need not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from django_raftsqlite.raft.thread import LoopThread

DEADLINE = 20.0


async def _nothing() -> None:
    pass


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    made = LoopThread("a loop", opened=_nothing, closed=_nothing, after_calls=lambda: None)
    made.start()
    yield made
    made.stop(_nothing)


def expect(thread: LoopThread, expects: bool) -> None:
    """As the loop itself does, outside of its calls."""
    done = threading.Event()
    thread.loop.call_soon_threadsafe(lambda: (thread.expect(expects), done.set()))
    assert done.wait(DEADLINE)


def test_what_is_left_while_nothing_is_expected_is_run_at_once(thread: LoopThread) -> None:
    ran = threading.Event()
    assert thread.leave(ran.set)
    assert ran.wait(DEADLINE)


def test_what_is_left_does_not_wake_a_loop_that_expects_something(thread: LoopThread) -> None:
    expect(thread, True)
    ran = threading.Event()
    assert thread.leave(ran.set)
    expect(thread, True)  # the loop went round, and did not run it
    assert not ran.is_set()
    expect(thread, False)
    assert ran.wait(DEADLINE)


def test_a_call_runs_what_was_left_before_it_first(thread: LoopThread) -> None:
    expect(thread, True)
    order: list[int] = []
    done = threading.Event()
    thread.leave(order.append, 1)
    thread.call(order.append, 2)
    thread.leave(order.append, 3)
    thread.call(done.set)
    assert done.wait(DEADLINE)
    assert order == [1, 2, 3]


def test_what_is_left_when_the_thread_stops_is_run(thread: LoopThread) -> None:
    expect(thread, True)
    ran = threading.Event()
    thread.leave(ran.set)
    thread.stop(_nothing)
    assert ran.is_set()
    assert not thread.leave(ran.set)
