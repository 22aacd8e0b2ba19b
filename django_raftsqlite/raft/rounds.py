"""The questions by which a leader finds out that it still leads, for who reads (ReadIndex)."""

from __future__ import annotations

import pysyncobj.syncobj as library

from .consensus import Consensus
from .outbox import Outbox
from .peers import Peers
from .reads import Done, ReadIndex


class ReadRounds:
    """One member's rounds of probes; what they prove is :class:`ReadIndex`'s matter.

    An answer to any question that was asked since a round began counts for it, so that the acknowledgements of
    entries confirm reads, too.
    """

    def __init__(self, reads: ReadIndex, raft: Consensus, peers: Peers, outbox: Outbox, *, heartbeat: float) -> None:
        self._reads = reads
        self._raft = raft
        self._peers = peers
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._asked = 0.0

    def add(self, done: Done) -> None:
        """A read arrives at a member that leads."""
        self._reads.add(done)
        self.begin()

    def begin(self) -> None:
        """Begin a round if reads wait for one, and an entry of the leader's own term is committed."""
        while self._reads.waiting and not self._reads.in_flight and self._raft.established:
            first_seq = self._outbox.seq + 1
            self._ask(sorted(self._peers.recognised))
            self._reads.begin(first_seq, self._raft.commit_index)

    def ask_again(self, now: float) -> None:
        """A question may be lost with its session; the round goes on with new ones."""
        if self._reads.in_flight and now - self._asked >= self._heartbeat:
            self._ask([peer for peer in sorted(self._peers.recognised) if self._reads.unconfirmed(peer)])

    def _ask(self, peers: list[str]) -> None:
        self._asked = library.monotonicTime()
        for peer in peers:
            self._outbox.send(peer, {"type": "probe", "term": self._raft.term})
