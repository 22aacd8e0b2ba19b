"""The clock and the randomness of the statement being run: the entry's while replaying, else real ones."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Moment(threading.local):
    """What `'now'` and `random()` mean on this thread. ``clock`` and ``seed`` None: the real thing.

    Thread-local, because SQLite calls back on the thread that runs the statement, and readers, scratch and
    the apply connection run at the same time.
    """

    clock: int | None = None
    seed: int | None = None
    generator: random.Random | None = None


_moment = _Moment()
_system_random = random.SystemRandom()


def enter(clock_ms: int, seed: int) -> None:
    """Make this thread's statements see ``clock_ms`` (wall clock, ms since the epoch) and ``seed``."""
    _moment.clock = clock_ms
    _moment.seed = seed
    _moment.generator = None


def leave() -> None:
    """Back to real time and real randomness on this thread."""
    _moment.clock = None
    _moment.seed = None
    _moment.generator = None


@contextmanager
def replaying(clock_ms: int, seed: int) -> Iterator[None]:
    """:func:`enter` and :func:`leave` around a block."""
    enter(clock_ms, seed)
    try:
        yield
    finally:
        leave()


def now_ms() -> int:
    """The statement's wall clock, or the real one; milliseconds since the epoch."""
    clock = _moment.clock
    return time.time_ns() // 1_000_000 if clock is None else clock


def generator() -> random.Random:
    """The statement's random numbers, in the order it draws them; real randomness without a seed.

    Made at the first draw: seeding a Mersenne twister costs more than most statements.
    """
    if _moment.seed is None:
        return _system_random
    if _moment.generator is None:
        _moment.generator = random.Random(_moment.seed)
    return _moment.generator
