"""How far this node has applied, for those who wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Applied:
    """The newest log index that is applied on this node.

    The apply thread advances it; any thread may wait for an index.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._waiters = 0
        self._changed = threading.Condition()

    @property
    def index(self) -> int:
        """The newest applied log index."""
        return self._index

    def advance(self, index: int) -> None:
        """``index`` is applied."""
        with self._changed:
            self._index = max(self._index, index)
            if self._waiters:
                self._changed.notify_all()

    def jump(self, index: int) -> None:
        """The file holds the state after ``index`` now, whatever it was before."""
        with self._changed:
            self._index = index
            self._changed.notify_all()

    def wait(self, index: int, left: Callable[[], float]) -> bool:
        """Wait until ``index`` is applied; False when ``left`` says first that no seconds are left."""
        return self.wait_for(lambda: self._index >= index, left)

    def wait_for(self, reached: Callable[[], bool], left: Callable[[], float]) -> bool:
        """Wait until ``reached()``, which is asked after each entry, as :meth:`wait` does."""
        if reached():
            return True
        with self._changed:
            self._waiters += 1
            try:
                while (seconds := left()) > 0:
                    if self._changed.wait_for(reached, seconds):
                        return True
                return reached()
            finally:
                self._waiters -= 1
