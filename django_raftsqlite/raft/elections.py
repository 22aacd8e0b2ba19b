"""When a member stands for election, and when it helps another one to be elected."""

from __future__ import annotations

import pysyncobj.syncobj as library

from .admission import Admission
from .config import RaftConfig
from .consensus import Consensus
from .filter import Message
from .outbox import Outbox
from .peers import Peers
from .prevote import PreVote
from .reluctance import Reluctance


class Elections:
    """What keeps a leader that works in office, and lets an election begin that can be won.

    pysyncobj draws the deadlines and counts the votes; an election begins when its deadline has passed and
    :meth:`gate` has allowed it. Deadlines decide how soon a lost leader is replaced, and no more: members may have
    different election timeouts, and nothing is safe because of them.
    """

    def __init__(
        self,
        config: RaftConfig,
        raft: Consensus,
        peers: Peers,
        outbox: Outbox,
        *,
        admission: Admission,
        prevote: PreVote,
        reluctance: Reluctance,
    ) -> None:
        self._config = config
        self._raft = raft
        self._peers = peers
        self._outbox = outbox
        self._admission = admission
        self._prevote = prevote
        self._reluctance = reluctance
        self._leader_heard = float("-inf")
        self._grace_given = False

    @property
    def leader_alive(self) -> bool:
        """There is a leader that works, so nobody else should be elected (Raft thesis section 4.2.3)."""
        raft = self._raft
        if raft.is_leader:
            return self.heard_quorum(raft.least_timeout)
        moment = library.monotonicTime() - raft.least_timeout
        # A leader whose link is known to be closed is not waited for.
        return raft.leader in self._peers.sessions and self._leader_heard > moment

    def heard_quorum(self, seconds: float) -> bool:
        """Leader only: whether a quorum was heard of in the latest ``seconds``."""
        moment = library.monotonicTime() - seconds
        return self._raft.log.members.quorum(self._raft.heard_since(moment))

    def missing_founders(self) -> frozenset[str]:
        """Those without whom nobody may be the first leader of a group whose founders were looked up.

        Other nodes may have been told other names. Who has a session in this group has written down that it is one
        of *these* founders, for good; so of two sets of founders that have a node in common, one group comes to be at
        most, as long as each needs all of its own. An entry of a leader shows that they were there.
        """
        config, log = self._config, self._raft.log
        members = log.members
        if not config.seeks or not members.founding or log.last_index > 1 or self._admission.admitted_at:
            return frozenset()
        return members.voters - self._peers.recognised - {config.address}

    def led(self) -> None:
        """The leader was heard of."""
        self._leader_heard = library.monotonicTime()
        self._grace_given = False
        self._prevote.end()
        self._reluctance.led()

    def answered(self) -> None:
        """A follower was heard of: the leader's silence is over."""
        self._grace_given = False

    def disconnected(self, peer: str) -> None:
        """A session is over."""
        raft = self._raft
        if peer == raft.leader:
            # Most often its process ended. PreVote and stickiness keep this from deposing a leader that lives.
            soon = library.monotonicTime() + (raft.election_timeout() - raft.least_timeout) / 2
            raft.election_deadline = min(raft.election_deadline, soon)

    def forgive_stall(self, now: float) -> None:
        """What the peers sent meanwhile lies unread in the sockets: give the loop one heartbeat's time to read it.

        Once per silence: a machine that is always late must still hold elections and step down (audit R15).
        """
        raft, grace = self._raft, self._config.heartbeat
        if self._grace_given or raft.alone:
            return
        if raft.is_leader:
            self._grace_given = True
            raft.extend_leadership(grace)
        elif raft.election_deadline < now + grace:
            self._grace_given = True
            raft.election_deadline = now + grace

    def gate(self) -> None:
        """Let an election begin only if the leader asked for it or PreVote says that it can be won."""
        raft = self._raft
        if raft.is_leader:
            return
        now = library.monotonicTime()
        may_stand = raft.may_stand and not self._admission.waiting and self._admission.removed is None
        may_stand = may_stand and not self.missing_founders()
        if raft.alone and may_stand:
            raft.may_campaign, raft.election_deadline = True, float("-inf")
            return
        if not may_stand:
            raft.may_campaign = False
            if raft.election_deadline < now:
                raft.election_deadline = now + raft.election_timeout()
                raft.lose_leader()
            return
        raft.may_campaign = raft.transfer_pending or self._prevote.won
        if raft.may_campaign or raft.election_deadline >= now or not self._peers.sessions:
            return
        timeout = raft.election_timeout()
        raft.election_deadline = now + timeout
        raft.lose_leader()
        if not self._reluctance.holds_back(now, timeout):
            self._ask()

    def _ask(self) -> None:
        raft, term = self._raft, self._raft.term + 1
        self._prevote.begin(term)
        for peer in sorted(self._peers.recognised & raft.log.members.voters):
            question = {
                "type": "pre_vote",
                "term": term,
                "last_log_index": raft.last_index,
                "last_log_term": raft.term_at(raft.last_index),
            }
            self._outbox.send(peer, question)

    def granted(self, peer: str, term: int) -> bool:
        """A peer would vote for this member; whether the election is to begin."""
        self._prevote.grant(peer, term)
        if self._prevote.won:
            self._raft.election_deadline = float("-inf")
        return self._prevote.won

    def answer(self, peer: str, message: Message) -> None:
        """Tell a peer whether this member would vote for it."""
        raft = self._raft
        if message["term"] <= raft.term:
            self._outbox.send(peer, {"type": "higher_term", "term": raft.term})
            return
        theirs = (message["last_log_term"], message["last_log_index"])
        mine = (raft.term_at(raft.last_index), raft.last_index)
        if not self.leader_alive and theirs >= mine:
            self._outbox.send(peer, {"type": "pre_vote_reply", "term": message["term"]})
