"""How far away the peers are is asked, and the election timeout follows it."""

from __future__ import annotations

import pysyncobj.syncobj as library

from .config import RaftConfig
from .consensus import Consensus
from .outbox import Outbox
from .peers import Peers
from .reluctance import Reluctance
from .roundtrips import SINCE, RoundTrips


class Pings:
    """One member's pings; what follows from their answers is :class:`RoundTrips`'s matter."""

    def __init__(
        self,
        config: RaftConfig,
        raft: Consensus,
        peers: Peers,
        outbox: Outbox,
        *,
        round_trips: RoundTrips,
        reluctance: Reluctance,
    ) -> None:
        self._config = config
        self._raft = raft
        self._peers = peers
        self._outbox = outbox
        self._round_trips = round_trips
        self._reluctance = reluctance
        self.protocol = config.protocols[0]

    def tick(self, now: float) -> None:
        """Let time pass."""
        if self.protocol < SINCE:
            return
        for peer in self._peers.recognised:
            if self._round_trips.due(peer, now) and self._outbox.send(peer, {"type": "ping"}):
                self._round_trips.asked(peer, self._outbox.seq, now)

    def answered(self, peer: str, seq: int) -> None:
        """A pong has come, which answers question ``seq``."""
        self._round_trips.answered(peer, seq, library.monotonicTime())
        if not self._config.fixed_timeout:
            others = self._raft.log.members.voters - {self._config.address}
            timeout = self._round_trips.election_timeout(others, self._config.election_timeout)
            self._raft.least_timeout = self._reluctance.timeout = timeout
