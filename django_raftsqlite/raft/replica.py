"""One member of a Raft group without threads, sockets or asyncio: the transport and the driver are around it."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import pysyncobj.syncobj as library

from .admission import CLUSTER, Admission
from .config import RaftConfig, RaftView
from .consensus import Consensus
from .elections import Elections
from .filter import ADMISSION, ANSWERS, QUESTIONS, Filter, Message, ProtocolViolation, validated
from .handover import Handover
from .installation import Installation
from .log import MAX_ENTRY, RaftLog
from .members import Members
from .membership import Membership
from .outbox import Outbox
from .peers import Peers
from .pings import Pings
from .prevote import PreVote
from .reads import Done, ReadIndex
from .reluctance import Reluctance
from .rounds import ReadRounds
from .roundtrips import RoundTrips
from .standing import Standing


class Replica:
    """A member as its driver sees it: messages and time go in, messages and committed entries come out.

    ``send(peer, message)`` takes a dict of msgpack-able plain types and says whether the peer has a session that
    took it; it must not call back. Messages of one session arrive in order and at most once, and none of an earlier
    session arrives after a later one began (audit T1). ``on_commit(index, term, payload)`` gets every index once, in
    order, from ``applied + 1`` on, but for those that an installed snapshot has; an empty payload is an entry of
    Raft's own, which only moves the applied index. It must not raise and must not call back. ``room()`` False holds
    back what is committed.

    Parts of it are for others to use: ``admission`` and ``membership`` (who belongs to the group), ``handover`` (who
    takes over from it as the leader), ``installation`` (snapshots) and ``standing`` (its looks from outside). Its own
    are sessions, the way out, elections, reads and pings. Nothing that promises durability leaves before the log is
    synced, by :meth:`flush` or :meth:`tick`.

    LogFault may come out of every method; then this member has stopped and nothing more is promised.

    All methods belong to one thread.
    """

    def __init__(
        self,
        config: RaftConfig,
        log: RaftLog,
        *,
        send: Callable[[str, dict[str, Any]], bool],
        on_commit: Callable[[int, int, bytes], None],
        applied: int | None,
        room: Callable[[], bool] | None = None,
        applied_term: int | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.admission = Admission(config, log)
        self._heartbeat = config.heartbeat
        self._seen = Members.none()
        self._filter = Filter()
        self._prevote = PreVote(self._quorum)
        self._reads = ReadIndex(self._quorum)
        self._reluctance = Reluctance(config.election_timeout, reluctant=config.reluctant or applied is None)
        self._round_trips = RoundTrips()
        self._leadership: int | None = None
        self._work = True
        self._last_tick: float | None = None
        self._peers = Peers(config.address)
        self._outbox = Outbox(log, self._peers, self._filter, self, send)
        self._raft = Consensus(
            config,
            log,
            send=self._outbox.send,
            on_commit=on_commit,
            applied=applied,
            applied_term=applied_term,
            room=lambda: not (self.installation.halted or self.installation.under_way) and (room is None or room()),
            founders=self.admission.founders(),
        )
        self.installation = Installation(
            self._raft,
            self._reluctance,
            reluctant=config.reluctant,
            halted=applied is None,
            go_on=self._look_around,
        )
        self._elections = Elections(
            config,
            self._raft,
            self._peers,
            self._outbox,
            admission=self.admission,
            prevote=self._prevote,
            reluctance=self._reluctance,
        )
        self._rounds = ReadRounds(self._reads, self._raft, self._peers, self._outbox, heartbeat=config.heartbeat)
        self._pings = Pings(
            config,
            self._raft,
            self._peers,
            self._outbox,
            round_trips=self._round_trips,
            reluctance=self._reluctance,
        )
        self.handover = Handover(self._raft, self._peers, self._reluctance)
        self.membership = Membership(
            config,
            log,
            self._raft,
            self._peers,
            self._outbox,
            admission=self.admission,
            handover=self.handover,
            installation=self.installation,
            round_trips=self._round_trips,
            changed=self._review,
        )
        self.standing = Standing(
            config,
            self._raft,
            self._peers,
            admission=self.admission,
            elections=self._elections,
            prevote=self._prevote,
            round_trips=self._round_trips,
        )
        self._review()

    # What the filter and the driver look at

    @property
    def term(self) -> int:
        """The current term."""
        return self._raft.term

    @property
    def is_leader(self) -> bool:
        """This member believes to lead; :meth:`read_index` makes sure."""
        return self._raft.is_leader

    @property
    def leader(self) -> str | None:
        """The address of the leader of the current term, if known."""
        return self._raft.leader

    @property
    def commit_index(self) -> int:
        """Entries up to here are committed, as far as this member knows."""
        return self._raft.commit_index

    @property
    def members(self) -> Members:
        """The newest configuration, committed or not."""
        return self.log.members

    @property
    def cluster(self) -> bytes:
        """The id of the group; empty where the log knows of none."""
        return self.log.get_meta(CLUSTER) or b""

    def _quorum(self, peers: Set[str]) -> bool:
        """Whether these and this member are a majority of the voters."""
        return self.log.members.quorum({*peers, self.config.address})

    @property
    def first_index(self) -> int:
        """Where the log begins."""
        return self.log.first_index

    @property
    def last_index(self) -> int:
        """The index of the log's last entry."""
        return self.log.last_index

    @property
    def seq(self) -> int:
        """The number of the newest question to anybody."""
        return self._outbox.seq

    @property
    def applied(self) -> int:
        """Entries up to here were handed over."""
        return self._raft.applied

    def term_at(self, index: int) -> int | None:
        """The term of a log entry, None when the log does not hold it."""
        return self.log.term_at(index)

    def match(self, peer: str) -> int:
        """Leader only: the last index known to be on a peer's disk."""
        return self._raft.match(peer)

    @property
    def leader_alive(self) -> bool:
        """See :attr:`Elections.leader_alive`."""
        return self._elections.leader_alive

    @property
    def hears_a_quorum(self) -> bool:
        """This member leads, and heard of a quorum within the shortest election timeout that a member has, if their
        settings are the same."""
        return self.is_leader and self._elections.heard_quorum(self.config.election_timeout)

    @property
    def view(self) -> RaftView:
        """This member's place in the group."""
        return self.standing.view

    # Sessions

    def connected(self, peer: str, member_id: bytes, *, same_group: bool = True) -> None:
        """A session with ``peer`` begins; an earlier one, if any, is over.

        ``member_id`` is the id that its log was made with. Not ``same_group``: nothing passes but what is about
        who is a member.
        """
        if peer in self._peers.sessions:
            self.disconnected(peer)
        self._peers.begin(peer, member_id, first_seq=self._outbox.seq + 1, same_group=same_group)
        self._review()
        self._after()

    def disconnected(self, peer: str) -> None:
        """The session with ``peer`` is over; what it was to be sent is dropped."""
        if not self._peers.end(peer):
            return
        self.membership.disconnected(peer)
        self._outbox.disconnected(peer)
        self._review()
        self._round_trips.disconnected(peer)
        self._elections.disconnected(peer)
        self._after()

    def _review(self) -> None:
        """Look again who of those with a session is believed to be the member whose address it has."""
        self._seen = members = self.log.members
        gone, come = self._peers.review(members, waiting=self.admission.waiting)
        for peer in gone:
            self._raft.link_down(peer)
        for peer in sorted(come):
            self._raft.link_up(peer)
        if self._reads.in_flight:
            self._reads.confirm()

    def belongs(self, peer: str) -> bool:
        """Whether a peer with a session is a member, or the leader, whatever this log knows of the members."""
        return peer in self._peers.recognised or (peer == self.leader and peer in self._peers.sessions)

    # Messages

    def receive(self, peer: str, message: dict[str, Any]) -> None:
        """Take a message of the peer's present session. Raises ProtocolViolation for what no correct peer sends."""
        message = validated(message)
        kind: str = message["type"]
        peers, outbox = self._peers, self._outbox
        if kind in ADMISSION:
            if peer in peers.sessions:
                self.membership.receive(peer, kind, message)
                self._review()
                self._after()
            return
        if self.admission.waiting or peer in peers.strangers:
            return
        first_seq = peers.sessions.get(peer)
        if first_seq is None or (kind in ANSWERS and message["re"] < first_seq):
            return  # Of a session that is over (audit T1).
        if kind in ANSWERS and message["re"] > outbox.seq:
            raise ProtocolViolation(f"{kind}: answers a question that was never asked")
        if peer not in peers.recognised and (kind in ANSWERS or kind == "higher_term"):
            return  # Of no member, or of one with another disk: it counts for nothing.
        if kind == "response_vote" and peer not in self.members.voters:
            return
        outbox.answering = message.get("seq")
        outbox.quiet = message.get("quiet", False)
        try:
            if kind == "ping":
                outbox.send(peer, {"type": "pong"})
            elif kind == "pong":
                self._pings.answered(peer, message["re"])
            else:
                self._handle(peer, kind, message)
        finally:
            outbox.answering = None
            outbox.quiet = False
            self._after()

    def _handle(self, peer: str, kind: str, message: Message) -> None:
        if kind in QUESTIONS and kind != "pre_vote" and message["term"] < self.term:
            # Without this a member with a higher term could never be led again, since its votes are ignored while
            # there is a leader.
            self._outbox.send(peer, {"type": "higher_term", "term": self.term})
            return
        match kind:
            case "higher_term":
                if message["term"] > self.term:
                    self._raft.adopt_term(message["term"])
            case "pre_vote":
                self._elections.answer(peer, message)
            case "pre_vote_reply":
                if self._elections.granted(peer, message["term"]):
                    self._work = True
            case "probe":
                self._outbox.send(peer, {"type": "probe_reply", "term": message["term"]})
            case "probe_reply":
                if self.is_leader and message["term"] == self.term:
                    self._reads.echo(peer, message["re"])
            case _:
                filtered = self._filter.incoming(peer, message, self)
                if filtered is not None:
                    self._deliver(peer, kind, filtered)

    def _deliver(self, peer: str, kind: str, message: Message) -> None:
        if kind == "append_entries":
            self._elections.led()
        elif kind == "timeout_now" and message["term"] == self.term and peer == self.leader:
            self._outbox.transfer_term = self.term + 1
            self._work = True
        self._raft.deliver(peer, message)
        if kind == "next_node_idx":
            self._elections.answered()
            self._raft.replied(peer, message)
            self._reads.echo(peer, message["re"])

    # Time

    def tick(self, *, late: bool = False) -> None:
        """Let time pass; to be called every half heartbeat. ``late``: the caller's loop stalled (audit R15)."""
        now = library.monotonicTime()
        if late or (self._last_tick is not None and now - self._last_tick > 2 * self._heartbeat):
            self._elections.forgive_stall(now)
        self._last_tick = now
        self._work = True
        self._pings.tick(now)
        self._rounds.ask_again(now)
        self.flush()
        self.announce()
        self.handover.tick(now)
        self.membership.tick(now)

    def speak(self, protocol: int) -> None:
        """The group uses this version of the protocol."""
        self._pings.protocol = protocol

    def flush(self) -> None:
        """Make durable what was written, send what waited for it, and do what became possible; cheap if idle.

        The caller passes on what was committed and then calls :meth:`announce`.
        """
        self._outbox.settle()
        if self._work or self._raft.commit_may_advance() or self._can_apply():
            self._work = False
            self._elections.gate()
            self._raft.doTick(0.0)
            self._after()
            self._outbox.settle()
        self._rounds.begin()

    @property
    def awaits_acknowledgement(self) -> bool:
        """This member leads, and an entry of its log is not committed yet."""
        return self.is_leader and self.last_index > self.commit_index

    @property
    def announcement_due(self) -> bool:
        """The followers are still to be told of the newest commit index."""
        return self._raft.announcement_due

    def announce(self) -> None:
        """Tell them, unless entries that were sent since have done so. A tick does it too."""
        self._raft.announce()

    def _look_around(self) -> None:
        self._work = True

    def _can_apply(self) -> bool:
        return self._raft.applied < self._raft.commit_index and self._raft.apply_fault is None

    def compact(self, index: int) -> None:
        """See :meth:`RaftLog.compact`; no further than what was handed over.

        The file may be ahead of that for a moment, until :meth:`Installation.done`.
        """
        self.log.compact(min(index, self._raft.applied))

    # Leader's services

    def propose(self, payload: bytes) -> tuple[int, int] | None:
        """Append an entry and send it; its (index, term), or None when this member does not lead.

        It is committed when ``on_commit`` gets this index with this term; another term there means it never will be.
        Raises ValueError for an empty payload or one above MAX_ENTRY bytes.
        """
        if not 0 < len(payload) <= MAX_ENTRY:
            raise ValueError(f"an entry has 1 to {MAX_ENTRY} bytes, not {len(payload)}")
        return self._raft.append(payload)

    def read_index(self, done: Done) -> None:
        """Call ``done`` with an index such that a state that has applied it contains all that was committed before.

        With None at once if this member does not lead, and later if it turns out that it does not (ReadIndex, Raft
        thesis section 6.4). In a group of one as soon as the leader is established.
        """
        if not self.is_leader:
            done(None)
            return
        self._rounds.add(done)

    def close(self) -> None:
        """End: waiting reads are told, what was written is synced. The log stays open, it is its owner's."""
        self._reads.fail()
        self._peers.clear()
        self._outbox.clear()
        if self.log.fault is None:
            self.log.sync()

    def _after(self) -> None:
        """After anything that may have changed the member's place in the group."""
        if self.log.members is not self._seen:
            self._review()
        leadership = self.term if self.is_leader else None
        if leadership != self._leadership:
            self._leadership = leadership
            self._work = True
            self._reads.fail()
        if self._outbox.transfer_term is not None and self._outbox.transfer_term < self.term:
            self._outbox.transfer_term = None
        if self._prevote.term is not None and self._prevote.term <= self.term:
            self._prevote.end()
