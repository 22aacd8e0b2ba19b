"""A process that is asked to stop does, whatever it was doing at that moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from django_raftsqlite.management.stopping import StopSignals

NUMBER = signal.SIGUSR1


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(NUMBER)
    yield
    signal.signal(NUMBER, before)


def signal_at_line(place: int, wait: Callable[[], object]) -> bool:
    """Wait, and have the signal come when so many lines of Python were run; whether there were as many."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == place:
                signal.raise_signal(NUMBER)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        wait()
    finally:
        sys.settrace(before)
    return lines >= place


@pytest.mark.timeout(30)
def test_a_signal_may_come_at_any_line_of_the_wait_for_it() -> None:
    place = 1
    stop = StopSignals(NUMBER)
    while signal_at_line(place, lambda stop=stop: stop.within(0.001)):
        assert stop.within(0.0), place
        assert stop.within(0.0), "and it stays so"
        stop = StopSignals(NUMBER)
        place += 1
    assert place > 3
    assert not stop.within(0.0)


@pytest.mark.timeout(30)
def test_a_signal_ends_the_wait() -> None:
    for _ in range(300):
        stop = StopSignals(NUMBER)
        sender = threading.Thread(target=os.kill, args=(os.getpid(), NUMBER))
        sender.start()
        assert stop.within(10.0)
        sender.join()
