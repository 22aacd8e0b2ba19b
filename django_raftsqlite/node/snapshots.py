"""A thread of each process that finds out who reads an old state of the file while the WAL is above its limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..sqlite.readers import ReaderPool

logger = logging.getLogger("django_raftsqlite.node")

CHECK_EVERY = 5.0
OLD = 60.0
"""Seconds after which a SELECT half read in autocommit is read to its end at its next fetch; after twice as many
without one, it is ended."""

FAR_ABOVE = 4
"""From this multiple of its limit on, the WAL is kept from growing at a price: writes wait longer for readers,
and the snapshots of transactions are ended, too."""


class SnapshotWatch:
    """While the -wal file is above ``limit`` (bytes): frees the snapshots of this process's old SELECTs.

    Only those of autocommit; a transaction that only reads is named in the log, once, and ended when the file is
    FAR_ABOVE times as large. The thread never waits for
    one of the application's: what is at work is left alone until the next time. ``also`` is called each time, for
    what else a process does now and then. Times are seconds.
    """

    def __init__(
        self,
        pool: ReaderPool,
        path: Path,
        limit: int,
        *,
        old: float = OLD,
        every: float = CHECK_EVERY,
        also: Callable[[], object] = lambda: None,
    ) -> None:
        self._pool = pool
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._limit = limit
        self._old = old
        self._every = every
        self._also = also
        self._told: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"raftsqlite-snapshots {path.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """What the thread does each time."""
        try:
            size = self._wal.stat().st_size
        except OSError:
            return
        if size <= self._limit:
            return
        now = time.monotonic()
        for ended in self._pool.free_snapshots(
            drain_before=now - self._old, end_before=now - 2 * self._old, far_above=size > FAR_ABOVE * self._limit
        ):
            logger.warning(
                "ended what was read since %.0f s and kept the WAL of %s from being reset: %s",
                now - ended.since,
                self._path,
                shown(ended.reader),
            )
        oldest = self._pool.oldest_snapshot()
        if oldest is not None and now - oldest.since > self._old and oldest.since != self._told:
            self._told = oldest.since
            logger.warning(
                "this process reads a state of %s that is %.0f s old, which keeps the WAL from being reset: %s",
                self._path,
                now - oldest.since,
                shown(oldest.reader),
            )

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._also()
                self.check()
            except Exception:
                logger.exception("old readers of %s cannot be found out", self._path)


def shown(sql: str) -> str:
    """The beginning of a statement's text, on one line."""
    return " ".join(sql[:800].split())[:200]
