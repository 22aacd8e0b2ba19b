"""Whether this node's file is relied on: how it comes to be suspect, who is told, and how it is healed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .api import NodeConfig
from .suspicion import Difference, Mark

logger = logging.getLogger("django_raftsqlite.node")

OBSERVER_TIMEOUT = 2.0
RESYNCS = 3
"""How often a node replaces its content within RESYNCS_WITHIN seconds: more would not help."""
RESYNCS_WITHIN = 3600.0


class Trust:
    """``suspect`` is why the file is not to be relied on, None while it is; ``least`` is the least log index of what
    may replace it: nobody who has read it may read an older state afterwards.

    A node becomes suspect once, whoever finds out, on any thread: ``stop_applying`` is called; it is written down
    (:class:`~.suspicion.Mark`), so that no process of the node reads on; ``announce(reason)``, which must not
    wait, and the observers, in a thread of their own, are told. ``failed(reason)`` is called where that is not
    possible: nobody to be healed by (``alone()``), or no word on the disk. Only :meth:`restored` ends it.
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        alone: Callable[[], bool],
        stop_applying: Callable[[], object],
        announce: Callable[[str], object],
        failed: Callable[[str], object],
    ) -> None:
        self._config = config
        self._alone = alone
        self._stop_applying = stop_applying
        self._announce = announce
        self._failed = failed
        self._mark = Mark(config.folder)
        self._mutex = threading.Lock()
        self._observing: list[threading.Thread] = []
        self._resynced: list[float] = []
        self.suspect: str | None = None
        self.least = self._mark.applied if self._mark.reason is not None else 0

    @property
    def noted(self) -> str | None:
        """Why the node was suspect when it was stopped, if it was."""
        return self._mark.reason

    def distrust(self, reason: str, index: int | None = None, *, applied: int = 0) -> None:
        """The file is not what the group decided, or may not be; ``index``: since that log entry. Any thread.

        ``applied`` is up to where this process has applied; 0 where only the file says so.
        """
        config = self._config
        if self._alone():
            self._failed(reason)
            return
        with self._mutex:
            if self.suspect is not None:
                return
            self.suspect = reason
            self.least = max(self.least, applied)
        self._stop_applying()
        try:
            self._mark.set(reason, self.least)
        except OSError as error:
            self._failed(f"that this node is suspect ({reason}) could not be written down: {error}")
            return
        logger.error("node %s is suspect, and serves neither reads nor writes: %s", config.address, reason)
        self._announce(reason)
        self._observe(Difference(config.address, config.address, reason, suspect=True, index=index))

    def undecided(self, member: str, reason: str, index: int) -> None:
        """This node or ``member`` is in the wrong, and nobody can tell which."""
        logger.error("node %s: %s", self._config.address, reason)
        self._observe(Difference(self._config.address, member, reason, suspect=False, index=index))

    def wants_copy(self) -> bool:
        """Whether the node is to be healed by a sound member's content. Loop thread."""
        if self.suspect is None or self._config.on_divergence == "stop":
            return False
        recent = [moment for moment in self._resynced if time.monotonic() - moment < RESYNCS_WITHIN]
        return len(recent) < RESYNCS

    def restored(self) -> None:
        """The file is a sound member's now, put in the place of the other. Loop thread."""
        self._resynced.append(time.monotonic())
        self._mark.set(None)
        with self._mutex:
            reason, self.suspect, self.least = self.suspect, None, 0
        logger.warning(
            "node %s has the content of a sound member, and serves again; it was suspect: %s",
            self._config.address,
            reason,
        )

    def close(self) -> None:
        """Wait (2 s at most) for the observers that are still at it."""
        for thread in self._observing:
            thread.join(OBSERVER_TIMEOUT)

    def _observe(self, difference: Difference) -> None:
        """Tell the application, in a thread of its own: what it does must not keep consensus waiting."""

        def run() -> None:
            for observer in self._config.observers:
                try:
                    observer(difference)
                except Exception:
                    logger.exception("an observer of divergence failed")

        if self._config.observers:
            thread = threading.Thread(target=run, name="raftsqlite-divergence", daemon=True)
            self._observing = [each for each in self._observing if each.is_alive()]
            self._observing.append(thread)
            thread.start()
