"""When the Raft log is cut, and where."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ..raft.config import RaftView
from .worker import Stopped

LOOK_EVERY = 1.0
SLACK = 1.25
"""The log is cut when it has grown this many times beyond its limits, so that it is not cut for every entry;"""
CUT_EVERY = 600.0
"""and after so many seconds also when it is only a little beyond them."""
FAR = 4
"""Beyond this many times its bytes, the log is cut for members that lag, too: they get a snapshot."""


class LogPort(Protocol):
    """The Raft log, as :class:`~django_raftsqlite.raft.driver.RaftDriver` offers it. Loop thread."""

    @property
    def log_bytes(self) -> int: ...

    def index_beyond(self, size: int) -> int: ...

    def compact(self, index: int) -> None: ...

    @property
    def must_cut(self) -> bool:
        """The log is to be cut whatever its size."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What follows ``index`` is needed, so that ``worth`` bytes need not be sent (again)."""

    index: int
    worth: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """What came of a wish: the file is on the disk up to the log index ``synced``, and the log is to begin at
    ``first_index``, which is before that where others will ask for what lies between."""

    synced: int
    first_index: int

    def __str__(self) -> str:
        kept = "" if self.first_index == self.synced else "; what follows is kept for others that have yet to get it"
        return (
            f"the database is on the disk up to log index {self.synced}, and stands for the entries of the log up to "
            f"{self.first_index}{kept}"
        )


CutWish = Callable[[Cut | Exception], object]
"""Somebody's for the log to be cut now; it is called with what came of it."""


class Compaction:
    """Keeps the log at about ``entries`` entries and ``size`` bytes, which are there for members that lag a little.

    The database file is the snapshot that stands for what is cut (Raft paper section 7), so nothing is copied:
    ``on_disk()`` fsyncs its WAL on a thread of its own and tells up to which index the file is on the disk, whatever
    happens to the machine. ``held`` gives what members that lag need: it is not cut before the log is far larger than
    its limit, by as much as that is worth to them.

    ``synced`` is the newest index that it told, None before it did.

    Loop thread; ``run`` has a job done elsewhere, and its result handed to the loop.
    """

    def __init__(
        self,
        log: LogPort,
        *,
        entries: int,
        size: int,
        run: Callable[[Callable[[], int], Callable[[int | Exception], object]], object],
        on_disk: Callable[[], int],
        held: Callable[[], Iterable[Hold]],
        failed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._entries = entries
        self._size = size
        self._run = run
        self._on_disk = on_disk
        self._held = held
        self._failed = failed
        self._clock = clock
        self._next = self._cut = clock()
        self._busy = False
        self._wishes: list[CutWish] = []
        self.synced: int | None = None

    @property
    def synced_ago(self) -> float | None:
        """Seconds since ``synced`` was told."""
        return None if self.synced is None else self._clock() - self._cut

    def cut(self, wish: CutWish) -> None:
        """Cut all of the log that nobody in reach will ask for, whatever its size, at the next :meth:`tick` that
        finds nothing under way; ``wish`` is told, unless the node fails first."""
        self._wishes.append(wish)

    def tick(self, view: RaftView) -> None:
        """Look whether it is time to cut; to be called often."""
        now = self._clock()
        if self._busy or view.role == "failed":
            return
        if self._wishes:
            wishes, self._wishes = self._wishes, []
            self._busy = True
            self._run(self._on_disk, lambda result: self._grant(wishes, view.first_index, result))
            return
        if now < self._next:
            return
        self._next = now + LOOK_EVERY
        slack = SLACK if now - self._cut < CUT_EVERY else 1.0
        count, size = view.last_index - view.first_index, self._log.log_bytes
        if self._log.must_cut and view.commit_index > view.first_index:
            self._busy = True
            self._run(self._on_disk, lambda result: self._synced(view.commit_index, result))
            return
        if count <= slack * self._entries and size <= slack * self._size:
            return
        index = view.last_index - self._entries
        if size > self._size:
            index = max(index, self._log.index_beyond(size - self._size))
        for hold in self._held():
            if hold.index >= view.first_index and size <= FAR * self._size + hold.worth:
                index = min(index, hold.index)
        if index <= view.first_index:
            return
        self._busy = True
        self._run(self._on_disk, lambda result: self._synced(index, result))

    def _grant(self, wishes: list[CutWish], first_index: int, result: int | Exception) -> None:
        told: Cut | Exception
        if isinstance(result, Exception):
            told = result
            self._synced(0, result)
        else:
            # Who lags is looked for when the file is on the disk: that may have taken long.
            held = [hold.index for hold in self._held() if hold.index >= first_index]
            told = Cut(result, max(first_index, min([result, *held])))
            self._synced(told.first_index, result)
        for wish in wishes:
            wish(told)

    def _synced(self, index: int, result: int | Exception) -> None:
        self._busy = False
        if isinstance(result, Stopped):
            return
        if isinstance(result, Exception):
            # The system has told what it will never tell again: which writes were lost is not known.
            self._failed(f"the WAL of the database could not be written to the disk: {result}")
            return
        self._cut, self.synced = self._clock(), result
        self._log.compact(min(index, result))
