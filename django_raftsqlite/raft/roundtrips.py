"""How far away the other members are, and the election timeout that follows from it. Pure bookkeeping."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

SINCE = 2
"""The version of the protocol that knows the question and its answer."""

MULTIPLE = 10.0
"""Round trips in an election timeout: "an order of magnitude" (Raft paper section 5.6)."""
LONGEST = 4.0
"""Seconds; beyond, a lost leader would cost more than an election too many."""

_SAMPLES = 8
_FIRST = 4
_SOON, _LATER, _GIVE_UP = 0.1, 1.0, 10.0


class RoundTrips:
    """What one member has measured on its sessions; times are seconds, monotonic.

    The round trip to a peer is the shortest of the latest eight: the network's, without what a busy process adds now
    and then. It is kept when the session ends, since that is when it is needed.
    """

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}
        self._asked: dict[str, tuple[int, float]] = {}
        self._unanswered: set[str] = set()

    def due(self, peer: str, now: float) -> bool:
        """Whether it is time to ask; for a peer with a session.

        One question at a time, unless a peer does not answer: it may not know of its membership yet.
        """
        if peer not in self._asked:
            return True
        if peer in self._unanswered:
            return now - self._asked[peer][1] >= _GIVE_UP
        pause = _SOON if len(self._samples.get(peer, ())) < _FIRST else _LATER
        return now - self._asked[peer][1] >= pause

    def asked(self, peer: str, seq: int, now: float) -> None:
        """Question ``seq`` was sent."""
        self._asked[peer] = seq, now
        self._unanswered.add(peer)

    def answered(self, peer: str, seq: int, now: float) -> None:
        """The answer to question ``seq`` is here."""
        if peer in self._unanswered and self._asked[peer][0] == seq:
            self._unanswered.discard(peer)
            samples = self._samples.setdefault(peer, deque(maxlen=_SAMPLES))
            samples.append(max(now - self._asked[peer][1], 0.0))

    def disconnected(self, peer: str) -> None:
        """The session is over: the next one is asked at once."""
        self._asked.pop(peer, None)
        self._unanswered.discard(peer)

    def to(self, peer: str) -> float | None:
        """The round trip to a peer, None while it is not known."""
        samples = self._samples.get(peer)
        return min(samples) if samples else None

    def to_majority(self, others: Collection[str]) -> float | None:
        """The round trip within which the nearest majority answers, of ``others`` and this member; None while as many
        are not known."""
        needed = (len(others) + 1) // 2
        known = sorted(trip for peer in others if (trip := self.to(peer)) is not None)
        return known[needed - 1] if 0 < needed <= len(known) else None

    def election_timeout(self, others: Collection[str], least: float) -> float:
        """The least time without a leader's word before an election: ``least``, or more where a majority is far."""
        trip = self.to_majority(others) or 0.0
        return max(least, min(MULTIPLE * trip, LONGEST))
