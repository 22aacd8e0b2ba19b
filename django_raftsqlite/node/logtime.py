"""The time in log entries, by which origins and parts of transactions grow old."""

from __future__ import annotations

import time
from collections.abc import Callable


class LogTime:
    """Milliseconds that go on from the newest entry's time, as fast as this machine's monotonic clock.

    Not the wall clock: a leader whose clock is an hour ahead would make everybody look idle for an hour. ``applied``
    gives the time of the newest entry that is applied here.
    """

    def __init__(self, applied: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._applied = applied
        self._clock = clock
        self._ahead = applied() - self._elapsed()

    def now(self) -> int:
        """Never less than before, nor than the newest entry's."""
        elapsed = self._elapsed()
        self._ahead = max(self._ahead, self._applied() - elapsed)
        return elapsed + self._ahead

    def _elapsed(self) -> int:
        return int(self._clock() * 1000)
