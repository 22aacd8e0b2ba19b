"""A turn under the write lease, on a node that may not have applied up to it yet."""

from __future__ import annotations

import time
from collections.abc import Callable

from .progress import Applied
from .turns import Lost, Turn, Turns

MOMENT = 0.1
"""Seconds for which a node may keep a lease that it cannot use yet while others wait for it."""


class Behind(Exception):
    """The time was up before this node had applied what came before the turn."""


def take_turn(turns: Turns, turn: Turn, applied: Applied, left: Callable[[], float]) -> int | Lost | None:
    """Queue and wait for the turn, and for the log index from which on it is good to be applied here.

    While other nodes wait, the lease is not kept from them for longer than a moment: it is deferred. That moment is
    twice as long each time, so that a node that is slower than the others has its turn in the end. None when the
    turn did not come before ``left`` said that no seconds are left. Raises LeaseTimeout (NOWAIT) and Behind.
    """
    index, moment = 0, MOMENT
    turns.take(turn)
    while True:
        granted = turn.wait(left)
        if granted is None and applied.index < index:
            raise Behind
        if not isinstance(granted, int):
            return granted
        index = granted
        while not applied.wait(index, _at_most(moment, left)):
            if left() <= 0:
                raise Behind
            if turns.contested:
                turns.defer(turn)
                moment *= 2
                break
        else:
            if turns.begin(turn, index):
                return index


def _at_most(seconds: float, left: Callable[[], float]) -> Callable[[], float]:
    """What is left of ``seconds`` from now, and by ``left``."""
    end = time.monotonic() + seconds
    return lambda: min(left(), end - time.monotonic())
