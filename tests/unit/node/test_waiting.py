"""Waiting with a deadline that may be put off."""

from __future__ import annotations

import threading

import pytest

from django_raftsqlite.node.latch import Latch
from django_raftsqlite.node.progress import Applied


class Left:
    """Says in turn how many seconds are left; 0 at the end."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def __call__(self) -> float:
        return self.seconds.pop(0) if self.seconds else 0.0


def test_a_latch_is_waited_for_until_nothing_is_left() -> None:
    """It asks again each time that the seconds have passed."""
    latch: Latch[int] = Latch()
    left = Left(0.001, 0.001, 0.001)
    assert latch.wait(left) is None
    assert left.seconds == []
    assert not latch.set(1), "its waiter has gone"


@pytest.mark.parametrize("seconds", [5.0, 5])
def test_a_latch_that_is_set_meanwhile_gives_its_value(seconds: float) -> None:
    latch: Latch[int] = Latch()
    threading.Timer(0.02, latch.set, [7]).start()
    assert latch.wait(Left(0.001, seconds)) == 7
    again: Latch[int] = Latch()
    again.set(8)
    assert again.wait(seconds) == 8


def test_an_index_is_waited_for_until_nothing_is_left() -> None:
    applied = Applied(5)
    left = Left(0.001, 0.001)
    assert not applied.wait(6, left)
    assert left.seconds == []
    assert applied.wait(5, left)
    threading.Timer(0.02, applied.advance, [6]).start()
    assert applied.wait(6, Left(0.001, 0.001, 5.0))
