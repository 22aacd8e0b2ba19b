"""Whether this node's file is not to be relied on: written down beside it, for its processes and for its next
start.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..exceptions import Unavailable
from ..sqlite.wal import sync_folder
from . import notes

NAME = "suspect.json"


@dataclass(frozen=True, slots=True)
class Difference:
    """An event (see :mod:`.events`): a node whose content is not, or may not be, what the log led to.

    ``member`` is the address of the one that differs, and ``node`` of the one that says so; ``suspect``: it stops
    serving and leading. Else nobody can tell which of two is wrong, and both go on. ``index`` is the log index at
    which the difference was found, if it was by comparison.
    """

    node: str
    member: str
    reason: str
    suspect: bool
    index: int | None = None


class Mark:
    """The node's word on its file, in its folder; its host writes it, every process of the node looks at it.

    ``permit`` is cheap enough to be asked at every read: it looks at the file every ``look_every`` seconds at most,
    and after :meth:`look_again`. Thread-safe.
    """

    def __init__(self, folder: Path, *, look_every: float = 0.005) -> None:
        self._look_every = look_every
        self._next = 0.0
        self._path = folder / NAME
        self._text = str(self._path)
        self._seen: tuple[int, int, int] | None = None
        self.reason: str | None = None
        self.generation = 0
        self.applied = 0
        self._look()

    def permit(self) -> int:
        """Which of the files is meant that a resync put at one path. Raises Unavailable while it must not be read."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._look_every
            self._look_if_changed()
        if self.reason is not None:
            raise unavailable(self.reason)
        return self.generation

    def look_again(self) -> None:
        """The next ``permit`` looks at the file: what happened until now must be seen."""
        self._next = 0.0

    def set(self, reason: str | None, applied: int = 0) -> None:
        """Write it down, on the disk; None when a sound file is in the place of the suspect one. Raises OSError.

        ``applied`` is the log index up to which somebody may have read the suspect file.
        """
        generation = self.generation + (reason is None)
        told = {"reason": reason, "generation": generation, "applied": applied, "time": time.time()}
        notes.put(self._path, json.dumps(told), durable=True)
        sync_folder(self._path.parent)
        self._look()

    def _look_if_changed(self) -> None:
        try:
            status = os.stat(self._text)  # noqa: PTH116 - quicker
        except FileNotFoundError:
            if self._seen is not None:
                self._look()
        else:
            if self._seen != (status.st_ino, status.st_mtime_ns, status.st_size):
                self._look()

    def _look(self) -> None:
        try:
            with self._path.open() as file:
                status = os.fstat(file.fileno())
                told = json.load(file)
        except FileNotFoundError:
            self._seen, self.reason = None, None
            return
        self.generation, self.reason = int(told["generation"]), told["reason"]
        self.applied = int(told.get("applied", 0))
        self._seen = status.st_ino, status.st_mtime_ns, status.st_size


def unavailable(reason: str) -> Unavailable:
    """What whoever uses a suspect node is told."""
    return Unavailable(
        f"this node is suspect, so it serves neither reads nor writes until it has the content of a sound member: "
        f"{reason}",
        "suspect",
    )
