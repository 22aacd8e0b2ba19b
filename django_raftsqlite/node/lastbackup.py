"""When the group's content was last backed up.

Who takes a backup leaves a note in the node's folder; a node tells the others what its own says, so that all know of
the newest. It is for people, and nothing relies on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

NAME = "last-backup.json"
"""A backup's manifest, and its place."""
LOOK_EVERY = 5.0


def read(folder: Path) -> dict[str, Any] | None:
    """What is noted: ``{"time": Unix time, "index": log index, "place": where to, "file": name}``, or None."""
    try:
        told = json.loads((folder / NAME).read_text())
        return {
            "time": datetime.fromisoformat(told["time"]).timestamp(),
            "index": int(told["index"]),
            "place": str(told["place"]),
            "file": str(told["file"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


class LastBackup:
    """Looks at the note every LOOK_EVERY seconds at most, since it is asked for on the loop's thread."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._next = 0.0
        self._known: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any] | None:
        """What this node's own note says; see :func:`read`."""
        now = self._clock()
        if now >= self._next:
            self._next = now + LOOK_EVERY
            self._known = read(self._folder)
        return self._known


def newest(known: Iterable[Any]) -> dict[str, Any] | None:
    """The newest of what the members say."""
    told = [each for each in known if isinstance(each, dict)]
    return max(told, key=lambda each: float(each["time"]), default=None)
