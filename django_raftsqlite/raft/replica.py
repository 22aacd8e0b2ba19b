"""One member of a Raft group without threads, sockets or asyncio: the transport and the driver are around it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from typing import Any

import pysyncobj.syncobj as library

from . import changes
from .admission import CLUSTER, RENAMED, TAKEN_OVER, Admission, cluster_id
from .config import RaftConfig, RaftView
from .consensus import Consensus
from .filter import ADMISSION, ANSWERS, PROMISES, QUESTIONS, Filter, Message, ProtocolViolation, validated
from .log import MAX_ENTRY, RaftLog
from .members import ID_BYTES, ChangeRefused, Members, Role, check_address
from .prevote import PreVote
from .reads import Done, ReadIndex
from .reluctance import Reluctance
from .roundtrips import SINCE, RoundTrips

logger = logging.getLogger("django_raftsqlite.raft")

Place = tuple[str, int, str | None, frozenset[str], bool, Members, bool, str | None]
"""Role, term, leader, connected peers, established, members, waiting to be admitted, problem."""

ASK_EVERY = 0.2
"""Seconds between two questions to be admitted."""


class Replica:
    """A member as its driver sees it: messages and time go in, messages and committed entries come out.

    ``send(peer, message)`` takes a dict of msgpack-able plain types and says whether the peer has a session that
    took it; it must not call back. Messages of one session arrive in order and at most once, and none of an earlier
    session arrives after a later one began (audit T1). ``on_commit(index, term, payload)`` gets every index once, in
    order, from ``applied + 1`` on, but for those that an installed snapshot has; an empty payload is an entry of
    Raft's own, which only moves the applied index. It must not raise and must not call back. ``room()`` False holds
    back what is committed.

    Nothing that promises durability leaves before the log is synced: replies, votes and requests for votes are held
    until the next :meth:`flush` or :meth:`tick` (audit R10). Entries of a leader leave at once, so that all disks
    write at the same time.

    Questions are taken from whoever has a session, since an election or an entry may come from a member that this one
    has not heard of yet; answers are counted only of members that come with the disk they were admitted with (Raft
    thesis section 4.1; a voter with an empty disk would elect a leader that lacks what was committed).

    LogFault may come out of every method; then this member has stopped and nothing more is promised.
    ``sessions_stale``: the group has admitted this node, and all its sessions are to begin anew.

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
        self.seq = 0
        self._transmit = send
        self._heartbeat = config.heartbeat
        self._sessions: dict[str, int] = {}
        self._ids: dict[str, bytes] = {}
        self._strangers: set[str] = set()  # with a session, of a group that is not known to be this one
        self._recognised: frozenset[str] = frozenset()
        self._connected: frozenset[str] = frozenset()
        self._seen = Members.none()
        self._noticed: dict[str, int] = {}
        self._asked = float("-inf")
        self._handing: tuple[str | None, int, float] | None = None
        self._catch_up = changes.CatchUp(config.election_timeout)
        self.admission = Admission(config, log)
        self.sessions_stale = False
        self._held: list[tuple[str, int, Message]] = []
        self._answering: int | None = None
        self._quiet = False
        self._filter = Filter()
        self._prevote = PreVote(self._quorum)
        self._reads = ReadIndex(self._quorum)
        self._reads_asked = 0.0
        self._reluctance = Reluctance(config.election_timeout, reluctant=config.reluctant or applied is None)
        self._round_trips = RoundTrips()
        self._protocol = config.protocols[0]
        self._leader_heard = float("-inf")
        self._transfer_term: int | None = None
        self._leadership: int | None = None
        self._work = True
        self._last_tick: float | None = None
        self._grace_given = False
        self._installing = False
        self.halted = applied is None
        self._raft = Consensus(
            config,
            log,
            send=self._send,
            on_commit=on_commit,
            applied=applied,
            applied_term=applied_term,
            room=lambda: not (self.halted or self._installing) and (room is None or room()),
            founders=self.admission.founders(),
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
    def contacts(self) -> frozenset[str]:
        """With whom this node is to have sessions."""
        return self.admission.contacts

    @property
    def cluster(self) -> bytes:
        """The id of the group."""
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
        """There is a leader that works, so nobody else should be elected (Raft thesis section 4.2.3).

        That keeps a leader in office, and no more: members may have different election timeouts, and nothing is safe
        because of it.
        """
        if self.is_leader:
            return self._heard_quorum(self._raft.least_timeout)
        moment = library.monotonicTime() - self._raft.least_timeout
        # A leader whose link is known to be closed is not waited for.
        return self.leader in self._sessions and self._leader_heard > moment

    @property
    def hears_a_quorum(self) -> bool:
        """This member leads, and heard of a quorum within the shortest election timeout that a member has, if their
        settings are the same."""
        return self.is_leader and self._heard_quorum(self.config.election_timeout)

    def _heard_quorum(self, seconds: float) -> bool:
        moment = library.monotonicTime() - seconds
        return self.members.quorum(self._raft.heard_since(moment))

    @property
    def place(self) -> Place:
        """What of the view others are told of when it changes; cheap, since it is looked at after every event."""
        raft, fault = self._raft, self.log.fault
        if fault:
            role = "failed"
        elif raft.is_leader:
            role = "leader"
        else:
            role = "candidate" if raft.is_candidate or self._prevote.term is not None else "follower"
        return (
            role,
            raft.term,
            None if fault else raft.leader,
            self._reachable(),
            fault is None and raft.established,
            self.log.members,
            self.admission.waiting,
            self._problem(),
        )

    def _problem(self) -> str | None:
        """What keeps this node from being a member, or its group from its first leader."""
        if self.admission.waiting:
            return self.admission.problem or self.admission.search
        if missing := self._missing_founders():
            return f"the group begins when all its founders are there at once, and lacks {', '.join(sorted(missing))}"
        return self.admission.problem

    def _missing_founders(self) -> Set[str]:
        """Those without whom nobody may be the first leader of a group whose founders were looked up.

        Other nodes may have been told other names. Who has a session in this group has written down that it is one
        of *these* founders, for good; so of two sets of founders that have a node in common, one group comes to be at
        most, as long as each needs all of its own. An entry of a leader shows that they were there.
        """
        members = self.log.members
        if not self.config.seeks or not members.founding or self.log.last_index > 1 or self.admission.admitted_at:
            return frozenset()
        return members.voters - self._recognised - {self.config.address}

    def _reachable(self) -> frozenset[str]:
        """The members with a session; and the leader, which this log may not know as a member yet."""
        leader = self.leader
        if leader is None or leader in self._connected or leader not in self._sessions:
            return self._connected
        return self._connected | {leader}

    @property
    def view(self) -> RaftView:
        """This member's place in the group."""
        raft = self._raft
        role, term, leader, connected, established, members, waiting, problem = self.place
        others = [member.address for member in members if member.address != self.config.address]
        return RaftView(
            role=role,
            term=term,
            leader=leader,
            commit_index=raft.commit_index,
            last_index=self.log.last_index,
            connected=connected,
            match={peer: raft.match(peer) for peer in others} if raft.is_leader else {},
            established=established,
            reason=self.log.fault or raft.apply_fault,
            first_index=self.log.first_index,
            behind=frozenset(peer for peer in others if raft.behind(peer)),
            members=members,
            waiting=waiting,
            problem=problem,
            election_timeout=raft.least_timeout,
            round_trips={peer: trip for peer in others if (trip := self._round_trips.to(peer)) is not None},
        )

    # Sessions

    def connected(self, peer: str, member_id: bytes, *, same_group: bool = True) -> None:
        """A session with ``peer`` begins; an earlier one, if any, is over.

        ``member_id`` is the id that its log was made with. Not ``same_group``: nothing passes but what is about
        who is a member.
        """
        if peer in self._sessions:
            self.disconnected(peer)
        self._sessions[peer] = self.seq + 1
        self._ids[peer] = member_id
        if not same_group:
            self._strangers.add(peer)
        self._review()
        self._after()

    def disconnected(self, peer: str) -> None:
        """The session with ``peer`` is over; what it was to be sent is dropped."""
        if self._sessions.pop(peer, None) is None:
            return
        self._ids.pop(peer, None)
        self._noticed.pop(peer, None)
        self._strangers.discard(peer)
        self._held = [item for item in self._held if item[0] != peer]
        self._review()
        self._round_trips.disconnected(peer)
        if peer == self.leader:
            # Most often its process ended. PreVote and stickiness keep this from deposing a leader that lives.
            soon = library.monotonicTime() + (self._raft.election_timeout() - self._raft.least_timeout) / 2
            self._raft.election_deadline = min(self._raft.election_deadline, soon)
        self._after()

    def _review(self) -> None:
        """Look again who of those with a session is believed to be the member whose address it has."""
        members = self.log.members
        self._seen = members
        known = frozenset(
            peer
            for peer in self._sessions
            if peer not in self._strangers
            and not self.admission.waiting
            and members.recognises(peer, self._ids[peer])
            and peer != self.config.address
        )
        before, self._recognised = self._recognised, known
        for peer in before - known:
            self._raft.link_down(peer)
        for peer in sorted(known - before):
            self._raft.link_up(peer)
        self._connected = known
        if self._reads.in_flight:
            self._reads.confirm()

    def belongs(self, peer: str) -> bool:
        """Whether a peer with a session is a member, or the leader, whatever this log knows of the members."""
        return peer in self._recognised or (peer == self.leader and peer in self._sessions)

    # Messages

    def receive(self, peer: str, message: dict[str, Any]) -> None:
        """Take a message of the peer's present session. Raises ProtocolViolation for what no correct peer sends."""
        message = validated(message)
        kind: str = message["type"]
        if kind in ADMISSION:
            if peer in self._sessions:
                self._about_members(peer, kind, message)
                self._review()
                self._after()
            return
        if self.admission.waiting or peer in self._strangers:
            return
        first_seq = self._sessions.get(peer)
        if first_seq is None or (kind in ANSWERS and message["re"] < first_seq):
            return  # Of a session that is over (audit T1).
        if kind in ANSWERS and message["re"] > self.seq:
            raise ProtocolViolation(f"{kind}: answers a question that was never asked")
        if peer not in self._recognised and (kind in ANSWERS or kind == "higher_term"):
            return  # Of no member, or of one with another disk: it counts for nothing.
        if kind == "response_vote" and peer not in self.members.voters:
            return
        self._answering = message.get("seq")
        self._quiet = message.get("quiet", False)
        try:
            if kind == "ping":
                self._send(peer, {"type": "pong"})
            elif kind == "pong":
                self._measure(peer, message["re"])
            else:
                self._handle(peer, kind, message)
        finally:
            self._answering = None
            self._quiet = False
            self._after()

    def _handle(self, peer: str, kind: str, message: Message) -> None:
        if kind in QUESTIONS and kind != "pre_vote" and message["term"] < self.term:
            # Without this a member with a higher term could never be led again, since its votes are ignored while
            # there is a leader.
            self._send(peer, {"type": "higher_term", "term": self.term})
            return
        match kind:
            case "higher_term":
                if message["term"] > self.term:
                    self._raft.adopt_term(message["term"])
            case "pre_vote":
                self._answer_pre_vote(peer, message)
            case "pre_vote_reply":
                self._prevote.grant(peer, message["term"])
                if self._prevote.won:
                    self._raft.election_deadline = float("-inf")
                    self._work = True
            case "probe":
                self._send(peer, {"type": "probe_reply", "term": message["term"]})
            case "probe_reply":
                if self.is_leader and message["term"] == self.term:
                    self._reads.echo(peer, message["re"])
            case _:
                filtered = self._filter.incoming(peer, message, self)
                if filtered is not None:
                    self._deliver(peer, kind, filtered)

    def _deliver(self, peer: str, kind: str, message: Message) -> None:
        if kind == "append_entries":
            self._leader_heard = library.monotonicTime()
            self._grace_given = False
            self._prevote.end()
            self._reluctance.led()
        elif kind == "timeout_now" and message["term"] == self.term and peer == self.leader:
            self._transfer_term = self.term + 1
            self._work = True
        self._raft.deliver(peer, message)
        if kind == "next_node_idx":
            self._grace_given = False
            self._raft.replied(peer, message)
            self._reads.echo(peer, message["re"])

    def _answer_pre_vote(self, peer: str, message: Message) -> None:
        if message["term"] <= self.term:
            self._send(peer, {"type": "higher_term", "term": self.term})
            return
        theirs = (message["last_log_term"], message["last_log_index"])
        mine = (self.term_at(self.last_index), self.last_index)
        if not self.leader_alive and theirs >= mine:
            self._send(peer, {"type": "pre_vote_reply", "term": message["term"]})

    def _send(self, peer: str, message: Message) -> bool:
        """Stamp a message and send it, or hold it if it promises what is not on the disk."""
        kind = message["type"]
        if self._quiet and kind == "next_node_idx" and message["success"]:
            return True  # It would tell the leader what it knows.
        if kind in ("append_entries", "next_node_idx", "request_vote", "response_vote", "timeout_now"):
            transfer = self._transfer_term == message.get("term")
            message = self._filter.outgoing(message, self, transfer=transfer)
        if kind in QUESTIONS and peer not in self._recognised:
            return False
        if kind in QUESTIONS:
            self.seq += 1
            message["seq"] = self.seq
        elif kind in ANSWERS:
            assert self._answering is not None, "an answer is sent while its question is handled"
            message["re"] = self._answering
        session = self._sessions.get(peer)
        if session is None:
            return False
        if kind in PROMISES and (self.log.dirty or self._held):
            self._held.append((peer, session, message))
            return True
        return self._transmit(peer, message)

    # Time

    def tick(self, *, late: bool = False) -> None:
        """Let time pass; to be called every half heartbeat. ``late``: the caller's loop stalled (audit R15)."""
        now = library.monotonicTime()
        if late or (self._last_tick is not None and now - self._last_tick > 2 * self._heartbeat):
            self._forgive_stall(now)
        self._last_tick = now
        self._work = True
        self._ping(now)
        self._reads_ask_again(now)
        self.flush()
        self.announce()
        self._give_way(now)
        self._go_on_handing_over()
        self._ask_to_be_admitted(now)
        if self.is_leader:
            self._lead_members(now)
        self._tell_strangers()
        self._look_if_removed()

    def speak(self, protocol: int) -> None:
        """The group uses this version of the protocol."""
        self._protocol = protocol

    def _ping(self, now: float) -> None:
        """Ask the peers how far away they are."""
        if self._protocol < SINCE:
            return
        for peer in self._connected:
            if self._round_trips.due(peer, now) and self._send(peer, {"type": "ping"}):
                self._round_trips.asked(peer, self.seq, now)

    def _measure(self, peer: str, seq: int) -> None:
        self._round_trips.answered(peer, seq, library.monotonicTime())
        if not self.config.fixed_timeout:
            others = self.members.voters - {self.config.address}
            timeout = self._round_trips.election_timeout(others, self.config.election_timeout)
            self._raft.least_timeout = self._reluctance.timeout = timeout

    def _give_way(self, now: float) -> None:
        """A reluctant leader hands over to who is willing."""
        if not self._raft.established:
            self._reluctance.deposed()
            return
        heir = self._reluctance.heir(now, self.last_index, self._matches())
        if heir is not None:
            self._raft.transfer(heir)

    def _matches(self) -> list[tuple[str, int]]:
        voters = self.members.voters
        return [(peer, self._raft.match(peer)) for peer in sorted(self._recognised) if peer in voters]

    def _forgive_stall(self, now: float) -> None:
        """What the peers sent meanwhile lies unread in the sockets: give the loop one heartbeat's time to read it.

        Once per silence: a machine that is always late must still hold elections and step down.
        """
        grace = self._heartbeat
        if self._grace_given or self._raft.alone:
            return
        if self.is_leader:
            self._grace_given = True
            self._raft.extend_leadership(grace)
        elif self._raft.election_deadline < now + grace:
            self._grace_given = True
            self._raft.election_deadline = now + grace

    def flush(self) -> None:
        """Make durable what was written, send what waited for it, and do what became possible; cheap if idle.

        The caller passes on what was committed and then calls :meth:`announce`.
        """
        self._settle()
        if self._work or self._raft.commit_may_advance() or self._can_apply():
            self._work = False
            self._gate_election()
            self._raft.doTick(0.0)
            self._after()
            self._settle()
        self._reads_begin()

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

    def _settle(self) -> None:
        """One fsync, then the messages that promise what it made durable."""
        if self.log.dirty:
            self.log.sync()
        if self._held:
            held, self._held = self._held, []
            for peer, session, message in held:
                if self._sessions.get(peer) == session:
                    self._transmit(peer, message)

    def _can_apply(self) -> bool:
        return self._raft.applied < self._raft.commit_index and self._raft.apply_fault is None

    def _gate_election(self) -> None:
        """Let an election begin only if the leader asked for it or PreVote says that it can be won."""
        raft = self._raft
        if raft.is_leader:
            return
        now = library.monotonicTime()
        may_stand = raft.may_stand and not self.admission.waiting and self.admission.removed is None
        may_stand = may_stand and not self._missing_founders()
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
        if raft.may_campaign or raft.election_deadline >= now or not self._sessions:
            return
        timeout = raft.election_timeout()
        raft.election_deadline = now + timeout
        raft.lose_leader()
        if self._reluctance.holds_back(now, timeout):
            return
        self._prevote.begin(self.term + 1)
        for peer in sorted(self._recognised & self.members.voters):
            question = {
                "type": "pre_vote",
                "term": self.term + 1,
                "last_log_index": self.last_index,
                "last_log_term": self.term_at(self.last_index),
            }
            self._send(peer, question)

    # Snapshots

    def compact(self, index: int) -> None:
        """See :meth:`RaftLog.compact`; no further than what was handed over.

        The file may be ahead of that for a moment, between the installation of a snapshot and :meth:`installed`.
        """
        self.log.compact(min(index, self._raft.applied))

    def halt(self) -> None:
        """What was handed over last may not have been applied, and nothing more is before a snapshot is installed.

        The member goes on storing, voting and acknowledging, but leaves leading to others.
        """
        self.halted = True
        self._reluctance.reluctant = True

    @property
    def installable_from(self) -> int:
        """The least index at which a snapshot is of use."""
        return self.applied if self.halted else self.applied + 1

    def begin_install(self, index: int, term: int, members: Members) -> bool:
        """The state machine is about to take the state after entry ``index`` of ``term``, as a member has sent it;
        ``members`` is the configuration that was in force there.

        False: it is before :attr:`installable_from`, and must not be taken (audit R4). True: the log remembers it
        durably, and nothing is handed over before :meth:`installed` or :meth:`install_failed`.
        """
        if self._installing or not self._raft.begin_install(index, term, members, least=self.installable_from):
            return False
        self.log.sync()
        self._installing = True
        return True

    def installed(self, index: int, term: int) -> None:
        """That state is on the state machine's disk: what is handed over goes on behind it."""
        self._raft.installed(index, term)
        self.halted = False
        self._reluctance.reluctant = self.config.reluctant
        self.install_failed()

    def install_failed(self) -> None:
        """The state machine's file is as before: what is handed over goes on."""
        self._installing = False
        self._work = True

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
        self._reads.add(done)
        self._reads_begin()

    def hand_over(self, to: str | None) -> None:
        """Leader only: hand over to a voter, or to the most suitable one, within an election timeout.

        Nothing new should be proposed meanwhile (:attr:`giving_way`), so that it gets all there is.
        """
        self._handing = (to, self.term, library.monotonicTime() + self._raft.least_timeout)
        self._go_on_handing_over()

    def _go_on_handing_over(self) -> None:
        if self._handing is None:
            return
        to, term, deadline = self._handing
        if not self.is_leader or self.term != term or library.monotonicTime() > deadline:
            self._handing = None
        elif to is None:
            self.transfer_leadership()
        elif to in self._recognised:
            self._raft.transfer(to)

    def transfer_leadership(self) -> bool:
        """Ask a connected voter that has the whole log to take over, a willing one if possible. False: there is none.

        True says that it was asked: whether it took over shows in the view.
        """
        if not self.is_leader:
            return False
        willing = self._reluctance.willing
        ready = [peer for peer, match in self._matches() if peer in willing and match == self.last_index]
        return self._raft.transfer(min(ready, default=None))

    def prefer(self, willing: frozenset[str]) -> None:
        """Which peers are known to be not reluctant: leadership goes to one of them, if possible."""
        self._reluctance.willing = willing

    @property
    def giving_way(self) -> bool:
        """The leader is about to hand over: for a moment nothing new should be proposed."""
        now = library.monotonicTime()
        return self.is_leader and (self._handing is not None or self._reluctance.giving_way(now))

    # Members

    def change(self, make: Callable[[Members], Members]) -> int:
        """Leader only: write what ``make`` makes of the members; the index of the entry, in force at once.

        Raises ChangeRefused, also where this member does not lead.
        """
        if not self.is_leader:
            raise ChangeRefused("this node does not lead the group", passing=True)
        members, changed = self.members, make(self.members)
        for address in changed.by_address.keys() - members.by_address.keys():
            check_address(address)
        if len(changed.all) > len(members.all) and self.must_cut:
            raise ChangeRefused("the log does not have all of the database yet, and is being cut", passing=True)
        heard = self._raft.heard_since(library.monotonicTime() - 2 * self._raft.least_timeout)
        heard &= self._recognised | {self.config.address, *self._bindable()}
        changes.check(
            members, changed, commit_index=self.commit_index, established=self._raft.established, heard=heard
        )
        place = self._raft.append_members(changed)
        assert place is not None
        self._review()
        return place[0]

    @property
    def must_cut(self) -> bool:
        """The database has what never came through the log: the log has to begin after that before anybody joins, so
        that who comes gets a snapshot."""
        return self.log.first_index == 1 and bool(self.log.get_meta(TAKEN_OVER))

    def _bindable(self) -> Mapping[str, bytes]:
        return {peer: self._ids[peer] for peer in self._sessions if peer not in self._strangers}

    def _lead_members(self, now: float) -> None:
        """As the leader: write down ids that were not known, make voters of who has caught up, go if removed."""
        members = self.members
        if not self._raft.established or members.index > self.commit_index:
            return
        if self.config.address not in members.voters:
            self.transfer_leadership()
            self._raft.resign()
            return
        ids = changes.unbound(members, {**self._bindable(), self.config.address: self.log.member_id})
        if self.log.get_meta(RENAMED):
            ids = {"": b""}
        newcomers = {m.address for m in members if m.role is Role.NEWCOMER} & self._recognised
        self._catch_up.keep(newcomers)
        try:
            if ids:
                self.change(lambda members: members.bind(ids))
                self.log.set_meta(RENAMED, b"")
                return
            for peer in sorted(newcomers):
                distance = self._round_trips.to(peer) or 0.0
                if self._catch_up.caught_up(peer, self.match(peer), self.last_index, now, distance=distance):
                    self.change(lambda members, peer=peer: members.promote(peer))  # type: ignore[misc]
                    return
        except ChangeRefused:
            pass  # Soon again.

    def _tell_strangers(self) -> None:
        """Those that are no members any more, or have another disk, are told once in a session and configuration."""
        members = self.members
        if self.admission.waiting or not members.index or members.index > self.commit_index:
            return
        for peer in self._sessions.keys() - self._recognised:
            member = members.get(peer)
            if self._noticed.get(peer) == members.index:
                continue
            if member is not None and not member.id and peer not in self._strangers:
                continue  # It is about to be written down.
            self._noticed[peer] = members.index
            known_as = b"" if member is None else member.id or bytes(ID_BYTES)
            self._send(peer, {"type": "not_member", "index": members.index, "id": known_as})

    def _look_if_removed(self) -> None:
        """The committed configuration may be one that this node does not belong to."""
        members, me = self.members, self.config.address
        known = self.admission
        if known.waiting or known.removed is not None or members.index <= known.admitted_at or self.is_leader:
            return
        if members.index <= self.commit_index and me not in members:
            known.leave(f"{me} was removed from the group (log entry {members.index})")
            self.log.sync()

    def _ask_to_be_admitted(self, now: float) -> None:
        if not self.admission.waiting or now - self._asked < ASK_EVERY:
            return
        question = self.admission.asks()
        if question is not None:
            self._asked = now
            for peer in sorted(self._sessions):
                self._send(peer, dict(question))

    def meet(self, named: frozenset[str], *, found: bool, search: str | None) -> None:
        """While this node waits to be admitted: whom it is to look for. ``search`` says what is amiss with that.

        ``found``: where its log knows of no group, these and itself are to begin one. That is for good: it is not
        undone by other names, told later.
        """
        admission = self.admission
        if not admission.waiting or admission.removed is not None:
            return
        if found and self.halted:
            found = False
            search = (
                f"the database of {self.config.address} has content that its log {self.log.path} does not know, so "
                "it founds no group. Restore that log, or move the database file away, too"
            )
        admission.meet(named - {self.config.address}, search)
        if found and not admission.estranged and not self.log.members.index and not self.cluster:
            admission.problem = None
            founders = named | {self.config.address}
            self.log.set_meta(CLUSTER, cluster_id(founders))
            self._raft.found(Members.founders(founders))
            self.log.sync()
            logger.info("This node is a founder of the group of %s", ", ".join(sorted(founders)))
            # Begun by a node of no group, they let nothing pass.
            self.sessions_stale = True
        self._review()
        self._after()

    def _about_members(self, peer: str, kind: str, message: Message) -> None:
        match kind:
            case "join":
                self._send(peer, self._answer_join(peer, message))
            case "join_reply":
                if self.admission.on_reply(message):
                    self.log.sync()
                    # Begun as a stranger's, they let nothing else pass.
                    self.sessions_stale = True
            case "not_member":
                self.admission.on_not_member(peer, message)
                self.log.sync()

    def _answer_join(self, peer: str, message: Message) -> Message:
        reply = {"type": "join_reply", "index": 0, "leader": "", "refused": "", "cluster": b"", "members": []}
        if self.admission.waiting:
            return reply
        if not self.is_leader:
            return {**reply, "leader": self.leader or ""}
        member_id = self._ids[peer]
        try:
            changed = changes.admitted(
                self.members, peer, member_id, learner=message["learner"], again=message["again"]
            )
            if changed is not None:
                self.change(lambda _: changed)
        except ChangeRefused as refused:
            return {**reply, "refused": str(refused)[:500]}
        if self.members.index > self.commit_index:
            return reply
        addresses = [member.address for member in self.members]
        return {**reply, "index": self.members.index, "cluster": self.cluster, "members": addresses}

    def close(self) -> None:
        """End: waiting reads are told, what was written is synced. The log stays open, it is its owner's."""
        self._reads.fail()
        self._sessions.clear()
        self._connected = frozenset()
        self._held.clear()
        if self.log.fault is None:
            self.log.sync()

    def _reads_begin(self) -> None:
        while self._reads.waiting and not self._reads.in_flight and self._raft.established:
            first_seq = self.seq + 1
            self._ask_probes(sorted(self._recognised))
            self._reads.begin(first_seq, self.commit_index)

    def _reads_ask_again(self, now: float) -> None:
        """A question may be lost with its session; the round goes on with new ones."""
        if self._reads.in_flight and now - self._reads_asked >= self._heartbeat:
            self._ask_probes([peer for peer in sorted(self._recognised) if self._reads.unconfirmed(peer)])

    def _ask_probes(self, peers: list[str]) -> None:
        self._reads_asked = library.monotonicTime()
        for peer in peers:
            self._send(peer, {"type": "probe", "term": self.term})

    def _after(self) -> None:
        """After anything that may have changed the member's place in the group."""
        if self.log.members is not self._seen:
            self._review()
        leadership = self.term if self.is_leader else None
        if leadership != self._leadership:
            self._leadership = leadership
            self._work = True
            self._reads.fail()
        if self._transfer_term is not None and self._transfer_term < self.term:
            self._transfer_term = None
        if self._prevote.term is not None and self._prevote.term <= self.term:
            self._prevote.end()
