"""COMMITs of one node that leave together, so that they share a log entry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from .requests import Attempt

COMPANY = 0.006
"""Seconds for which a COMMIT may wait for those that follow it."""

BEHIND = 0.010
"""The same, while the group before is under way: what left sooner would for the most part wait for that elsewhere."""

MOST = 16
"""COMMITs that leave together; more would all be run again by the next transaction of the node, were they to wait."""


class GroupCommit:
    """Holds COMMITs back, for a moment, while more transactions of this node wait for their turn.

    An entry costs every node more than one more transaction in it does: the log is flushed for it on all of them, and
    scratch is built anew. The first COMMIT of a group waits :data:`COMPANY` seconds at most, or :data:`BEHIND` while
    the leader, which has one entry under way at a time, would not take it yet; with nobody waiting for a turn a
    COMMIT leaves at once, so that one client alone never waits. They leave in the order in which they came, and
    before whatever follows a :meth:`flush`.

    ``leave`` hands attempts on, in order, without waiting for anything; ``more`` tells whether others wait for
    their turn. Any thread.
    """

    def __init__(self, leave: Callable[[Sequence[Attempt]], object], more: Callable[[], bool]) -> None:
        self._hand_on = leave
        self._more = more
        self._mutex = threading.Lock()
        self._held: list[Attempt] = []
        self._before: Attempt | None = None
        self._until = 0.0

    def send(self, attempt: Attempt, sent: Callable[[], None]) -> None:
        """Send it, alone or in company; ``sent`` is called when it has its place before those that follow.

        For its author's thread, which sees to it that the first of a group is sent in time.
        """
        first = self.add(attempt)
        try:
            sent()
            if first:
                attempt.comes_within(max(self._until - time.monotonic(), 0.0))
        finally:
            if first:
                self.end(attempt)

    def add(self, attempt: Attempt) -> bool:
        """Send it, or hold it back; true for the first that is held: its author calls :meth:`end` when
        its time is over."""
        with self._mutex:
            now = time.monotonic()
            if not self._held:
                self._until = now + (BEHIND if self._before is not None and not self._before.decided else COMPANY)
            self._held.append(attempt)
            if self._more() and now < self._until and len(self._held) < MOST:
                return len(self._held) == 1
            self._leave()
            return False

    def end(self, first: Attempt) -> None:
        """Send the group that began with it, unless that has left: the next one's time is its own."""
        with self._mutex:
            if self._held and self._held[0] is first:
                self._leave()

    def flush(self) -> None:
        """Send what is held back."""
        with self._mutex:
            self._leave()

    def _leave(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._before = held[-1]
            self._hand_on(held)
