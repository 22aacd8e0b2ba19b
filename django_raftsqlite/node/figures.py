"""What a node counts and measures, for all of its processes, since the present one began to host it."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..exceptions import CommitOutcomeUnknown, LeaseTimeout, Unavailable
from ..sqlite.entry import Outcome, Status

SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
BYTES = (256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0)
ITEMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)

NOTES = ("rebases", "conflicts")
"""What the processes themselves count, and tell the one that hosts."""

ENDS = ("done", "error", "conflict", "locked", "unavailable", "unknown")
"""How a write ends; see :func:`end_of`."""


class Histogram:
    """How often a value was at most each of ``bounds``, and the sum of all values.

    One writer, or a lock around it; any thread may read. What is read may lack the value that is just being added.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def plain(self) -> dict[str, Any]:
        """``{"bounds": [...], "counts": [...], "sum": x}``; a count for each bound, and one for what is above all."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value that ``share`` (0 to 1) of those counted do not exceed, interpolated; None where none was counted."""
    wanted = share * sum(counts)
    if not wanted:
        return None
    below = 0.0
    for place, count in enumerate(counts):
        if count and below + count >= wanted:
            least = bounds[place - 1] if place else 0.0
            most = bounds[place] if place < len(bounds) else bounds[-1]
            return least + (most - least) * (wanted - below) / count
        below += count
    return bounds[-1]


class Figures:
    """The counters and histograms of a hosted node.

    Each has one writer, so that neither the loop nor the apply thread ever waits for it: ``fsync``, ``elections`` and
    ``leader_changes`` belong to the loop thread, ``apply``, ``batch`` and ``batch_bytes`` to the apply thread. What
    callers' threads count (:meth:`ended`, :meth:`waited`, :meth:`note`) has a lock that only they take.
    """

    def __init__(self) -> None:
        self.fsync = Histogram(SECONDS)
        self.elections = 0
        self.leader_changes = 0
        self.apply = Histogram(SECONDS)
        self.batch = Histogram(ITEMS)
        self.batch_bytes = Histogram(BYTES)
        self.commit = Histogram(SECONDS)
        self.lease_wait = Histogram(SECONDS)
        self.read_barrier = Histogram(SECONDS)
        self._writes = dict.fromkeys(ENDS, 0)
        self._notes: Counter[str] = Counter(dict.fromkeys(NOTES, 0))
        self._mutex = threading.Lock()

    def applied(self, seconds: float, transactions: int, size: int) -> None:
        """An entry with so many transactions, and bytes, was applied in so many seconds. Apply thread."""
        self.apply.observe(seconds)
        if transactions:
            self.batch.observe(transactions)
        self.batch_bytes.observe(size)

    def ended(self, how: str, seconds: float) -> None:
        """A write of this node ended, ``seconds`` after its host was given it."""
        with self._mutex:
            self._writes[how] += 1
            if how == "done":
                self.commit.observe(seconds)

    def waited(self, seconds: float) -> None:
        """A transaction waited for its turn under the write lease, and got it or gave up."""
        with self._mutex:
            self.lease_wait.observe(seconds)

    def confirmed(self, seconds: float) -> None:
        """A read barrier was reached."""
        with self._mutex:
            self.read_barrier.observe(seconds)

    def note(self, counts: Mapping[str, int]) -> None:
        """What a process of this node counted since it last told; what is not among NOTES is left out."""
        with self._mutex:
            self._notes.update({name: int(counts[name]) for name in NOTES if name in counts})

    def plain(self) -> dict[str, Any]:
        """All of it as plain types."""
        histograms = {
            "fsync": self.fsync,
            "apply": self.apply,
            "batch": self.batch,
            "batch_bytes": self.batch_bytes,
            "commit": self.commit,
            "lease_wait": self.lease_wait,
            "read_barrier": self.read_barrier,
        }
        return {
            "counters": {"elections": self.elections, "leader_changes": self.leader_changes, **self._notes},
            "writes": dict(self._writes),
            "histograms": {name: histogram.plain() for name, histogram in histograms.items()},
        }


def end_of(result: Outcome | BaseException) -> str | None:
    """Which of ENDS a write had; None where it goes on elsewhere, or never began."""
    if isinstance(result, Outcome):
        match result.status:
            case Status.DONE:
                return "done"
            case Status.ERROR:
                return "error"
            case Status.CONFLICT | Status.REPLAY_DIFFERS:
                return "conflict"
            case _:
                return None
    for kind, how in (
        (CommitOutcomeUnknown, "unknown"),
        (LeaseTimeout, "locked"),
        (Unavailable, "unavailable"),
    ):
        if isinstance(result, kind):
            return how
    return None
