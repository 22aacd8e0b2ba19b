"""How long who waits goes on waiting while a long statement is being applied."""

from __future__ import annotations

import time
from collections.abc import Callable


class Patience:
    """A clock for deadlines, which stands still while the group is busy with one long statement.

    Who waits for a write would time out during a table rebuild, though nothing is wrong and its turn will come. By
    this clock its deadline comes later by as long as that takes, at most ``limit`` seconds for each such statement.

    :meth:`tick` belongs to one thread, which calls it every few dozen milliseconds; :meth:`now` to any.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._ticked = clock()
        self._stood = 0.0
        self._spell = 0.0

    def now(self) -> float:
        """Seconds; comparable with each other only."""
        return self._clock() - self._stood

    def until(self, deadline: float) -> Callable[[], float]:
        """What says how many seconds are left until ``deadline``; they may be more when it is asked again."""
        return lambda: deadline - self.now()

    def tick(self, *, busy: bool) -> None:
        """Time has passed since the last call; ``busy``: with a long statement."""
        now = self._clock()
        passed, self._ticked = now - self._ticked, now
        if not busy:
            self._spell = 0.0
            return
        granted = min(passed, self._limit - self._spell)
        self._spell += granted
        self._stood += granted
