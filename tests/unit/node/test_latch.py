"""A latch has one value, and one thread that waits for it."""

from __future__ import annotations

import threading

from django_raftsqlite.node.latch import Latch


def test_a_value_that_did_not_come_in_a_moment_may_still_be_waited_for() -> None:
    latch: Latch[int] = Latch()
    assert not latch.comes_within(0.001)
    assert latch.set(7), "nobody has given up"
    assert latch.comes_within(0)
    assert latch.wait(0) == 7


def test_the_moment_ends_with_the_value() -> None:
    latch: Latch[int] = Latch()
    setter = threading.Timer(0.01, latch.set, [7])
    setter.start()
    assert latch.comes_within(30)
    assert latch.wait(0) == 7
    setter.join()


def test_after_a_wait_in_vain_it_cannot_be_set() -> None:
    latch: Latch[int] = Latch()
    assert latch.wait(0.001) is None
    assert not latch.set(7)
