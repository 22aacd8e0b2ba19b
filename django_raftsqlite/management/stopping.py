"""How a signal asks a process to stop."""

from __future__ import annotations

import queue
import signal
from contextlib import suppress
from types import FrameType


class StopSignals:
    """Notes that one of these signals came. For the main thread, whose signal handlers they become.

    Not an Event: its ``set()`` in a handler waits for ever for the lock that the interrupted ``wait()`` of the same
    thread may hold. A SimpleQueue's ``put()`` may interrupt its ``get()`` (https://docs.python.org/3/library/queue.html).
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopped = False
        for number in numbers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._came.put(number)

    def within(self, seconds: float) -> bool:
        """Whether one has come, or comes within ``seconds``."""
        if not self._stopped:
            with suppress(queue.Empty):
                self._came.get(timeout=seconds)
                self._stopped = True
        return self._stopped
