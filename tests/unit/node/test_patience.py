"""Deadlines while a long statement is being applied."""

from __future__ import annotations

import random

import pytest

from django_raftsqlite.node.patience import Patience


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(patience: Patience, clock: Clock, seconds: float, *, busy: bool, every: float = 0.05) -> None:
    for _ in range(round(seconds / every)):
        clock.now += every
        patience.tick(busy=busy)


def test_a_deadline_comes_when_it_should_while_nothing_takes_long() -> None:
    """The clock is the ordinary one."""
    clock = Clock()
    patience = Patience(60.0, clock)
    began = patience.now()
    run(patience, clock, 5.0, busy=False)
    assert patience.now() - began == pytest.approx(5.0)


def test_a_deadline_does_not_come_nearer_while_a_long_statement_is_applied() -> None:
    """And goes on from where it was when that is done."""
    clock = Clock()
    patience = Patience(60.0, clock)
    deadline = patience.now() + 5.0
    run(patience, clock, 2.0, busy=False)
    run(patience, clock, 30.0, busy=True)
    assert deadline - patience.now() == pytest.approx(3.0)
    run(patience, clock, 3.05, busy=False)
    assert patience.now() > deadline


def test_a_statement_that_never_ends_puts_a_deadline_off_by_the_limit_and_no_more() -> None:
    """Every wait has an end."""
    clock = Clock()
    patience = Patience(10.0, clock)
    deadline = patience.now() + 5.0
    run(patience, clock, 14.9, busy=True)
    assert patience.now() < deadline
    run(patience, clock, 0.2, busy=True)
    assert patience.now() > deadline


def test_each_long_statement_has_the_limit_anew() -> None:
    """They are told apart by a moment in between in which none was."""
    clock = Clock()
    patience = Patience(10.0, clock)
    began = patience.now()
    for _ in range(3):
        run(patience, clock, 10.0, busy=True)
        run(patience, clock, 0.05, busy=False)
    assert patience.now() - began == pytest.approx(0.15)


def test_a_deadline_does_not_pass_while_the_thread_that_tells_the_time_stands_still_itself() -> None:
    """As long as the limit allows: what was busy when it was last told is so until it is told again."""
    clock = Clock()
    patience = Patience(10.0, clock)
    deadline = patience.now() + 1.0
    run(patience, clock, 2.0, busy=True)
    clock.now += 5.0
    assert deadline - patience.now() == pytest.approx(1.0)
    patience.tick(busy=True)
    assert deadline - patience.now() == pytest.approx(1.0)
    clock.now += 30.0
    assert patience.now() > deadline


@pytest.mark.parametrize("seed", range(10))
def test_it_never_runs_faster_than_time_nor_stands_longer_than_the_limit(seed: int) -> None:
    """Whatever comes, however irregularly it is told."""
    print("seed", seed)
    draw, clock = random.Random(seed), Clock()
    patience = Patience(2.0, clock)
    for _ in range(200):
        busy, ticks = draw.random() < 0.5, draw.randrange(1, 100)
        before, then = patience.now(), clock.now
        for _ in range(ticks):
            clock.now += draw.uniform(0.0, 0.2)
            patience.tick(busy=busy)
        passed, counted = clock.now - then, patience.now() - before
        assert -1e-6 <= counted <= passed + 1e-6
        assert passed - counted <= (2.0 + 1e-6 if busy else 1e-6)
