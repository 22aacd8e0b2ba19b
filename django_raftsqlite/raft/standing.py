"""A member's place in the group, as others are told of it."""

from __future__ import annotations

from .admission import Admission
from .config import RaftConfig, RaftView
from .consensus import Consensus
from .members import Members
from .peers import Peers
from .prevote import PreVote
from .roundtrips import RoundTrips

Place = tuple[str, int, str | None, frozenset[str], bool, Members]
"""Role, term, leader, connected peers, established, members."""


class Standing:
    """Looks at a member's parts and changes nothing."""

    def __init__(
        self,
        config: RaftConfig,
        raft: Consensus,
        peers: Peers,
        *,
        admission: Admission,
        prevote: PreVote,
        round_trips: RoundTrips,
    ) -> None:
        self._address = config.address
        self._raft = raft
        self._peers = peers
        self._admission = admission
        self._prevote = prevote
        self._round_trips = round_trips

    @property
    def place(self) -> Place:
        """What of the view others are told of when it changes; cheap, since it is looked at after every event."""
        raft = self._raft
        log = raft.log
        fault = log.fault
        if fault:
            role = "failed"
        elif raft.is_leader:
            role = "leader"
        else:
            role = "candidate" if raft.is_candidate or self._prevote.term is not None else "follower"
        leader = raft.leader
        connected = self._peers.recognised
        if leader is not None and leader not in connected and leader in self._peers.sessions:
            connected |= {leader}  # This log may not know it as a member yet.
        return (
            role,
            raft.term,
            None if fault else leader,
            connected,
            fault is None and raft.established,
            log.members,
        )

    @property
    def view(self) -> RaftView:
        """All of it."""
        raft = self._raft
        log = raft.log
        role, term, leader, connected, established, members = self.place
        others = [member.address for member in members if member.address != self._address]
        return RaftView(
            role=role,
            term=term,
            leader=leader,
            commit_index=raft.commit_index,
            last_index=log.last_index,
            connected=connected,
            match={peer: raft.match(peer) for peer in others} if raft.is_leader else {},
            established=established,
            reason=log.fault or raft.apply_fault,
            first_index=log.first_index,
            behind=frozenset(peer for peer in others if raft.behind(peer)),
            members=members,
            waiting=self._admission.waiting,
            problem=self._admission.problem,
            election_timeout=raft.least_timeout,
            round_trips={peer: trip for peer in others if (trip := self._round_trips.to(peer)) is not None},
        )
