"""A value that one thread waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Latch(Generic[T]):
    """Set at most once, by any thread; waited for by one.

    After a wait that ended in None it can no longer be set, so that the setter knows whether it was heard.
    """

    __slots__ = ("_first", "_value", "_wake")

    def __init__(self) -> None:
        self._value: T | None = None
        self._first = threading.Lock()
        self._wake = threading.Lock()
        self._wake.acquire()

    def set(self, value: T) -> bool:
        """Set the value; False when it has one already or the waiter has gone."""
        if not self._first.acquire(blocking=False):
            return False
        self._value = value
        self._wake.release()
        return True

    def give_up(self) -> None:
        """Nobody waits for it any more; harmless when it is set."""
        self._first.acquire(blocking=False)

    def reset(self) -> None:
        """Begin anew; for the waiter alone, after a wait that gave a value."""
        assert self._value is not None
        self._value = None
        self._first.release()

    @property
    def decided(self) -> bool:
        """Whether it is set, or its waiter has gone."""
        return self._first.locked()

    def comes_within(self, seconds: float) -> bool:
        """Wait for it to be set; when it was not, it may still be waited for."""
        if self.decided or not self._wake.acquire(timeout=seconds):
            return self.decided
        self._wake.release()
        return True

    def wait(self, left: float | Callable[[], float]) -> T | None:
        """The value, or None when the time is up: after ``left`` seconds, or when that says that none are left."""
        seconds = left if isinstance(left, float | int) else left()
        while True:
            if self._wake.acquire(timeout=max(seconds, 0)):
                return self._value
            if isinstance(left, float | int) or (seconds := left()) <= 0:
                break
        if self._first.acquire(blocking=False):
            return None
        self._wake.acquire()  # another thread is between the two lines of set()
        return self._value
