"""How far the clocks of the other members are off."""

from __future__ import annotations

import time
from collections.abc import Callable

from .messages import Message

WEIGHT = 0.2
"""Of the latest measurement in what is told."""
FORGOTTEN = 10.0
"""Seconds after which what a member said last is not answered any more."""


class Clocks:
    """Measured by what the members tell each other twice a second anyway, as NTP does (RFC 5905, section 8).

    Each message carries its sender's clock, and the one that was received last from the other side, with how long
    that has waited here. Nothing depends on it but what is shown and warned about. Owned by the loop thread.

    ``offsets`` has by member how many seconds its clock is ahead of this node's. ``round_trips`` is only what that is
    reckoned with: it has in it how busy both nodes are.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._wall = wall or _wall
        self._heard: dict[str, tuple[float, float]] = {}  # what it said last, and when that came
        self.round_trips: dict[str, float] = {}
        self.offsets: dict[str, float] = {}

    def stamp(self, peer: str) -> Message:
        """What a message to ``peer`` carries."""
        now = self._clock()
        stamp: Message = {"ping": now, "time": self._wall()}
        heard = self._heard.get(peer)
        if heard is not None and now - heard[1] < FORGOTTEN:
            stamp["pong"] = [heard[0], now - heard[1]]
        return stamp

    def receive(self, peer: str, message: Message) -> None:
        """A message of ``peer``; one without a stamp says nothing. Raises TypeError or ValueError for a bad stamp."""
        now = self._clock()
        if "ping" not in message:
            return
        self._heard[peer] = float(message["ping"]), now
        if "pong" not in message:
            return
        sent, held = message["pong"]
        trip = max(now - float(sent) - float(held), 0.0)
        offset = float(message["time"]) + trip / 2 - self._wall()
        before = self.round_trips.get(peer)
        share = 1.0 if before is None else WEIGHT
        self.round_trips[peer] = trip * share + (before or 0.0) * (1.0 - share)
        self.offsets[peer] = offset * share + self.offsets.get(peer, 0.0) * (1.0 - share)

    def forget(self, peer: str) -> None:
        """Its session has ended: what it said before says nothing about the next one."""
        for known in (self._heard, self.round_trips, self.offsets):
            known.pop(peer, None)


def _wall() -> float:
    return time.time()
