"""A member's place in the group, as others are told of it."""

from __future__ import annotations

from .admission import Admission
from .config import RaftConfig, RaftView
from .consensus import Consensus
from .elections import Elections
from .members import Members
from .peers import Peers
from .prevote import PreVote
from .roundtrips import RoundTrips

Place = tuple[str, int, str | None, frozenset[str], bool, Members, bool, str | None]
"""Role, term, leader, connected peers, established, members, waiting to be admitted, problem."""


class Standing:
    """Looks at a member's parts and changes nothing."""

    def __init__(
        self,
        config: RaftConfig,
        raft: Consensus,
        peers: Peers,
        *,
        admission: Admission,
        elections: Elections,
        prevote: PreVote,
        round_trips: RoundTrips,
    ) -> None:
        self._address = config.address
        self._raft = raft
        self._peers = peers
        self._admission = admission
        self._elections = elections
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
            self._admission.waiting,
            self._problem(),
        )

    def _problem(self) -> str | None:
        """What keeps this node from being a member, or its group from its first leader."""
        if self._admission.waiting:
            return self._admission.problem or self._admission.search
        if missing := self._elections.missing_founders():
            return f"the group begins when all its founders are there at once, and lacks {', '.join(sorted(missing))}"
        return self._admission.problem

    @property
    def view(self) -> RaftView:
        """All of it."""
        raft = self._raft
        log = raft.log
        role, term, leader, connected, established, members, waiting, problem = self.place
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
            waiting=waiting,
            problem=problem,
            election_timeout=raft.least_timeout,
            round_trips={peer: trip for peer in others if (trip := self._round_trips.to(peer)) is not None},
        )
