"""A member that leaves leading to others: when it stands for election all the same, when it gives way. Pure."""

from __future__ import annotations

from collections.abc import Iterable

HOLD_BACK = 4.0
"""How many election timeouts a reluctant member leaves to the others: a group of its like gets a leader, too."""
CLOSE = 256
"""How many entries an heir may lack when the leader begins to give way: what a moment without new ones brings it."""
REST = 10.0
"""Election timeouts between two attempts: each costs the group a moment in which it takes nothing."""


class Reluctance:
    """What a member remembers that is hosted by a short-lived process.

    ``timeout`` is the least election timeout, which may change; times are seconds, monotonic. ``willing`` are the
    peers known to be not reluctant; what is not known of a peer keeps it out. A member that is not ``reluctant``
    never holds back and never gives way.
    """

    def __init__(self, timeout: float, *, reluctant: bool) -> None:
        self.reluctant = reluctant
        self.willing: frozenset[str] = frozenset()
        self.timeout = timeout
        self._stands_at: float | None = None
        self._attempt: float | None = None

    def led(self) -> None:
        """A leader was heard of: the next silence is a new one."""
        self._stands_at = None

    def holds_back(self, now: float, drawn: float) -> bool:
        """Whether an election is still left to the others; ``drawn`` is a random election timeout.

        The time runs from the first call, which comes when the usual timeout has passed and a peer is in reach.
        """
        if not self.reluctant:
            return False
        if self._stands_at is None:
            self._stands_at = now + (HOLD_BACK - 1) * drawn
        return now < self._stands_at

    def giving_way(self, now: float) -> bool:
        """Whether the leader takes nothing new, so that an heir gets all it has."""
        return self._attempt is not None and now < self._attempt + self.timeout

    def heir(self, now: float, last_index: int, matches: Iterable[tuple[str, int]]) -> str | None:
        """The peer that is to take over now; for an established leader.

        ``matches`` tells how far the peers in reach have the log on their disks.
        """
        if not self.reluctant:
            return None
        close = sorted(
            (match, peer) for peer, match in matches if peer in self.willing and match >= last_index - CLOSE
        )
        if not close:
            self._attempt = None
            return None
        if self._attempt is None or now >= self._attempt + REST * self.timeout:
            self._attempt = now
        match, peer = close[-1]
        return peer if match == last_index and self.giving_way(now) else None

    def deposed(self) -> None:
        """This member does not lead."""
        self._attempt = None
