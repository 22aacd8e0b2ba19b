"""What a leader has under way to one follower."""

from __future__ import annotations

from collections import deque

BATCH_BYTES = 1024 * 1024
"""What one append_entries carries at most, so that a heartbeat never queues behind much."""
BATCH_ENTRIES = 4096
WINDOW_BYTES = 4 * BATCH_BYTES
"""What is under way to one peer and not acknowledged at most."""


class Progress:
    """The window of one peer; leader only.

    ``in_flight`` has last index and size of each batch that is not acknowledged. ``probing``: it is not known where
    the peer's log ends, so one batch at a time is risked. ``behind``: it said that it lacks entries which this log no
    longer holds.
    """

    __slots__ = ("behind", "in_flight", "in_flight_bytes", "probing")

    def __init__(self) -> None:
        self.behind = False
        self.restart()

    def restart(self) -> None:
        """Nothing is known to be under way, nor where the peer's log ends."""
        self.in_flight: deque[tuple[int, int]] = deque()
        self.in_flight_bytes = 0
        self.probing = True

    def sent(self, last: int, size: int) -> None:
        """A batch that ends with entry ``last`` left."""
        self.in_flight.append((last, size))
        self.in_flight_bytes += size

    def acknowledged(self, index: int) -> None:
        """Entries up to ``index`` are on the peer's disk."""
        self.probing = False
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]

    @property
    def open(self) -> bool:
        """Another batch may leave."""
        if self.probing:
            return not self.in_flight
        return self.in_flight_bytes < WINDOW_BYTES
