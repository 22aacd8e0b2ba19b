"""How long who waits goes on waiting while a long statement is being applied."""

from __future__ import annotations

import time
from collections.abc import Callable


class Patience:
    """A clock for deadlines, which stands still while the group is busy with one long statement.

    Who waits for a write would time out during a table rebuild, though nothing is wrong and its turn will come. By
    this clock its deadline comes later by as long as that takes, at most ``limit`` seconds for each such statement.

    :meth:`tick` belongs to one thread, which calls it every few dozen milliseconds; :meth:`now` to any. From a tick
    that was busy to the next one the clock stands, too: the thread that calls it may have stood still itself.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._spell = 0.0
        # The last tick, for how long the clock had stood by then, and for how long it may go on to. In one piece, for
        # other threads.
        self._state = clock(), 0.0, 0.0

    def now(self) -> float:
        """Seconds; comparable with each other only."""
        ticked, stood, left = self._state
        now = self._clock()
        return now - stood - min(now - ticked, left)

    def until(self, deadline: float) -> Callable[[], float]:
        """What says how many seconds are left until ``deadline``; they may be more when it is asked again."""
        return lambda: deadline - self.now()

    def tick(self, *, busy: bool) -> None:
        """Time has passed since the last call; ``busy``: with a long statement."""
        ticked, stood, _ = self._state
        now = self._clock()
        granted = min(now - ticked, self._limit - self._spell) if busy else 0.0
        self._spell = self._spell + granted if busy else 0.0
        self._state = now, stood + granted, self._limit - self._spell if busy else 0.0
