"""How large this node's files are, and how much room is left for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LOOK_EVERY = 5.0


class Space:
    """Looked at every LOOK_EVERY seconds at most, since it is asked for on the loop's thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next = 0.0
        self._known: dict[str, int] = {}

    def plain(self) -> dict[str, int]:
        """``{"database": bytes, "wal": bytes, "free": bytes}``; what cannot be found out is missing."""
        now = self._clock()
        if now >= self._next:
            self._next = now + LOOK_EVERY
            self._known = self._look()
        return dict(self._known)

    def _look(self) -> dict[str, int]:
        known = {}
        with suppress(OSError):
            known["database"] = self._path.stat().st_size
            found = os.statvfs(self._path.parent)
            known["free"] = found.f_bavail * found.f_frsize
            known["wal"] = self._path.with_name(f"{self._path.name}-wal").stat().st_size
        return known
