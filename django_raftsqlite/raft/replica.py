"""One member of a Raft group without threads, sockets or asyncio: the transport and the driver are around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pysyncobj.syncobj as library

from .config import RaftConfig, RaftView
from .consensus import Consensus
from .filter import ANSWERS, PROMISES, QUESTIONS, Filter, Message, ProtocolViolation, validated
from .log import MAX_ENTRY, RaftLog
from .prevote import PreVote
from .reads import Done, ReadIndex
from .reluctance import Reluctance

Place = tuple[str, int, str | None, frozenset[str], bool]
"""Role, term, leader, connected peers, established."""


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
        self.seq = 0
        self._transmit = send
        self._others = config.others
        self._heartbeat = config.heartbeat
        self._sessions: dict[str, int] = {}
        self._connected: frozenset[str] = frozenset()
        self._held: list[tuple[str, int, Message]] = []
        self._answering: int | None = None
        self._quiet = False
        self._filter = Filter()
        self._prevote = PreVote(len(config.peers))
        self._reads = ReadIndex(len(config.peers))
        self._reads_asked = 0.0
        self._reluctance = Reluctance(config.election_timeout, reluctant=config.reluctant or applied is None)
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
        )

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
        """There is a leader that works, so nobody else should be elected (Raft thesis section 4.2.3)."""
        moment = library.monotonicTime() - self.config.election_timeout
        if self.is_leader:
            return self._raft.heard_since(moment) + 1 > len(self.config.peers) // 2
        # A leader whose link is known to be closed is not waited for.
        return self.leader in self._sessions and self._leader_heard > moment

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
            self._connected,
            fault is None and raft.established,
        )

    @property
    def view(self) -> RaftView:
        """This member's place in the group."""
        raft = self._raft
        role, term, leader, connected, established = self.place
        return RaftView(
            role=role,
            term=term,
            leader=leader,
            commit_index=raft.commit_index,
            last_index=self.log.last_index,
            connected=connected,
            match={peer: raft.match(peer) for peer in self._others} if raft.is_leader else {},
            established=established,
            reason=self.log.fault or raft.apply_fault,
            first_index=self.log.first_index,
            behind=frozenset(peer for peer in self._others if raft.behind(peer)),
        )

    # Sessions

    def connected(self, peer: str) -> None:
        """A session with ``peer`` begins; an earlier one, if any, is over."""
        self._known(peer)
        if peer in self._sessions:
            self.disconnected(peer)
        self._sessions[peer] = self.seq + 1
        self._connected = frozenset(self._sessions)
        self._raft.link_up(peer)
        self._after()

    def disconnected(self, peer: str) -> None:
        """The session with ``peer`` is over; what it was to be sent is dropped."""
        self._known(peer)
        if self._sessions.pop(peer, None) is None:
            return
        self._connected = frozenset(self._sessions)
        self._held = [item for item in self._held if item[0] != peer]
        self._raft.link_down(peer)
        if peer == self.leader:
            # Most often its process ended. PreVote and stickiness keep this from deposing a leader that lives.
            soon = library.monotonicTime() + (self._raft.election_timeout() - self.config.election_timeout) / 2
            self._raft.election_deadline = min(self._raft.election_deadline, soon)
        self._after()

    def _known(self, peer: str) -> None:
        if peer not in self._others:
            raise ProtocolViolation(f"{peer!r} is not a member")

    # Messages

    def receive(self, peer: str, message: dict[str, Any]) -> None:
        """Take a message of the peer's present session. Raises ProtocolViolation for what no correct peer sends."""
        self._known(peer)
        message = validated(message)
        kind: str = message["type"]
        first_seq = self._sessions.get(peer)
        if first_seq is None or (kind in ANSWERS and message["re"] < first_seq):
            return  # Of a session that is over (audit T1).
        if kind in ANSWERS and message["re"] > self.seq:
            raise ProtocolViolation(f"{kind}: answers a question that was never asked")
        self._answering = message.get("seq")
        self._quiet = message.get("quiet", False)
        try:
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
        self._reads_ask_again(now)
        self.flush()
        self.announce()
        self._give_way(now)

    def _give_way(self, now: float) -> None:
        """A reluctant leader hands over to who is willing."""
        if not self._raft.established:
            self._reluctance.deposed()
            return
        heir = self._reluctance.heir(now, self.last_index, self._matches())
        if heir is not None:
            self._raft.transfer(heir)

    def _matches(self) -> list[tuple[str, int]]:
        return [(peer, self._raft.match(peer)) for peer in self._sessions]

    def _forgive_stall(self, now: float) -> None:
        """What the peers sent meanwhile lies unread in the sockets: give the loop one heartbeat's time to read it.

        Once per silence: a machine that is always late must still hold elections and step down.
        """
        grace = self._heartbeat
        if self._grace_given or not self._others:
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
        if raft.is_leader or not self._others:
            return
        raft.may_campaign = raft.transfer_pending or self._prevote.won
        now = library.monotonicTime()
        if raft.may_campaign or raft.election_deadline >= now or not self._sessions:
            return
        timeout = raft.election_timeout()
        raft.election_deadline = now + timeout
        raft.lose_leader()
        if self._reluctance.holds_back(now, timeout):
            return
        self._prevote.begin(self.term + 1)
        for peer in self._sessions:
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

    def begin_install(self, index: int, term: int) -> bool:
        """The state machine is about to take the state after entry ``index`` of ``term``, as a member has sent it.

        False: it is before :attr:`installable_from`, and must not be taken (audit R4). True: the log remembers it
        durably, and nothing is handed over before :meth:`installed` or :meth:`install_failed`.
        """
        if self._installing or not self._raft.begin_install(index, term, least=self.installable_from):
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

    def transfer_leadership(self) -> bool:
        """Ask a connected peer that has the whole log to take over, a willing one if possible. False: there is none.

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
        """A reluctant leader is about to hand over: for a moment nothing new should be proposed."""
        return self.is_leader and self._reluctance.giving_way(library.monotonicTime())

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
            self._ask_probes(list(self._sessions))
            self._reads.begin(first_seq, self.commit_index)

    def _reads_ask_again(self, now: float) -> None:
        """A question may be lost with its session; the round goes on with new ones."""
        if self._reads.in_flight and now - self._reads_asked >= self._heartbeat:
            self._ask_probes([peer for peer in self._sessions if self._reads.unconfirmed(peer)])

    def _ask_probes(self, peers: list[str]) -> None:
        self._reads_asked = library.monotonicTime()
        for peer in peers:
            self._send(peer, {"type": "probe", "term": self.term})

    def _after(self) -> None:
        """After anything that may have changed the member's place in the group."""
        leadership = self.term if self.is_leader else None
        if leadership != self._leadership:
            self._leadership = leadership
            self._work = True
            self._reads.fail()
        if self._transfer_term is not None and self._transfer_term < self.term:
            self._transfer_term = None
        if self._prevote.term is not None and self._prevote.term <= self.term:
            self._prevote.end()
