"""What happens to a node, told to the application: off the consensus threads, one event after the other."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

logger = logging.getLogger("django_raftsqlite.node")

WAITING = 1000
"""Events that may wait for an observer; beyond it, the newest are dropped, and the log says so."""


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """``node`` (an address, as all of them) has learnt of another leader, in ``term``; ``previous`` may be None."""

    node: str
    leader: str
    previous: str | None
    term: int


@dataclass(frozen=True, slots=True)
class NodeReady:
    """``node`` has applied all that was committed when its process began to host it, and serves."""

    node: str
    leader: str
    index: int


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """``change`` says what became of ``member`` at log index ``index``: "added", "promoted" (to a voter), "learner"
    (a voter no longer), "readmitted" (with another disk, as a newcomer), or "removed"."""

    node: str
    member: str
    change: str
    index: int


Observer = Callable[[object], object]


class Events:
    """Calls the observers with each event, in order, in a thread of its own, which begins with the first one.

    However slow an observer is, or whatever it raises, nobody else waits for it. Any thread may :meth:`tell`.
    """

    def __init__(self, observers: Sequence[Observer], *, name: str) -> None:
        self._observers = tuple(observers)
        self._name = name
        self._mutex = threading.Lock()
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def tell(self, event: object) -> None:
        """Have the observers told of it; never waits, never raises."""
        if not self._observers or self._closed:
            return
        if self._queue.qsize() >= WAITING:
            logger.warning("the observers of %s are too slow: they are not told of %r", self._name, event)
            return
        self._queue.put(event)
        if self._thread is None:
            with self._mutex:
                if self._thread is None and not self._closed:
                    thread = threading.Thread(target=self._run, name=f"raftsqlite-events {self._name}", daemon=True)
                    thread.start()
                    self._thread = thread

    def close(self, timeout: float) -> None:
        """Tell nothing more, and wait (seconds) for what is being told; idempotent."""
        with self._mutex:
            self._closed = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._queue.put(None)
            thread.join(timeout)

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            for observer in self._observers:
                began = time.monotonic()
                try:
                    observer(event)
                except Exception:
                    logger.exception("an observer of %s failed", self._name)
                if time.monotonic() - began > 10.0:
                    logger.warning("an observer of %s took %.0f s", self._name, time.monotonic() - began)
