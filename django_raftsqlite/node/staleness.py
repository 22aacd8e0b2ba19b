"""How old this node's state is at most, by the leader's word and this node's own clock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf

KEPT = 64
ASK_AT = 0.5
"""The share of what a reader allows at which the leader is asked anew, ahead of need."""

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def moment() -> float:
    """Monotonic seconds that pass also while the machine is suspended, where the system counts them (Linux does)."""
    return time.clock_gettime(_CLOCK)


class Staleness:
    """At which of this node's own moments all that was committed anywhere is applied here by now.

    The node notes when it asks the leader what is committed (ReadIndex). Once it has applied the answer, its state is
    as new as that question: whatever was acknowledged before it is there. No other machine's clock is looked at.

    One question is under way at a time. :meth:`asked` and :meth:`answered` are for the loop thread, :meth:`age` for
    any. Invariant: of the answers not applied yet, a later one was asked later and has a higher index; at most
    ``KEPT`` of them are kept, since a node that applies slowly may be asked about its age for long.
    """

    def __init__(self, applied: Callable[[], int], clock: Callable[[], float] = moment) -> None:
        self._applied = applied
        self._clock = clock
        self._mutex = threading.Lock()
        self._question = -inf
        self._answers: deque[tuple[int, float]] = deque()
        self._as_of = -inf

    def asked(self) -> None:
        """The question is about to be sent."""
        self._question = self._clock()

    def answered(self, index: int) -> None:
        """The leader was confirmed as such after the question, and had committed up to ``index`` then."""
        with self._mutex:
            answers = self._answers
            while answers and answers[-1][0] >= index:
                answers.pop()
            if len(answers) == KEPT:
                answers.pop()
            answers.append((index, self._question))

    def age(self) -> float:
        """Seconds: this node lacks nothing that was committed longer ago. Infinite while that is not known."""
        with self._mutex:
            applied = self._applied()
            while self._answers and self._answers[0][0] <= applied:
                self._as_of = self._answers.popleft()[1]
            return self._clock() - self._as_of
