"""How a leader has another voter take over (Raft thesis section 3.10)."""

from __future__ import annotations

import pysyncobj.syncobj as library

from .consensus import Consensus
from .peers import Peers
from .reluctance import Reluctance


class Handover:
    """The transfers of one member's leadership: those that are asked for, and those that its reluctance wants.

    Only who has the whole log is asked, so it may take several attempts while entries come in; ``giving_way`` keeps
    new ones away. Whether somebody took over shows in the view.
    """

    def __init__(self, raft: Consensus, peers: Peers, reluctance: Reluctance) -> None:
        self._raft = raft
        self._peers = peers
        self._reluctance = reluctance
        self._wish: tuple[str | None, int, float] | None = None

    def begin(self, to: str | None) -> None:
        """Leader only: hand over to a voter, or to the most suitable one, within an election timeout.

        Nothing new should be proposed meanwhile (:attr:`giving_way`), so that it gets all there is.
        """
        self._wish = (to, self._raft.term, library.monotonicTime() + self._raft.least_timeout)
        self._go_on()

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._give_way(now)
        self._go_on()

    def _go_on(self) -> None:
        if self._wish is None:
            return
        to, term, deadline = self._wish
        if not self._raft.is_leader or self._raft.term != term or library.monotonicTime() > deadline:
            self._wish = None
        elif to is None:
            self.to_whoever_is_ready()
        elif to in self._peers.recognised:
            self._raft.transfer(to)

    def to_whoever_is_ready(self) -> bool:
        """Ask a connected voter that has the whole log to take over, a willing one if possible. False: there is none.

        True says that it was asked.
        """
        if not self._raft.is_leader:
            return False
        willing, last_index = self._reluctance.willing, self._raft.last_index
        ready = [peer for peer, match in self._matches() if peer in willing and match == last_index]
        return self._raft.transfer(min(ready, default=None))

    def prefer(self, willing: frozenset[str]) -> None:
        """Which peers are known to be not reluctant: leadership goes to one of them, if possible."""
        self._reluctance.willing = willing

    @property
    def giving_way(self) -> bool:
        """The leader is about to hand over: for a moment nothing new should be proposed."""
        if not self._raft.is_leader:
            return False
        return self._wish is not None or self._reluctance.giving_way(library.monotonicTime())

    def _give_way(self, now: float) -> None:
        """A reluctant leader hands over to who is willing."""
        if not self._raft.established:
            self._reluctance.deposed()
            return
        heir = self._reluctance.heir(now, self._raft.last_index, self._matches())
        if heir is not None:
            self._raft.transfer(heir)

    def _matches(self) -> list[tuple[str, int]]:
        voters = self._raft.log.members.voters
        return [(peer, self._raft.match(peer)) for peer in sorted(self._peers.recognised) if peer in voters]
