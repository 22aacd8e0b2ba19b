"""The last minutes of a node, as points of a curve."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .figures import Histogram, quantile

EVERY = 2.0
"""Seconds from point to point."""
POINTS = 300


class Recent:
    """The latest POINTS points, each of EVERY seconds. :meth:`tick` belongs to the loop thread, :meth:`plain` to any.

    ``version`` gives the newest version of the database, which grows by one with each transaction that the group
    commits; ``commit`` is the histogram of this node's own.
    """

    def __init__(
        self, commit: Histogram, version: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._commit = commit
        self._version = version
        self._clock = clock
        self._points: tuple[dict[str, Any], ...] = ()  # never changed, but replaced: any thread may look at it
        self._began = clock()
        self._seen: tuple[int, list[int]] | None = None

    def tick(self) -> None:
        """Time passes; to be called often."""
        now, seen = self._clock(), self._seen
        passed = now - self._began
        if seen is not None and passed < EVERY:
            return
        version, counts = self._version(), list(self._commit.counts)
        self._began, self._seen = now, (version, counts)
        if seen is None:  # what was before it began is not part of a point
            return
        before, counted = seen
        fresh = [new - old for new, old in zip(counts, counted, strict=True)]
        point = {
            "at": round(now, 3),
            "seconds": round(passed, 3),
            # A restored database may have another number.
            "writes": max(version - before, 0),
            "commits": sum(fresh),
            "p50": quantile(self._commit.bounds, fresh, 0.5),
            "p99": quantile(self._commit.bounds, fresh, 0.99),
        }
        self._points = (*self._points[1 - POINTS :], point)

    def plain(self) -> list[dict[str, Any]]:
        """The points, oldest first: ``ago`` (seconds since its end), ``seconds`` (its length), ``writes`` (committed
        by the group), ``commits`` (by this node), and their ``p50`` and ``p99`` (seconds, or None)."""
        now = self._clock()
        return [
            {"ago": round(now - point["at"], 1), **{key: point[key] for key in point if key != "at"}}
            for point in self._points
        ]
