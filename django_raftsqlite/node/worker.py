"""A thread of the node for what would keep its loop waiting for the disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger("django_raftsqlite.node")

T = TypeVar("T")


class Worker:
    """Runs jobs one after the other, and hands their results to the loop through ``call``.

    A job that takes long asks ``stopping`` now and then, and raises :class:`Stopped` when it is true.
    """

    def __init__(self, name: str, call: Callable[..., object]) -> None:
        self._call = call
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.stopping = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run(self, job: Callable[[], T], done: Callable[[T | Exception], object]) -> None:
        """Have ``job()`` run, and then ``done`` on the loop, with what it returned or raised. Any thread."""

        def both() -> None:
            result: T | Exception
            try:
                result = job()
            except Exception as error:
                result = error
            self._call(done, result)

        self._jobs.put(both)

    def close(self, timeout: float | None = None) -> None:
        """End the thread: the present job is waited for (``timeout`` seconds), those that wait are dropped."""
        self.stopping = True
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self.stopping:
                job()


class Stopped(Exception):
    """The node is being stopped, and with it a job that takes long."""
