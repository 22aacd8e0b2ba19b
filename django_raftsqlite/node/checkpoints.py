"""When the node empties its WAL, and what is said when it cannot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import apsw

from ..sqlite.connections import Snapshot
from ..sqlite.errors import ForeignWrite
from .lane import ScratchLane
from .snapshots import FAR_ABOVE, shown

logger = logging.getLogger("django_raftsqlite.node")

PATIENCE = 0.005
"""Seconds that a checkpoint waits at first for its readers, when entries wait for it; twice as long the next time."""
MOST_PATIENCE = 0.1
FAR_PATIENCE = 2.0  # from FAR_ABOVE times the limit on
IDLE_PATIENCE = 0.1  # when nobody waits

FIRST_PAUSE = 0.1
PAUSES = 20
"""The pause after a failure is this many times as long as it waited at most; twice the last one, if that is less."""
WARN_AFTER = 5.0
ASK_EVERY = 0.001


class WAL(Protocol):
    """The apply connection's checkpoints: see :class:`~django_raftsqlite.sqlite.machine.StateMachine`."""

    @property
    def wal_bytes(self) -> int: ...

    def write_back(self) -> tuple[int, int]: ...

    def empty_wal(self, keep_waiting: Callable[[], bool]) -> bool: ...


class Checkpoints:
    """Keeps the WAL below ``limit`` (bytes), as far as its readers let it. Belongs to the apply thread.

    Every commit of the apply connection checkpoints by itself, passively: that does nothing behind the oldest
    snapshot, and the WAL begins anew only at a moment when nobody reads it. Above the limit it is truncated here,
    for which writes wait while the readers of that moment end: for milliseconds, longer each time that it fails, and
    not at all while the same old reader is in the way.

    ``oldest`` gives the oldest snapshot of this process, ``busy`` says whether entries wait to be applied.
    """

    def __init__(
        self,
        wal: WAL,
        lane: ScratchLane,
        limit: int,
        *,
        name: str,
        oldest: Callable[[], Snapshot | None],
        busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wal = wal
        self._lane = lane
        self._limit = limit
        self._name = name
        self._oldest = oldest
        self._busy = busy
        self._clock = clock
        self._since: float | None = None
        self._forget()

    def _forget(self) -> None:
        self._pause = FIRST_PAUSE
        self._patience = PATIENCE
        self._next = 0.0
        self._held: tuple[int, int] | None = None
        self._warned = False

    def left(self) -> float | None:
        """Seconds until :meth:`tend` is to be called; None when the WAL is not above its limit."""
        return None if self._since is None else max(self._next - self._clock(), 0.0)

    def tend(self) -> None:
        """Empty the WAL if it is above its limit and it is time to try. Never raises for a fault of the disk."""
        try:
            size = self._wal.wal_bytes
        except OSError:  # the next entry will find out
            return
        now = self._clock()
        if size <= self._limit:
            if self._since is not None:
                self._below(size)
            return
        if self._since is None:
            self._since = now
            self._forget()
        if now < self._next:
            return
        problem = None
        try:
            if self._try(size):
                self._below(0)
                return
        except (apsw.Error, ForeignWrite) as error:  # the next entry will stop the node, if that is needed
            problem = str(error)
        self._failed(self._since, size, problem)

    def _below(self, size: int) -> None:
        if self._warned:
            logger.info("the WAL of %s is below its limit again (%s)", self._name, _mebibytes(size))
        self._since = None

    def _try(self, size: int) -> bool:
        frames, written = self._wal.write_back()
        held = None if written >= frames else (frames - written, written)
        stuck = held is not None and self._held is not None and held[1] == self._held[1]
        self._held = held
        if stuck:  # the same reader as at the last time: to wait for it would only keep writes waiting
            return False
        patience = self._patience
        most = FAR_PATIENCE if size > FAR_ABOVE * self._limit else MOST_PATIENCE
        self._patience = min(2 * patience, most)
        with self._lane.apply():
            began = self._clock()

            def keep_waiting() -> bool:
                time.sleep(ASK_EVERY)
                waited = self._clock() - began
                return waited < (patience if self._busy() else max(patience, IDLE_PATIENCE))

            return self._wal.empty_wal(keep_waiting)

    def _failed(self, since: float, size: int, problem: str | None) -> None:
        now = self._clock()
        self._next = now + self._pause
        self._pause = min(2 * self._pause, max(PAUSES * self._patience, FIRST_PAUSE))
        if self._warned or (problem is None and now - since < WARN_AFTER):
            return
        self._warned = True
        logger.warning(
            'the WAL of %s has grown to %s, above its limit of %s (OPTIONS["wal_limit"]): %s',
            self._name,
            _mebibytes(size),
            _mebibytes(self._limit),
            problem or self._keeper(),
        )

    def _keeper(self) -> str:
        oldest = self._oldest()
        if oldest is not None and (age := self._clock() - oldest.since) >= WARN_AFTER:
            return f"this process reads a state that is {age:.0f} s old: {shown(oldest.reader)}"
        return (
            "another process that reads the file (attached to this node, or any tool) keeps an old state of it, or "
            "readers overlap all the time"
        )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
